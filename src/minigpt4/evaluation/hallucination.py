"""Objects that an answer names and the picture does not hold: CHAIR (Rohrbach et al. 2018).

CHAIR_i is the share of all object mentions that are hallucinated, CHAIR_s the share of answers with at least one. What
is in a picture are its annotated objects and those that its reference captions name. As long answers name more, the
mean length stands beside both. Knows nothing about files or models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minigpt4.evaluation.objects import Vocabulary


@dataclass(frozen=True)
class Named:
    """What one answer names, counted in mentions, and its length in words.

    `found` of the `present` kinds are named at least once: a model avoids hallucination by saying little, too.
    """

    mentions: int
    hallucinated: int
    found: int
    present: int
    words: int


def present_objects(annotated: Iterable[str], captions: Iterable[str], vocabulary: Vocabulary) -> frozenset[str]:
    """What counts as being in a picture: what is annotated, and what its reference captions name."""
    return frozenset(annotated).union(*(vocabulary.mentions(caption) for caption in captions))


def hallucinated(answer: str, vocabulary: Vocabulary, present: Iterable[str]) -> list[str]:
    """Every mention, in order, of a kind that is not `present`."""
    there = set(present)
    return [kind for kind in vocabulary.mentions(answer) if kind not in there]


def count_objects(answer: str, vocabulary: Vocabulary, present: Iterable[str]) -> Named:
    """The mentions of an answer, measured against the kinds that are `present`."""
    there = set(present)
    mentions = vocabulary.mentions(answer)
    wrong = sum(kind not in there for kind in mentions)
    return Named(len(mentions), wrong, len(there.intersection(mentions)), len(there), len(answer.split()))


def chair_i(answers: Sequence[Named]) -> float:
    """The share of object mentions that are hallucinated; NaN if nothing is named."""
    mentions = sum(answer.mentions for answer in answers)
    return sum(answer.hallucinated for answer in answers) / mentions if mentions else math.nan


def recall(answers: Sequence[Named]) -> float:
    """The share of what is there that is named; NaN if nothing is there."""
    present = sum(answer.present for answer in answers)
    return sum(answer.found for answer in answers) / present if present else math.nan


def mean_words(answers: Sequence[Named]) -> float:
    """The mean length of the answers in words."""
    return sum(answer.words for answer in answers) / len(answers)
