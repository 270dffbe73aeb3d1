"""Yes-or-no questions about objects that are there and objects that are not (POPE, Li et al. 2023).

The absent objects are drawn in three ways: at random, the most frequent ones of the data set, and those that stand most
often beside what is in the picture. Equal numbers of both answers are right, so always saying yes gets half. Knows
nothing about files or models.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

from minigpt4.evaluation.coco import ImageId, Instances
from minigpt4.evaluation.statistics import Rate

SAMPLINGS = ("random", "popular", "adversarial")


@dataclass(frozen=True)
class Probe:
    """Is `kind` in the picture? `samplings`: under which of `SAMPLINGS` this question counts."""

    image: ImageId
    kind: str
    present: bool
    samplings: tuple[str, ...]


def draw_probes(instances: Instances, images: Sequence[ImageId], *, per_image: int = 3, seed: int = 0) -> list[Probe]:
    """Up to `per_image` objects that are there, and as many that are not in each way, for each of `images`.

    A picture without objects, or with all categories, is passed over. The questions about what is there are the same
    for all three samplings, and so are absent objects that two samplings draw: each is asked once. Frequencies are
    counted over all pictures of `instances`. The same for the same `seed`.
    """
    frequency = Counter(kind for kinds in instances.objects.values() for kind in kinds)
    together: Counter[tuple[str, str]] = Counter()
    for kinds in instances.objects.values():
        for one, other in combinations(sorted(kinds), 2):
            together[one, other] += 1
            together[other, one] += 1
    probes: list[Probe] = []
    for image in images:
        there = sorted(instances.objects[image])
        absent = [kind for kind in instances.categories if kind not in instances.objects[image]]
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


@dataclass(frozen=True)
class Confusion:
    """How answers to yes-or-no questions meet the truth; the last two are answers that say neither.

    An answer that says neither is never right: it counts against accuracy, and against recall where yes was true.
    """

    true_yes: int = 0
    false_yes: int = 0
    true_no: int = 0
    false_no: int = 0
    unparsed_yes: int = 0  # where yes was true
    unparsed_no: int = 0

    @classmethod
    def of(cls, answers: Iterable[tuple[bool, bool | None]]) -> Confusion:
        """Of pairs (is it there, what was answered)."""
        found = Counter(answers)
        return cls(
            found[True, True], found[False, True], found[False, False], found[True, False],
            found[True, None], found[False, None],
        )  # fmt: skip

    @property
    def total(self) -> int:
        return self.true_yes + self.false_yes + self.true_no + self.false_no + self.unparsed

    @property
    def unparsed(self) -> int:
        return self.unparsed_yes + self.unparsed_no

    @property
    def accuracy(self) -> Rate:
        """Right answers of all questions."""
        return Rate(self.true_yes + self.true_no, self.total)

    @property
    def precision(self) -> Rate:
        """Of the answers "yes", those that are right."""
        return Rate(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> Rate:
        """Of the questions where yes is true, those answered so."""
        return Rate(self.true_yes, self.true_yes + self.false_no + self.unparsed_yes)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall; NaN where there is neither."""
        errors = self.false_yes + self.false_no + self.unparsed_yes
        return 2 * self.true_yes / (2 * self.true_yes + errors) if self.true_yes + errors else math.nan

    @property
    def yes_rate(self) -> Rate:
        """Of all questions, those answered "yes": half of them would be right."""
        return Rate(self.true_yes + self.false_yes, self.total)
