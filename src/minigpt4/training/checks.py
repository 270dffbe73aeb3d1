"""What is checked before a model is loaded, so that a mistake costs seconds; `train --dry-run` tells what was found."""

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import psutil
import torch

from minigpt4.data.mixture import check_sources, count_pairs
from minigpt4.data.sources import Source
from minigpt4.errors import UserError
from minigpt4.files import only_process
from minigpt4.images import open_image
from minigpt4.memory import plan
from minigpt4.model.loading import read_record
from minigpt4.model.parts import llm_files
from minigpt4.model.precision import resolve_device, resolve_dtype, training_dtype
from minigpt4.model.sources import fingerprint, resolve
from minigpt4.training.checkpoint import Checkpoints
from minigpt4.training.recipe import Recipe

LEFTOVERS = ".*.tmp"  # files of a run that was killed while it saved


def check_all(recipe: Recipe, lock: ExitStack) -> bool:
    """Check everything; True if the output holds the alignment, else it is made, and `lock`ed. Raises UserError."""
    check_output(recipe)
    if (recipe.output / "alignment" / "alignment.json").is_file():
        return True
    check_sources(mixture(recipe), recipe.stage)
    if any(recipe.output.glob("checkpoints/*.pt")):  # of another LLM?
        init = read_record(resolve(recipe.init)) if recipe.init else None
        mark = init.origin.llm_fingerprint if init else fingerprint(llm_files(recipe.parts[1]))
        Checkpoints(recipe.output / "checkpoints", recipe.save_total_limit, {"LLM": mark}).last()
    try:
        recipe.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {recipe.output}: cannot be made ({error.strerror}); give another directory") from error
    lock.enter_context(only_process(recipe.output, "train"))
    return False


def check_output(recipe: Recipe) -> None:
    """Raises UserError for an output that holds something other than this recipe's run, and for unreadable samples."""
    output, saved = recipe.output, recipe.output / "recipe.yaml"
    for image in () if (output / "alignment" / "alignment.json").is_file() else recipe.sample_images:
        open_image(image)
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


def some_rows_at_a_time(recipe: Recipe, device: torch.device) -> bool:
    """Whether a step's rows may be computed in parts, on a CPU: not where processes gather an LLM's shards together."""
    return device.type == "cpu" and not recipe.shard_llm


def dry_run(recipe: Recipe, processes: int = 1) -> str:
    """Check a run in so many processes; returns what it would do, in words. Raises UserError for what would stop it."""
    rows = rows_per_process(recipe, processes)
    check_output(recipe)
    check_sources(mixture(recipe), recipe.stage)
    pieces = recipe.gradient_accumulation_steps
    in_pieces = f" in {pieces} gradient accumulation steps" if pieces > 1 else ""
    whole = sum(each.weight for each in recipe.sources)
    return "\n".join([
        f"stage {recipe.stage}: {recipe.steps:,} steps of {recipe.batch_size} samples: {recipe.num_samples:,} samples",
        f"each step: {processes} x {rows} samples{in_pieces}",
        *(f"data: {each.path}" + (f", {each.weight / whole:.1%} of them" if whole > each.weight else "")
          for each in recipe.sources),
        _passes(recipe),
        f"learning rate: {recipe.warmup_learning_rate:g} -> {recipe.learning_rate:g} in {recipe.warmup_steps:,} steps, "
        f"then to {recipe.final_learning_rate:g}",
        *_parameters_and_memory(recipe, rows // pieces),
        _state(recipe.output),
    ])  # fmt: skip


def _passes(recipe: Recipe) -> str:
    pairs = count_pairs(mixture(recipe))
    if pairs is None:
        return "records in the data: not known before they are read"
    an_epoch = max(1, pairs) if recipe.stream else max(1, pairs // recipe.batch_size) * recipe.batch_size
    return f"records in the data: {pairs:,}, unusable ones included: at most {recipe.num_samples / an_epoch:.2f} epochs"


def _parameters_and_memory(recipe: Recipe, part: int) -> list[str]:
    """Lines about the model's parts, and the memory that it takes to train on `part` samples at a time."""
    device = resolve_device(recipe.device)
    at_once = not some_rows_at_a_time(recipe, device)
    dtype = str(compute_dtype(recipe, device)).removeprefix("torch.")
    wide, tokens = dtype == "float32", recipe.max_text_tokens
    planned = partial(plan, batch=part, train=True, text_tokens=tokens, at_once=at_once, wide=wide)
    if recipe.init:
        found = planned(recipe.init)
    else:
        vision, llm, _ = recipe.parts
        found = planned(f"{vision} + {llm}", of=(vision, llm, recipe.qformer, recipe.group))
    needed = found.memory[f"training on {part}"][recipe.load_in or dtype]
    on_cuda = device.type == "cuda"
    there = torch.cuda.get_device_properties(0).total_memory if on_cuda else psutil.virtual_memory().total
    text = f"memory of each process: about {needed / 1e9:.2f} GB of the {there / 1e9:.2f} GB on this {device.type}"
    if needed > there and not recipe.shard_llm:
        remedy = "give gradient_accumulation_steps, load_in, or shard_llm over several processes"
        raise UserError(f"{text}: it does not fit; {remedy}")
    trained = {True: "trained", False: "frozen"}
    return [*(f"{each.name}: {each.parameters:,} parameters, {trained[each.trained]}" for each in found.parts), text]


def _state(output: Path) -> str:
    if (output / "alignment" / "alignment.json").is_file():
        return f"output {output}: already trained, nothing to do"
    above = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    steps = [int(path.name.partition("-")[0]) for path in output.glob("checkpoints/*.pt")]
    found = f"goes on from step {max(steps):,}" if steps else "a new run"
    return f"output {output}: {found}; {shutil.disk_usage(above).free / 1e9:.1f} GB free"
