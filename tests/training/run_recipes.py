"""Carry out recipes one after the other, in each of the processes that torchrun starts.

Usage: torchrun --nproc-per-node N run_recipes.py RECIPE.yaml ... A UserError of a recipe goes to stderr, once.
"""

from __future__ import annotations

import logging
import os
import sys

import torch

from minigpt4.errors import UserError
from minigpt4.training.recipe import Recipe
from minigpt4.training.train import train


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    for path in sys.argv[1:]:
        try:
            train(Recipe.load(path))
        except UserError as error:
            if os.environ["RANK"] == "0":
                print(f"{path}: {error}", file=sys.stderr)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
