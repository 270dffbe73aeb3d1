"""The paper's eight tasks in the pocket world, as the YAML that the abilities suite reads: pictures, prompts, truth.

Which pocket task stands for which of the paper's is in tasks.yaml; docs/evaluation.md says what it leaves out.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from minigpt4.files import write_atomically
from pocket.measure.survey import MAX_NEW_TOKENS
from pocket.shipped import read_table
from pocket.text.requests import Request, request
from pocket.world import world
from pocket.world.draw import draw_once

#: Where the tasks' pictures begin: in a part of the held-out seeds that nothing else uses.
FIRST_SEED = world.SEEDS["evaluation"][0] + 200_000
SIDE = 256


@dataclass(frozen=True)
class TaskKind:
    """One task: the pocket's requests (`abilities`, in turn) about pictures of `types` (in turn)."""

    name: str
    label: str
    abilities: Sequence[str]
    types: Sequence[str]
    success: str
    paper: dict[str, str] = field(default_factory=dict)
    words: str | None = None  # must be in the request: the same ability serves two tasks
    without: str | None = None


TASKS = tuple(TaskKind(**task) for task in read_table("measure/tasks"))


def write_tasks(directory: Path, count: int) -> Path:
    """Write `directory/pocket.yaml`, with `count` questions for each task, and its pictures; returns its path."""
    tasks: dict[str, Any] = {}
    for number, task in enumerate(TASKS):
        rng = random.Random(f"abilities-{task.name}")
        entries = []
        for k in range(count):
            picture = world.sample(FIRST_SEED + 5_000 * number + k, task.types[k % len(task.types)])
            asked = _request(task, task.abilities[k % len(task.abilities)], picture, rng)
            path = draw_once(directory / "pictures" / f"{picture.seed}.png", picture, SIDE)
            known = {"seed": picture.seed, "type": picture.type, "ability": asked.ability}
            known |= {key: value for key in ("item", "expected") if (value := getattr(asked, key)) is not None}
            entries.append({
                "image": path.relative_to(directory).as_posix(), "prompt": asked.text,
                "facts": facts_in_words(picture), "pocket": known,
            })  # fmt: skip
        tasks[task.name] = {
            "label": task.label, "success": task.success, "max_new_tokens": MAX_NEW_TOKENS,
            **({"paper": task.paper} if task.paper else {}), "items": entries,
        }  # fmt: skip
    path = directory / "pocket.yaml"
    text = yaml.safe_dump({"tasks": tasks}, sort_keys=False, allow_unicode=True, width=120)
    write_atomically(path, text.encode())
    return path


def _request(task: TaskKind, ability: str, picture: world.Picture, rng: random.Random) -> Request:
    """A request that belongs to the task and not to another with the same ability."""
    while True:
        asked = request(ability, picture, rng)
        if (task.words or "") in asked.text and (task.without is None or task.without not in asked.text):
            return asked


def facts_in_words(picture: world.Picture) -> str:
    """What is in the picture, for a judge who cannot see it."""
    things = []
    for item in picture.items:
        words = " ".join(word for word in (item.size, item.colour, item.kind) if word)
        things.append(f"{words} at {item.place}" if item.place else words)
    kind = {
        "scene": "A scene, background", "food": "A plate of food, dish", "product": "A product photo, backdrop",
        "odd": "An odd scene, background", "draft": "A drawn draft of a website, title",
    }[picture.type]  # fmt: skip
    return f"{kind}: {picture.setting}. Things: {', '.join(things)}."
