"""How many reference captions a description covers, as the paper measures it on COCO (section 4.2).

Each reference caption is one case: the judge says whether the description covers it. A lexical check is reported beside
the judge, and how far the two agree. Short captions are asked for separately and scored by CIDEr, BLEU, METEOR and
ROUGE if pycocoevalcap is installed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.coco import read_captions
from minigpt4.evaluation.items import Item, Items
from minigpt4.evaluation.judges import Case, Judge, Response, RuleJudge, Verdict
from minigpt4.evaluation.suite import Again, Judged, Suite, TableRow, default_data
from minigpt4.statistics import Estimate, Rate, agreement

DESCRIBE, CAPTION = "Describe this image in detail.", "Give a short caption."
#: Verdicts that the judge is asked for twice, to measure how far it agrees with itself.
ASKED_TWICE = 200
CAPTION_TOKENS = 60
CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")


class Coverage(Suite):
    """Reference captions that descriptions cover: of a COCO captions file, or of `count` images of the default data.

    Args:
        data: The captions file (`captions_val2017.json`); the default data without it.
        images: The directory of its images.
        judge: Compares; by default the ground truth, which only the default data has.
        caption_metrics: Ask for short captions too, and score them by CIDEr and its kin.
    """

    name = "coverage"
    title = "Reference captions that the description covers"

    def __init__(
        self,
        data: Path | None = None,
        images: Path | None = None,
        *,
        judge: Judge | None = None,
        count: int = 200,
        prompt: str = DESCRIBE,
        max_new_tokens: int = 300,
        caption_metrics: bool = True,
    ) -> None:
        if data is not None and images is None:
            raise UserError(f"{data}: names images, so give their directory too (--images)")
        if data is not None and judge is None:
            raise UserError(f"{data}: the truth about these images is not known; give --judge openai:URL#MODEL")
        self.data, self.images, self.count = data, images, count
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        self.judge = judge or RuleJudge("ground truth: every fact of the caption", _exactly)
        self._metrics = caption_metrics and find_spec("pycocoevalcap") is not None
        if caption_metrics and not self._metrics:
            self.notes = ("No CIDEr, BLEU, METEOR and ROUGE: pip install 'minigpt4[eval]'.",)

    def load(self, directory: Path) -> Items:
        path, images = self.data, self.images
        if path is None or images is None:
            path, _, images = default_data().coco(directory, self.count)
        read = read_captions(path)
        found = Items(faults=read.faults)
        for image, captions in list(read.captions.items())[: self.count]:
            file, where = images / read.file_names[image], f"{path}: image {image}"
            truth = {"captions": list(captions)}
            found.add(Item(f"{image}", file, self.prompt, "description", truth, (), self.max_new_tokens), where)
            if self._metrics and file.is_file():
                found.add(Item(f"{image} caption", file, CAPTION, "caption", truth, (), CAPTION_TOKENS), where)
        return found.require(path)

    def rows(self) -> Sequence[TableRow]:
        group = "Detailed descriptions"
        rows = [
            TableRow("covered", "captions covered", "%", {"MiniGPT-4": "66.2", "BLIP-2": "27.5"}, group),
            TableRow("lexical", "with their content words", "%", {}, group),
            TableRow("words", "mean length", "words", {}, group),
        ]
        if self._metrics:
            rows += [TableRow(name, name, "", {}, "Short captions") for name in CAPTION_METRICS]
        return rows

    def cases(self, answer: Response) -> Sequence[Case]:
        if answer.item.task != "description":
            return []
        captions = enumerate(answer.item.truth["captions"])
        return [Case(answer, {"caption": text, "description": answer.text}, str(number)) for number, text in captions]

    def summarise(self, judged: Sequence[Judged]) -> Mapping[str, Rate | Estimate]:
        described = [one for one in judged if one.item.task == "description"]
        verdicts = [[verdict.success for verdict in one.verdicts] for one in described]
        words = [len(one.answer.text.split()) for one in described]
        figures = {
            "covered": _by_image(verdicts),
            "lexical": _by_image([_lexical(one) for one in described]),
            "words": Estimate.bootstrapped(words, fmean),
        }
        captions = [one for one in judged if one.item.task == "caption"]
        return figures | (self._caption_figures(captions) if captions else {})

    def _caption_figures(self, judged: Sequence[Judged]) -> dict[str, Rate | Estimate]:
        from minigpt4.evaluation.benchmarks.caption_metrics import caption_scores

        given = {f"{one.item.id} {one.answer.sample}": one for one in judged}
        found = caption_scores(
            {name: one.answer.text for name, one in given.items()},
            {name: one.item.truth["captions"] for name, one in given.items()},
        )
        left_out = tuple(f"No {name}: it {reason}." for name, reason in found.left_out.items())
        self.notes = (f"Words of short captions as cut by {found.tokenizer}.", *left_out)
        figures: dict[str, Rate | Estimate] = {
            name: Estimate.bootstrapped(values, fmean) for name, values in found.each.items()
        }
        # BLEU is of all answers together, so it has no interval from images drawn again.
        whole = {name: Estimate(value, nan, nan, len(given)) for name, value in found.corpus.items()}
        return figures | whole

    def more(self, judged: Mapping[str, Sequence[Judged]], again: Again) -> Mapping[str, Any]:
        """How far the judge agrees with content words and, if its verdicts are journaled, with itself."""
        described = [one for group in judged.values() for one in group if one.item.task == "description"]
        said = [verdict.success for one in described for verdict in one.verdicts]
        words = [covered for one in described for covered in _lexical(one)]
        rule = f"content words (at least {THRESHOLD:.0%})"
        found = [agreement("the judge", rule, zip(said, words, strict=True))]
        if self.judge.kept:
            cases = [case for one in described for case in one.cases]
            every = slice(None, None, max(1, len(cases) // ASKED_TWICE))
            second = [verdict.success for verdict in again(cases[every])]
            found.append(agreement("the judge", "itself, asked again", zip(said[every], second, strict=True)))
        return {"agreement": [pair for pair in found if pair["cases"]]}


def _by_image(outcomes: Sequence[Sequence[bool | None]]) -> Estimate:
    """The share of True; its interval is over images, whose captions are not independent of each other."""
    drawn = Estimate.bootstrapped(outcomes, _share)
    flat = [outcome for image in outcomes for outcome in image]
    return replace(
        drawn, total=len(flat), successes=sum(o is True for o in flat), undecided=sum(o is None for o in flat)
    )


def _share(outcomes: Sequence[Sequence[bool | None]]) -> float:
    return sum(o is True for image in outcomes for o in image) / sum(map(len, outcomes))


def _lexical(one: Judged) -> list[bool]:
    return [covers(caption, one.answer.text) for caption in one.item.truth["captions"]]


def _exactly(case: Case) -> Verdict:
    wrong = default_data().missing_fact(case.fields["caption"], case.fields["description"])
    return Verdict(wrong is None, wrong or "")


#: Share of a caption's content words that a description must have to cover it.
THRESHOLD = 0.75
_NO_CONTENT = (
    "a an the this that these those there here it its he she they them his her their and or but nor of in on at by to "
    "from for with without into onto over under near next beside behind above below up down out off as is are was were "
    "be been being am has have had do does did can could will would may might some any each very while who which what "
    "where when how than then so such also not no image picture photo photograph shows showing shown seen see"
)
_EMPTY = set(_NO_CONTENT.split())
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def stem(word: str) -> str:
    """A lower-case word without its ending: "riding", "rides" and "ride" are "rid", "boxes" and "box" are "box"."""
    word = word.removesuffix("'s").replace("'", "")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if re.search(r"(?:s|x|z|ch|sh)es$", word) else word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 2 and re.search(r"[aeiouy]", rest):
            word = rest[:-1] if re.search(r"([^aeioulsz])\1$", rest) else rest
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def content_words(text: str) -> set[str]:
    """The stems of the words of a text that carry content."""
    return {stem(word) for word in _WORD.findall(text.lower().replace("\u2019", "'")) if word not in _EMPTY}


def overlap(caption: str, description: str) -> float:
    """The share of the caption's content words that the description has; 1 for a caption without any."""
    wanted = content_words(caption)
    return len(wanted & content_words(description)) / len(wanted) if wanted else 1.0


def covers(caption: str, description: str) -> bool:
    """Whether the description has at least `THRESHOLD` of the caption's content words."""
    return overlap(caption, description) >= THRESHOLD
