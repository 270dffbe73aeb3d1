"""How many reference captions a description covers, by the judge and by content words (paper, section 4.2, on COCO).

Short captions are asked for separately and scored by CIDEr, BLEU, METEOR and ROUGE, if pycocoevalcap is installed.
Stanford's tokenizer, which published scores use, and METEOR are Java programs. Without `java`, METEOR is left out and a
plain rule splits words: figures are then close to published ones but not the same, and the result says so. SPICE is
never run, because it downloads models.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import nan
from pathlib import Path
from typing import Any

from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.coco import read_coco
from minigpt4.evaluation.items import Case, Item, Items, Response, Verdict
from minigpt4.evaluation.judges import Judge, LLMJudge
from minigpt4.evaluation.results import Journal
from minigpt4.evaluation.suite import Suite, Table, TableRow, default_data, require_images
from minigpt4.statistics import Estimate, agreement
from minigpt4.text_failures import WORDS

CAPTION_METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")

FACTS = {"judge": "ground truth: every fact of the caption"}
TRUTH = Judge(FACTS, lambda case: Verdict.unless(default_data().missing_fact(**case.fields)))
LEXICAL = Judge({"judge": "content words"}, lambda case: Verdict(covers(**case.fields)))


@dataclass
class Coverage(Suite):
    """Captions that descriptions cover: of a file, or of `count` default images, which alone have the TRUTH."""

    data: Path | None = None
    images: Path | None = None
    judge: Judge = TRUTH
    count: int = 200
    prompt: str = "Describe this image in detail."
    max_new_tokens: int = 300
    caption_metrics: bool = True
    name = "coverage"
    title = "Reference captions that the description covers"

    def __post_init__(self) -> None:
        require_images(self.data, self.images)
        if self.data is not None and self.judge is TRUTH:  # which nobody knows of these images
            self.judge = LEXICAL
        if self.caption_metrics and find_spec("pycocoevalcap") is None:
            self.caption_metrics = False
            self.notes = ("No CIDEr, BLEU, METEOR and ROUGE: pip install 'minigpt4-vlm[eval]'.",)

    def load(self, directory: Path) -> Items:
        path, images = self.data, self.images
        if path is None or images is None:
            path, _, images = default_data().coco(directory, self.count)
        read = read_coco(path, instances=False)
        found = Items(faults=read.faults)
        captioned = [image for image, captions in read.of_image.items() if captions]
        for image in captioned[: self.count]:
            file, where = images / read.file_names[image], f"{path}: image {image}"
            truth = {"captions": read.of_image[image]}
            found.add(Item(f"{image}", file, self.prompt, "description", truth, (), self.max_new_tokens), where)
            if self.caption_metrics and file.is_file():
                found.add(Item(f"{image} caption", file, "Give a short caption.", "caption", truth, (), 60), where)
        return found.require(path)

    def cases(self, answer: Response) -> Sequence[Case]:
        if answer.item.task != "description":
            return []
        captions = enumerate(answer.item.truth["captions"])
        return [Case(answer, {"caption": text, "description": answer.text}, str(number)) for number, text in captions]

    def table(self, responses: Sequence[Response]) -> Table:
        group, paper = "Detailed descriptions", {"MiniGPT-4": "66.2", "BLIP-2": "27.5"}
        described = [one for one in responses if one.item.task == "description"]
        covered = [[verdict.success for verdict in one.verdicts] for one in described]
        words = [len(one.text.split()) for one in described]
        yield TableRow("covered", "captions covered", "%", paper, group), _by_image(covered)
        yield TableRow("lexical", "with their content words", "%", {}, group), _by_image(list(map(_lexical, described)))
        yield TableRow("words", "mean length", "words", {}, group), Estimate.bootstrapped(words)
        captions = {f"{one.item.id} {one.sample}": one for one in responses if one.item.task == "caption"}
        if captions:
            answers = {name: one.text for name, one in captions.items()}
            references = {name: one.item.truth["captions"] for name, one in captions.items()}
            each, corpus, self.notes = caption_scores(answers, references)
            for name in CAPTION_METRICS:
                figure = Estimate.bootstrapped(each.get(name, []))
                if name in corpus:  # of all answers together, so it has no interval from images drawn again
                    figure = Estimate(corpus[name], nan, nan, len(captions))
                yield TableRow(name, name, "", {}, "Short captions"), figure

    def more(self, responses: Sequence[Response], verdicts: Journal) -> Mapping[str, Any]:
        """How far the judge agrees with content words and, if it is an LLM, with itself."""
        described = [one for one in responses if one.item.task == "description"]
        said = [verdict.success for one in described for verdict in one.verdicts]
        words = [covered for one in described for covered in _lexical(one)]
        rule = f"content words (at least {THRESHOLD:.0%})"
        found = [] if self.judge is LEXICAL else [agreement("the judge", rule, zip(said, words, strict=True))]
        if isinstance(self.judge, LLMJudge):
            cases = [case for one in described for case in one.cases]
            every = slice(None, None, max(1, len(cases) // 200))  # about 200 cases are asked again
            second = [verdict.success for verdict in self.judge.decide(cases[every], verdicts, round=1)]
            found.append(agreement("the judge", "itself, asked again", zip(said[every], second, strict=True)))
        return {"agreement": [pair for pair in found if pair["cases"]]}


def _by_image(outcomes: Sequence[Sequence[bool | None]]) -> Estimate:
    """The share of True; its interval is over images, whose captions are not independent of each other."""

    def share(images: Sequence[Sequence[bool | None]]) -> float:
        return sum(image.count(True) for image in images) / sum(map(len, images))

    flat = [outcome for image in outcomes for outcome in image]
    drawn = Estimate.bootstrapped(outcomes, share)
    return replace(drawn, total=len(flat), successes=flat.count(True), undecided=flat.count(None))


def _lexical(one: Response) -> list[bool]:
    return [covers(caption, one.text) for caption in one.item.truth["captions"]]


def caption_scores(
    answers: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[float]], dict[str, float], tuple[str, ...]]:
    """METEOR, ROUGE-L, CIDEr of each answer (by image), BLEU of all, against people's captions; and notes."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    java = shutil.which("java") is not None
    said = tokenize({name: [text] for name, text in answers.items()}, java)
    meant = tokenize(references, java)
    each = {
        name: [float(score) for score in scorer.compute_score(meant, said)[1]]
        for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider()))
    }
    corpus = {f"BLEU-{n}": float(score) for n, score in enumerate(Bleu(4).compute_score(meant, said, verbose=0)[0], 1)}
    notes = [f"Words of short captions as cut by {STANFORD if java else PLAIN}."]
    if not java:
        return each, corpus, (*notes, "No METEOR: it needs the command java (a Java runtime, version 8 or newer).")
    Meteor.__del__ = lambda meteor: meteor.meteor_p.kill()  # its own waits for a lock that a failure leaves locked
    try:
        each["METEOR"] = [float(score) for score in Meteor().compute_score(meant, said)[1]]
    except (OSError, ValueError) as error:
        notes.append(f"No METEOR: its Java program failed ({error}).")
    return each, corpus, tuple(notes)


STANFORD, PLAIN = "Stanford's PTBTokenizer", "lower-case words (no Java)"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def tokenize(texts: Mapping[str, Sequence[str]], java: bool) -> dict[str, list[str]]:
    """The words of texts, with spaces between: as Stanford's tokenizer cuts them, or in lower case by a plain rule."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    if not java:
        return {name: [" ".join(_WORD.findall(text.lower())) for text in each] for name, each in texts.items()}
    # One line for each text goes through the program: line breaks of any sort inside would shift all that follow.
    rows = {name: [{"caption": " ".join(text.split())} for text in each] for name, each in texts.items()}
    try:
        return PTBTokenizer().tokenize(rows)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"Stanford's tokenizer of pycocoevalcap does not run ({error}); is java complete?") from None


#: Share of a caption's content words that a description must have to cover it.
THRESHOLD = 0.75


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


#: One stem for the stems of words that name alike.
_ALIKE = {stem(word): stem(words[0]) for words in (row.split("=") for row in WORDS["alike"]) for word in words}


def content_words(text: str) -> set[str]:
    """The stems of the words of a text that carry content, one for all that name alike."""
    said = _WORD.findall(text.lower().replace("\u2019", "'"))
    return {_ALIKE.get(stem(word), stem(word)) for word in said if word not in WORDS["no_content"]}


def covers(caption: str, description: str) -> bool:
    """Whether the description has at least `THRESHOLD` of the caption's content words."""
    wanted = content_words(caption)
    return len(wanted & content_words(description)) >= THRESHOLD * len(wanted)
