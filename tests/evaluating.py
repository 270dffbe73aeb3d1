"""What the tests of evaluation share: folders of pictures, YAML of tasks, and the command line in real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import commands
from commands import START
from curating import picture_file


def picture_folder(directory: Path, count: int) -> Path:
    """`count` small pictures, `0.png` and so on, each different."""
    directory.mkdir()
    for number in range(count):
        (directory / f"{number}.png").write_bytes(picture_file(number))
    return directory


def write_tasks(path: Path, tasks: dict[str, Any]) -> Path:
    """A YAML of tasks."""
    path.write_text(yaml.safe_dump({"tasks": tasks}, sort_keys=False))
    return path


def task(*items: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": "Write a poem.", "success": "It is a poem.", "items": list(items), **more}


def command(*arguments: object) -> list[str]:
    """`minigpt4 eval ...` in a process of its own."""
    return [sys.executable, "-c", START, "eval", *map(str, arguments)]


def run(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return commands.run("eval", *arguments, **more)


def results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "results.json").read_text())


def figures(directory: Path, label: str) -> dict[str, tuple[int, int, int]]:
    """Of each row (successes, total, undecided) for a model."""
    found = {}
    for row in results(directory)["rows"]:
        figure = row["figures"].get(label)
        if figure is None:
            continue
        found[row["name"]] = (figure["successes"], figure["total"], figure["undecided"])
    return found
