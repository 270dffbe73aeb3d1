"""What curation did, against the truth of pocket pictures: texts, rules, grounding, and the models trained on them."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.curation import filters
from minigpt4.curation.describe import Describing
from minigpt4.curation.language import count_fragments
from minigpt4.curation.ledger import Description
from minigpt4.generation.stopping import Answer
from minigpt4.statistics import Rate
from minigpt4.text_failures import failure
from pocket.measure.truth import check, statements
from pocket.text.phrases import INSTRUCTIONS
from pocket.text.requests import Request
from pocket.world import world

MEASURE_BATCH = 32


@dataclass(frozen=True)
class Truth:
    """What is right and wrong with one text: true and false statements, and whether it is broken as language."""

    true: int
    false: int
    broken: bool

    @property
    def bad(self) -> bool:
        return self.broken or self.false > 0


def truth_of(picture: world.Picture, text: str, ended: bool = True) -> Truth:
    """A text against the truth of its picture. Broken: it repeats itself, breaks off, is empty, or holds fragments."""
    return Truth(*statements(picture, text), failure(text, ended) is not None or count_fragments(text) > 0)


def false_statements(truths: Sequence[Truth]) -> Rate:
    """The share of what is stated that is false."""
    return Rate(sum(t.false for t in truths), sum(t.true + t.false for t in truths))


def _picture(item: Description) -> world.Picture:
    return world.sample(int(item.image.name))


def measure_texts(rows: Sequence[tuple[Description, str]]) -> dict[str, Any]:
    """False statements, broken texts, and texts with either, of a dataset."""
    truths = [
        truth_of(_picture(item), text, item.raw.data["ended"] if text == item.raw.data["text"] else True)
        for item, text in rows
    ]
    return {
        "texts": len(rows),
        "false statements": false_statements(truths),
        "statements per text": round(sum(t.true + t.false for t in truths) / max(1, len(truths)), 2),
        "broken": Rate.from_outcomes([t.broken for t in truths]),
        "broken or false": Rate.from_outcomes([t.bad for t in truths]),
    }


def measure_filters(items: Sequence[Description], thresholds: filters.Thresholds) -> dict[str, Any]:
    """Precision and recall of each rule, and of all together, at finding texts that are broken or say what is false."""
    bad = {item.key: truth_of(_picture(item), item.text, item.ended).bad for item in items}
    measured = filters.measure_all(items, {})  # no picture is a duplicate here
    caught = {
        item.key: set(filters.caught_by(values, thresholds)) for item, values in zip(items, measured, strict=True)
    }
    found: dict[str, Any] = {}
    for name in (*(rule.name for rule in filters.RULES), "any rule"):
        by = [key for key, names in caught.items() if (names if name == "any rule" else name in names)]
        right = sum(bad[key] for key in by)
        found[name] = {"caught": len(by), "precision": Rate(right, len(by)), "recall": Rate(right, sum(bad.values()))}
    return found


def _judged_sentences(items: Sequence[Description]) -> list[tuple[float, bool]]:
    """(grounding, whether it says something false) of all sentences that state anything."""
    found = []
    for item in items:
        if item.grounding is None:
            continue
        picture = _picture(item)
        for start, end, score in item.grounding["sentences"]:
            true, false = statements(picture, item.text[start:end])
            if true + false:
                found.append((score, false > 0))
    return found


def choose_sentence_threshold(items: Sequence[Description]) -> float:
    """Where grounding finds false sentences best (F1), among those that state anything."""
    judged = _judged_sentences(items)
    total = sum(false for _, false in judged)

    def f1(threshold: float) -> float:
        caught = [false for score, false in judged if score < threshold]
        return 2 * sum(caught) / max(1, total + len(caught))

    return max(sorted({score for score, _ in judged}), key=f1, default=0.0)


def measure_grounding(items: Sequence[Description], threshold: float) -> dict[str, Any]:
    """Precision and recall of grounding at finding false sentences, and the area under its ROC curve."""
    judged = _judged_sentences(items)
    caught = [false for score, false in judged if score < threshold]
    false_scores = [score for score, false in judged if false]
    true_scores = [score for score, false in judged if not false]
    wins = sum((f < t) + 0.5 * (f == t) for f in false_scores for t in true_scores)
    return {
        "threshold, set on other pictures": round(threshold, 3),
        "sentences that state anything": len(judged),
        "false sentences": Rate(len(false_scores), len(judged)),
        "precision": Rate(sum(caught), len(caught)),
        "recall": Rate(sum(caught), len(false_scores)),
        "area under ROC": round(wins / max(1, len(false_scores) * len(true_scores)), 3),
    }


def choose_thresholds(items: Sequence[Description]) -> dict[str, float | None]:
    """The default thresholds, with those of grounding set where both find false texts best (F1) on these items.

    It is what a person does with `curate stats` and a sample whose truth is looked up. At most half may be left out.
    """
    scores = [(item, item.grounding) for item in items if item.grounding is not None]
    false = [truth_of(_picture(item), item.text).false > 0 for item, _ in scores]

    def candidates(name: str) -> list[float]:
        values = sorted(float(data[name]) for _, data in scores)
        return [values[int(share / 20 * len(values))] for share in range(11)] if values else [0.0]

    def f1(limits: tuple[float, float]) -> float:
        caught = [data["lowest"] < limits[0] or data["whole"] < limits[1] for _, data in scores]
        hits = sum(f and c for f, c in zip(false, caught, strict=True))
        too_many = 2 * sum(caught) > len(caught)
        return -1.0 if too_many else 2 * hits / max(1, sum(false) + sum(caught))

    sentence, text = max(itertools.product(candidates("lowest"), candidates("whole")), key=f1)
    return {**filters.DEFAULTS, "ungrounded_sentence": sentence, "ungrounded_text": text}


def measure_model(aligned: str | Path, folder: Path, seeds: Sequence[int], how: Describing) -> dict[str, Rate]:
    """Failures, false statements and recall of objects and places in a model's descriptions of pictures of the world.

    Args: `folder` holds a picture for each of `seeds`, as SEED.jpg.
    """
    from minigpt4.generation.engine import answers
    from minigpt4.minigpt4 import MiniGPT4

    model = MiniGPT4.from_pretrained(aligned)
    rng = random.Random(0)
    questions = [rng.choice(INSTRUCTIONS) for _ in seeds]
    said: list[Answer] = []
    for start in range(0, len(seeds), MEASURE_BATCH):
        some = slice(start, start + MEASURE_BATCH)
        images = [folder / f"{seed}.jpg" for seed in seeds[some]]
        said += answers(model, images, questions[some], do_sample=False, max_new_tokens=how.max_new_tokens)
    pictures = [world.sample(seed) for seed in seeds]
    truths = [truth_of(picture, answer.text, answer.ended) for picture, answer in zip(pictures, said, strict=True)]
    found = [
        check(Request("describe", question), picture, answer.text)
        for question, picture, answer in zip(questions, pictures, said, strict=True)
    ]
    return {
        "failures": Rate.from_outcomes([truth.broken for truth in truths]),
        "false statements": false_statements(truths),
        "objects with kind and colour": Rate(sum(v.kind_colour_right for v in found), sum(v.objects for v in found)),
        "objects in the right place": Rate(sum(v.place_right for v in found), sum(v.placed for v in found)),
    }
