"""Carry out recipes one after the other, in each of the processes that torchrun starts.

Usage: torchrun --nproc-per-node N run_recipes.py RECIPE.yaml ... A UserError of a recipe goes to stderr, once. The last
is carried out by the command, which leaves the group of processes as well. "tensorboard" is a tracker of this file's.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.tracking import GeneralTracker, get_available_trackers, on_main_process, register_tracker_class
from accelerate.utils import LoggerType

from minigpt4.cli import app
from minigpt4.errors import UserError
from minigpt4.training.recipe import Recipe
from minigpt4.training.train import train


class Losses(GeneralTracker):
    """Writes the losses of a run to a file: a tracker that needs no further package."""

    name = "tensorboard"
    requires_logging_directory = True

    def __init__(self, project: str, directory: str) -> None:
        super().__init__()
        self.path = Path(directory) / f"{project}.jsonl"

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(values["loss"]) + "\n")


def main() -> None:
    register_tracker_class(Losses)
    get_available_trackers().append(LoggerType.TENSORBOARD)
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    *paths, last = sys.argv[1:]
    for path in paths:
        try:
            train(Recipe.load(path))
        except UserError as error:
            if os.environ["RANK"] == "0":
                print(f"{path}: {error}", file=sys.stderr)
    app(["train", last], standalone_mode=False)
    assert not torch.distributed.is_initialized()


if __name__ == "__main__":
    main()
