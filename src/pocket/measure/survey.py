"""The held-out questions of the demo, put to a model, and what its answers are worth.

A survey is drawn once and put to every model, so that their rates differ by the model alone. Pictures come from the
seeds that nothing was trained on, and reach the model as people's pictures do: as PNG and JPEG files.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.statistics import Rate
from minigpt4.text_failures import failure
from pocket.measure.truth import Finding, check
from pocket.text.requests import PICTURE_TYPES, Request, follow_up, request
from pocket.world import world
from pocket.world.draw import draw_once

if TYPE_CHECKING:
    from torch import Tensor

    from minigpt4.minigpt4 import MiniGPT4

#: What the projection is never trained on; their mean is the figure that the paper gives as 65 %.
ABILITIES = ("poem", "story", "recipe", "advertise", "funny", "website", "count", "follow_up")
#: The first questions of the conversations that a follow-up question ends; measured too, beside the mean.
FIRST_QUESTIONS = ("colour", "where", "exists")
#: More than the longest good answer (a recipe of 90 tokens); an answer that is cut off here counts as unfinished.
MAX_NEW_TOKENS = 160
#: Drawn larger than the vision tower's input, so that the image processor has its usual work to do.
PICTURE_SIZES = (256, 224)


@dataclass(frozen=True)
class SurveyQuestion:
    """A request about `survey.pictures[picture]`, counted under `ability`; `after` is the question asked before it."""

    ability: str
    picture: int
    request: Request
    after: int | None = None


@dataclass(frozen=True)
class Survey:
    """Pictures and questions about them. A question comes after the one that it follows up."""

    pictures: tuple[world.Picture, ...]
    questions: tuple[SurveyQuestion, ...]


class Rates(dict[str, Rate]):
    """Rates by name; nothing of nothing for what was not counted."""

    def __missing__(self, name: str) -> Rate:
        return Rate(0, 0)

    def count(self, name: str, successes: int, total: int = 1) -> None:
        """Add to the rate called `name`."""
        self[name] += Rate(successes, total)


@dataclass(frozen=True)
class Judged:
    """A model's answer to one question: what it says, how it fails as language if it does, whether it is right."""

    text: str
    failure: str | None
    verdict: Finding


def draw_survey(count: int, seed: int = 0) -> Survey:
    """`count` held-out pictures of each type, and `count` questions for each ability (more for descriptions).

    Poems and stories are asked for about every type of picture that they fit, in turn.
    """
    rng = random.Random(seed)
    start = world.SEEDS["evaluation"][0] + seed * len(world.TYPES) * count
    pictures: list[world.Picture] = []
    of_type: dict[str, list[int]] = {}
    for number, name in enumerate(world.TYPES):
        of_type[name] = list(range(len(pictures), len(pictures) + count))
        pictures += [world.sample(start + number * count + k, name) for k in range(count)]
    questions: list[SurveyQuestion] = []

    def ask(ability: str, picture: int) -> None:
        questions.append(SurveyQuestion(ability, picture, request(ability, pictures[picture], rng)))

    for name in world.TYPES:
        for index in of_type[name][: count if name == "scene" else -(-count // 4)]:
            ask("describe", index)
    for ability in ABILITIES[:-1]:
        types = PICTURE_TYPES[ability]
        for k in range(count):
            ask(ability, of_type[types[k % len(types)]][k])
    for k, index in enumerate(of_type["scene"]):
        ask(FIRST_QUESTIONS[k % len(FIRST_QUESTIONS)], index)
        asked = follow_up(questions[-1].request, pictures[index], rng)
        questions.append(SurveyQuestion("follow_up", index, asked, after=len(questions) - 1))
    return Survey(tuple(pictures), tuple(questions))


def write_pictures(survey: Survey, directory: Path) -> list[Path]:
    """Draw the survey's pictures into `directory`, as PNG and JPEG files in turn; returns their paths in order.

    Pictures that are there already are kept.
    """
    return [
        draw_once(directory / f"{picture.seed}.{('png', 'jpg')[number % 2]}", picture, PICTURE_SIZES[number % 2])
        for number, picture in enumerate(survey.pictures)
    ]


def encode(model: MiniGPT4, paths: Sequence[Path] | Sequence[bytes], batch_size: int = 32) -> Tensor:
    """What the model's vision side gives for the pictures: (pictures, q, d_qformer)."""
    import torch

    starts = range(0, len(paths), batch_size)
    return torch.cat([model.encode_images(paths[start : start + batch_size]) for start in starts])


def put(
    survey: Survey,
    model: MiniGPT4,
    features: Tensor,
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda answered: None,
) -> list[Judged]:
    """Put every question to `model`, greedily and in batches; one record per question, in order.

    `features` is what `encode` gave for the survey's pictures. `progress` is called after each batch with the number of
    its answers.
    """
    from minigpt4.generation.engine import answers
    from minigpt4.prompts.templates import Message

    records: dict[int, Judged] = {}
    first = [i for i, question in enumerate(survey.questions) if question.after is None]
    then = [i for i, question in enumerate(survey.questions) if question.after is not None]
    # Neighbours ask for the same ability, so the answers of a batch are of like length.
    for batch in (part[k : k + batch_size] for part in (first, then) for k in range(0, len(part), batch_size)):
        asked = [survey.questions[i] for i in batch]
        prompts: list[str | list[Message]] = [
            question.request.text
            if question.after is None
            else [
                Message("user", survey.questions[question.after].request.text, images=1),
                Message("assistant", records[question.after].text),
                Message("user", question.request.text),
            ]
            for question in asked
        ]
        rows = features[[question.picture for question in asked]]
        found = answers(model, prompts=prompts, features=rows, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
        for i, question, answer in zip(batch, asked, found, strict=True):
            verdict = check(question.request, survey.pictures[question.picture], answer.text)
            records[i] = Judged(answer.text, failure(answer.text, answer.ended), verdict)
        progress(len(batch))
    return [records[i] for i in range(len(survey.questions))]


def measure(survey: Survey, records: Sequence[Judged]) -> Rates:
    """Every rate of the demo's table, by name.

    `kind_colour` and `place`: of the objects in scenes that were to be described, those with the right kind and colour,
    and those in the right place. `fails_describe`, `fails_poem`: answers that fail as language. `describe` and each
    ability: answers that are right in full. `abilities`: all of `ABILITIES` together, each with the same weight.
    """
    rates = Rates()
    for question, record in zip(survey.questions, records, strict=True):
        ability, verdict = question.ability, record.verdict
        if ability == "describe" and survey.pictures[question.picture].type == "scene":
            rates.count("kind_colour", verdict.kind_colour_right, verdict.objects)
            rates.count("place", verdict.place_right, verdict.placed)
        if ability in ("describe", "poem"):
            rates.count(f"fails_{ability}", record.failure is not None)
        rates.count(ability, verdict.success)
        if ability in ABILITIES:
            rates.count("abilities", verdict.success)
    return rates


def difference(one: Rate, other: Rate) -> tuple[float, float, float]:
    """(share of `one` minus share of `other`, low, high): the 95 % interval of a difference of two proportions.

    Newcombe's hybrid of both Wilson intervals (1998, his method 10). It takes the samples as independent: where the
    same questions were put to both, it is wider than need be. Raises ValueError if nothing was observed of one.
    """
    if not (one.total and other.total):
        raise ValueError("a difference needs observations of both rates")
    (low, high), (other_low, other_high) = one.interval, other.interval
    found = one.share - other.share
    below = math.hypot(one.share - low, other_high - other.share)
    above = math.hypot(high - one.share, other.share - other_low)
    return found, found - below, found + above
