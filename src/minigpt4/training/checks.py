"""What is checked before a model is loaded, so that a mistake costs seconds: the output, the data, the parts."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack

import torch

from minigpt4.data.mixture import Source, check_sources
from minigpt4.errors import UserError
from minigpt4.files import only_process
from minigpt4.model.loading import read_record
from minigpt4.model.parts import llm_files
from minigpt4.model.precision import resolve_dtype, training_dtype
from minigpt4.model.projection import check_projection_from
from minigpt4.model.sources import fingerprint, resolve
from minigpt4.training.checkpoint import check_checkpoints
from minigpt4.training.recipe import Recipe

LEFTOVERS = ".*.tmp"  # files of a run that was killed while it saved


def check_all(recipe: Recipe, lock: ExitStack) -> bool:
    """Check everything and make the output directory; returns True if the output holds the finished alignment already.

    Else no other process can train into the output until `lock` is closed. Raises UserError for anything that would
    stop the run later.
    """
    check_output(recipe)
    if (recipe.output / "alignment" / "alignment.json").is_file():
        return True
    check_data(recipe)
    _check_llm(recipe)
    try:
        recipe.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {recipe.output}: cannot be made ({error.strerror}); give another directory") from error
    lock.enter_context(only_process(recipe.output, "train"))
    return False


def check_output(recipe: Recipe) -> None:
    """Raises UserError for an output that holds something other than this recipe's run."""
    output, saved = recipe.output, recipe.output / "recipe.yaml"
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output}: is a file; give a directory")
    if not saved.is_file():
        present = output.iterdir() if output.is_dir() else ()
        if any(path.name != ".train.lock" and not path.match(LEFTOVERS) for path in present):
            raise UserError(f"output {output}: exists, and holds something else than a training run; give another one")
        return
    if not any(output.glob("checkpoints/*.pt")) and not (output / "alignment").is_dir():
        return  # nothing was trained yet, so nothing can be lost
    differing = Recipe.load(saved).differing_keys(recipe)
    if differing:
        raise UserError(
            f"output {output}: holds a run with another {', '.join(differing)}; "
            "give another output, or delete that directory to start again"
        )


def check_data(recipe: Recipe) -> None:
    """Raises UserError if data, or a projection to start from, are missing; nothing heavy is loaded."""
    check_sources(mixture(recipe), recipe.stage)
    if recipe.projection_from:
        check_projection_from(recipe.projection_from)


def _check_llm(recipe: Recipe) -> None:
    """Raises UserError if the checkpoints belong to another LLM than the recipe's."""
    if any(recipe.output.glob("checkpoints/*.pt")):
        init = read_record(resolve(recipe.init)) if recipe.init else None
        mark = init.origin.llm_fingerprint if init else fingerprint(llm_files(recipe.parts[1]))
        check_checkpoints(recipe.output / "checkpoints", {"LLM": digest(mark)})


def rows_per_process(recipe: Recipe, world: int) -> int:
    """How many rows of a batch each process trains on. Raises UserError if the batch cannot be divided evenly."""
    pieces = world * recipe.gradient_accumulation_steps
    if recipe.batch_size % pieces:
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be divided over {world} processes x "
            f"{recipe.gradient_accumulation_steps} gradient_accumulation_steps; give a multiple of {pieces}"
        )
    return recipe.batch_size // world


def mixture(recipe: Recipe) -> list[Source]:
    """The recipe's data as the stream of pairs takes them."""
    return [Source(source.path, source.weight, source.caption_key) for source in recipe.sources]


def compute_dtype(recipe: Recipe, device: torch.device) -> torch.dtype:
    """The dtype of the frozen weights: the recipe's, else bfloat16 on CUDA and on CPUs that multiply it fast."""
    return resolve_dtype(recipe.dtype or training_dtype(device), device)


def digest(mark: str) -> str:
    """A fingerprint in a form of fixed length."""
    return hashlib.sha256(mark.encode()).hexdigest()
