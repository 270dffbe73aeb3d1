"""What the library's benchmarks ask about without `--data`: held-out pocket pictures, whose truth is known exactly.

The module has the form of `minigpt4.evaluation.suite.DefaultData` and is registered as `minigpt4.benchmarks`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pocket.data import benchmarks
from pocket.measure.tasks import write_tasks as tasks
from pocket.measure.truth import check, missing_fact
from pocket.text.requests import PICTURE_TYPES, Request
from pocket.world import world
from pocket.world.draw import draw_once

__all__ = ["coco", "images", "missing_fact", "questions", "tasks", "what_is_wrong", "wording"]

#: Where the pictures of `images` begin: in a part of the held-out seeds that nothing else uses.
FIRST_SEED = world.SEEDS["evaluation"][0] + 300_000

#: The pocket LLM has learned neither to be told how to answer nor to answer in one word.
wording = {
    "description": "Describe this image in detail.",
    "poem": "Write a poem about this image.",
    "question": "{}",
    "choice": "The answer is {}.",
}


def images(directory: Path, count: int) -> list[Path]:
    """`count` pictures that descriptions and poems fit, drawn into `directory`."""
    types = PICTURE_TYPES["poem"]
    drawn = [world.sample(FIRST_SEED + k, types[k % len(types)]) for k in range(count)]
    return [draw_once(directory / "pictures" / f"{picture.seed}.png", picture, benchmarks.SIDE) for picture in drawn]


def coco(directory: Path, count: int) -> tuple[Path, Path, Path]:
    """(captions file, instances file, images) of `count` pictures, written into `directory`."""
    data = benchmarks.kept_benchmarks(directory, count)
    return data / benchmarks.CAPTIONS, data / benchmarks.INSTANCES, data / benchmarks.IMAGES


def questions(directory: Path, count: int) -> tuple[list[Path], Path]:
    """(question and annotation files, images) of `count` pictures, written into `directory`."""
    data = benchmarks.kept_benchmarks(directory, count)
    names = (benchmarks.AOKVQA, benchmarks.GQA, benchmarks.VQA_QUESTIONS, benchmarks.VQA_ANNOTATIONS)
    return [data / name for name in names], data / benchmarks.IMAGES


def what_is_wrong(known: Mapping[str, Any], prompt: str, answer: str) -> str | None:
    """What is wrong with an answer; None if it succeeds. `known` is a task's record of its picture."""
    request = Request(known["ability"], prompt, known.get("item"), known.get("expected"))
    verdict = check(request, world.sample(known["seed"], known["type"]), answer)
    return None if verdict.success else verdict.reason
