"""What models claim to see: CHAIR of short and long answers with their lengths, and yes-or-no questions (POPE).

CHAIR (Rohrbach et al. 2018): CHAIR_i is the share of all object mentions that are hallucinated, CHAIR_s the share of
answers with at least one. What is in an image are its annotated objects and those that its reference captions name.

POPE (Li et al. 2023): the absent objects are drawn at random, as the most frequent ones of the data set, and as those
that appear most often beside what is in the image. Yes is right as often as no, so always saying yes gets half.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from minigpt4.evaluation.benchmarks import coco
from minigpt4.evaluation.items import Case, Item, Items, Response, Verdict
from minigpt4.evaluation.judges import Judge
from minigpt4.evaluation.suite import Suite, Table, TableRow, default_data, require_images
from minigpt4.images import figure_png
from minigpt4.statistics import Estimate, Rate

#: What is asked for answers of different lengths.
PROMPTS = {"short": "Give a short caption.", "long": "Describe this image in detail."}
SAMPLINGS = ("random", "popular", "adversarial")
#: Labels of the figures, where they differ from their names.
LABELS = {
    "chair_i": "CHAIR_i: of named objects", "chair_s": "CHAIR_s: of answers", "found": "present objects named",
    "words": "mean length", "f1": "F1", "yes": "says yes", "neither": "says neither",
}  # fmt: skip


@dataclass
class Hallucination(Suite):
    """Objects that answers name and images do not hold: of an instances file, of captions, or of default images."""

    data: Path | None = None
    images: Path | None = None
    captions: Path | None = None  # what they name is there too
    count: int = 200
    probes: int = 3  # of an image: about so many objects that are there, and as many that are not
    seed: int = 0
    max_new_tokens: int = 300
    name = "hallucination"
    title = "Objects that are named and not there"

    def __post_init__(self) -> None:
        require_images(self.data or self.captions, self.images)
        self.judge = Judge({"judge": "annotated objects"}, self._judge)

    def load(self, directory: Path) -> Items:
        path, images, captions = self.data, self.images, self.captions
        if images is None:
            captions, path, images = default_data().coco(directory, self.count)
        written = coco.read_coco(captions, instances=False) if captions else coco.Annotations({}, {})
        named = replace(written, of_image=dict.fromkeys(written.of_image, ()), faults=[])  # only by captions
        instances = coco.read_coco(path, instances=True) if path else named
        found = Items(faults=[*instances.faults, *written.faults])
        self._words = coco.Vocabulary(instances.categories) if path else coco.Vocabulary(None, "scenery")
        files = {image: images / instances.file_names[image] for image in list(instances.of_image)[: self.count]}
        for image, file in files.items():
            present = {*instances.of_image[image]}.union(*map(self._words.mentions, written.of_image.get(image, ())))
            truth: dict[str, Any] = {"objects": sorted(present)}
            for task, prompt in PROMPTS.items():
                if task == "short" or file.is_file():  # a missing image is one fault
                    item = Item(f"{image} {task}", file, prompt, task, truth, (), self.max_new_tokens)
                    found.add(item, f"{path or captions}: image {image}")
        readable = [image for image, file in files.items() if file.is_file()]
        for probe in draw_probes(instances, readable, self.probes, self.seed):
            name, prompt = f"{probe.image} {probe.kind}?", f"Is there {coco.with_article(probe.kind)} in the picture?"
            truth = {"present": probe.present, "samplings": list(probe.samplings)}
            found.add(Item(name, files[probe.image], prompt, "probe", truth, (), 40), name)
        return found.require(path or captions or directory)

    def _judge(self, case: Case) -> Verdict:
        truth, answer = case.item.truth, case.answer.text
        if case.item.task == "probe":
            said = yes_or_no(answer)
            if said is None:
                return Verdict(None, "says neither yes nor no", {"said": None})
            right = said == truth["present"]
            return Verdict(right, "" if right else "says yes" if said else "says no", {"said": said})
        counts, wrong = count_objects(answer, self._words, truth["objects"])
        return Verdict(not wrong, f"names {', '.join(dict.fromkeys(wrong))}, not there" if wrong else "", counts)

    def table(self, responses: Sequence[Response]) -> Table:
        for task in PROMPTS:
            counts = [one.verdicts[0].detail for one in responses if one.item.task == task]
            yield from _group(task, f"{task.capitalize()} answers", {
                "chair_i": Estimate.bootstrapped(counts, partial(ratio, "hallucinated", "mentions")),
                "chair_s": Rate.from_outcomes(count["hallucinated"] > 0 for count in counts),
                "found": Estimate.bootstrapped(counts, partial(ratio, "found", "present")),
                "words": Estimate.bootstrapped([count["words"] for count in counts]),
            })  # fmt: skip
        probed = [one for one in responses if one.item.task == "probe"]
        for way in SAMPLINGS if probed else ():
            asked = [one for one in probed if way in one.item.truth["samplings"]]
            answers = [(bool(one.item.truth["present"]), one.verdicts[0].detail["said"]) for one in asked]
            yield from _group(way, f"Is it there? Absent objects {way}", probe_figures(answers))

    def plots(self, results: Mapping[str, Any]) -> Mapping[str, bytes]:
        """Hallucination against length: a line for each model, from its short answers to its long ones."""
        from matplotlib.figure import Figure

        canvas = Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = canvas.subplots()
        rows = {row["name"]: row["figures"] for row in results["rows"]}
        for model in (model["label"] for model in results["models"]):
            points = [(rows[f"{task} words"][model], rows[f"{task} chair_i"][model]) for task in PROMPTS]
            drawn = [(x["value"], y) for x, y in points if None not in (x["value"], y["value"])]
            if drawn:
                lengths, rates = zip(*drawn, strict=True)
                low, high = ([100 * abs(y["value"] - y[edge]) for y in rates] for edge in ("low", "high"))
                shares = [100 * y["value"] for y in rates]
                axes.errorbar(lengths, shares, yerr=(low, high), marker="o", capsize=3, label=model)
        axes.set(xlabel="mean length of answers, words", ylabel="CHAIR_i, %", title=f"{self.title}, against length")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small")
        return {"plot-length.png": figure_png(canvas)}


def _group(prefix: str, group: str, figures: Mapping[str, Rate | Estimate]) -> Table:
    for name, figure in figures.items():
        unit = "words" if name == "words" else "%"
        yield TableRow(f"{prefix} {name}", LABELS.get(name, name), unit, {}, group), figure


def count_objects(answer: str, words: coco.Vocabulary, present: Collection[str]) -> tuple[dict[str, int], list[str]]:
    """Counts of what an answer names (kinds are `present` and `found`), and every mention of a kind not `present`."""
    mentions = words.mentions(answer)
    wrong = [kind for kind in mentions if kind not in present]
    found = len({*mentions}.intersection(present))
    counts = {"mentions": len(mentions), "hallucinated": len(wrong), "found": found, "present": len(present)}
    return {**counts, "words": len(answer.split())}, wrong


def ratio(part: str, whole: str, counts: Sequence[Mapping[str, int]]) -> float:
    """The sum of one count over that of another; NaN if that is 0."""
    total = sum(count[whole] for count in counts)
    return sum(count[part] for count in counts) / total if total else math.nan


def probe_figures(answers: Sequence[tuple[bool, bool | None]]) -> dict[str, Rate | Estimate]:
    """Of pairs (is it there, what was answered). What says neither is never right, and missed where yes is true."""
    return {
        "accuracy": Rate.from_outcomes([None if said is None else said == there for there, said in answers]),
        "precision": Rate.from_outcomes([there for there, said in answers if said]),
        "recall": Rate.from_outcomes([said for there, said in answers if there]),
        "f1": Estimate.bootstrapped(answers, f1),
        "yes": Rate.from_outcomes([said is True for _, said in answers]),
        "neither": Rate.from_outcomes([said is None for _, said in answers]),
    }


def f1(answers: Sequence[tuple[bool, bool | None]]) -> float:
    """The harmonic mean of precision and recall of "yes"; NaN where yes is never true and never said."""
    right = sum(there and said is True for there, said in answers)
    either = sum(there for there, _ in answers) + sum(said is True for _, said in answers)
    return 2 * right / either if either else math.nan


@dataclass(frozen=True)
class Probe:
    """Is `kind` in the image? `samplings`: under which of `SAMPLINGS` this question counts."""

    image: coco.ImageId
    kind: str
    present: bool
    samplings: tuple[str, ...]


def draw_probes(instances: coco.Annotations, images: Iterable[Any], per_image: int, seed: int = 0) -> list[Probe]:
    """Up to `per_image` objects that are there, and as many absent ones of each sampling; each is asked about once."""
    frequency, together = Counter[str](), Counter[tuple[str, str]]()
    for kinds in instances.of_image.values():
        frequency.update(kinds)
        together.update(permutations(kinds, 2))
    probes: list[Probe] = []
    for image in images:
        there = sorted(instances.of_image[image])
        absent = [kind for kind in instances.categories if kind not in there]
        count = min(per_image, len(there), len(absent))
        rng = random.Random(f"probes {seed} {image}")
        probes += [Probe(image, kind, True, SAMPLINGS) for kind in rng.sample(there, count)]
        beside = {kind: sum(together[kind, other] for other in there) for kind in absent}
        drawn = {
            "random": rng.sample(absent, count),
            "popular": sorted(absent, key=lambda kind: (-frequency[kind], kind))[:count],
            "adversarial": sorted(absent, key=lambda kind: (-beside[kind], -frequency[kind], kind))[:count],
        }
        for kind in dict.fromkeys(kind for kinds in drawn.values() for kind in kinds):
            probes.append(Probe(image, kind, False, tuple(way for way in SAMPLINGS if kind in drawn[way])))
    return probes


_NO = re.compile(
    r"^\W*(?:no|nope)\b|\b(?:is|are|do|does|was|were)(?:n't| not)\b|\b(?:is|are|was|were|see) no\b|\bthere's no\b"
)
_YES = re.compile(r"^\W*(?:yes|yeah|yep)\b|\bthere(?: is|'s| are)\b(?! no\b| not\b|n't\b)")


def yes_or_no(answer: str) -> bool | None:
    """Whether an answer's first sentence says yes; None if it says neither ("I cannot tell.")."""
    first = re.split(r"(?<=[.!?])\s|\n", answer.strip().lower().replace("\u2019", "'"), maxsplit=1)[0]
    no, yes = _NO.search(first), _YES.search(first)
    if no and yes:
        return yes.start() < no.start()
    return True if yes else False if no else None
