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
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from minigpt4.evaluation.coco import ImageId, Instances

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


def f1(answers: Sequence[tuple[bool, bool | None]]) -> float:
    """The harmonic mean of precision and recall of "yes", from pairs (is it there, what was answered).

    An answer that says neither (None) where yes is true is missed. NaN where yes is never true and never said.
    """
    found = Counter(answers)
    right = found[True, True]
    errors = found[False, True] + found[True, False] + found[True, None]
    return 2 * right / (2 * right + errors) if right + errors else math.nan
