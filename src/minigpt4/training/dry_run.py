"""`train --dry-run`: what a recipe would do, without loading a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil

from minigpt4.data.mixture import count_pairs
from minigpt4.errors import UserError
from minigpt4.memory import Plan, plan
from minigpt4.model.precision import resolve_device
from minigpt4.training.checks import check_data, check_output, compute_dtype, mixture, rows_per_process
from minigpt4.training.recipe import Recipe


def dry_run(recipe: Recipe, processes: int = 1) -> str:
    """Check paths, sizes and memory of a run in `processes` processes; returns what it would do, in words.

    Raises:
        UserError: anything that would stop the run at its start, or a model that does not fit in memory.
    """
    rows = rows_per_process(recipe, processes)
    check_output(recipe)
    check_data(recipe)
    sources = mixture(recipe)
    for image in recipe.sample_images:
        if not Path(image).is_file():
            raise UserError(f"sample_images: {image}: no such file")
    device = resolve_device(recipe.device)
    part = rows // recipe.gradient_accumulation_steps
    if recipe.init:
        found = plan(recipe.init, batch=part, train=True)
    else:
        vision_qformer, llm, _ = recipe.parts
        found = plan(f"{vision_qformer} + {llm}", batch=part, train=True, of=(vision_qformer, llm, recipe.qformer))
    pairs = count_pairs(sources)
    lines = [
        f"stage {recipe.stage}: {recipe.steps:,} steps of {recipe.batch_size} samples: {recipe.num_samples:,} samples",
        f"each step: {processes} x {rows} samples"
        + (f" in {steps} gradient accumulation steps" if (steps := recipe.gradient_accumulation_steps) > 1 else ""),
        *(_share(recipe, i) for i in range(len(sources))),
        _passes(recipe, pairs),
        f"learning rate: {recipe.warmup_learning_rate:g} -> {recipe.learning_rate:g} in {recipe.warmup_steps:,} steps, "
        f"then to {recipe.final_learning_rate:g}",
        *_parameters(found),
        _memory(recipe, found, part, str(compute_dtype(recipe, device)).removeprefix("torch."), device.type),
        _state(recipe),
    ]
    return "\n".join(line for line in lines if line)


def _share(recipe: Recipe, i: int) -> str:
    source, total = recipe.sources[i], sum(source.weight for source in recipe.sources)
    return f"data: {source.path}" + (f", {source.weight / total:.1%} of them" if len(recipe.sources) > 1 else "")


def _passes(recipe: Recipe, pairs: int | None) -> str:
    if pairs is None:
        return "pairs in the data: not known before they are read"
    if not recipe.stream and recipe.batch_size > pairs:
        raise UserError(f"batch_size {recipe.batch_size} is more than the {pairs} pairs in the data")
    an_epoch = pairs if recipe.stream else pairs // recipe.batch_size * recipe.batch_size
    return f"pairs in the data: {pairs:,}, unusable ones included: {recipe.num_samples / an_epoch:.2f} epochs"


def _parameters(found: Plan) -> list[str]:
    return [
        f"{part.name}: {part.parameters:,} parameters, {'trained' if part.trained else 'frozen'}"
        for part in found.parts
    ]


def _memory(recipe: Recipe, found: Plan, part: int, dtype: str, device: str) -> str:
    # float16 takes what bfloat16 does, which the plan knows for training.
    precision = recipe.load_in or ("bfloat16" if dtype == "float16" else dtype)
    needed = found.memory[f"training on {part}"][precision]
    there = psutil.virtual_memory().total
    if device == "cuda":
        import torch

        there = torch.cuda.get_device_properties(0).total_memory
    text = f"memory of each process: about {(needed or 0) / 1e9:.2f} GB of the {there / 1e9:.2f} GB on this {device}"
    if needed and needed > there and not recipe.shard_llm:
        remedy = "give gradient_accumulation_steps, load_in, or shard_llm over several processes"
        raise UserError(f"{text}: it does not fit; {remedy}")
    return text


def _state(recipe: Recipe) -> str:
    output = recipe.output
    above = next(path for path in (output, *output.absolute().parents) if path.is_dir())
    free = f"{shutil.disk_usage(above).free / 1e9:.1f} GB free"
    if (output / "alignment" / "alignment.json").is_file():
        return f"output {output}: already trained, nothing to do"
    steps = [int(path.name.partition("-")[0]) for path in output.glob("checkpoints/*.pt")]
    return f"output {output}: " + (f"goes on from step {max(steps):,}" if steps else "a new run") + f"; {free}"
