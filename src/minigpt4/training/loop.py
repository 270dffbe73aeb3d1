"""The training loop: one optimizer step after the other, starting at any step. `train.py` logs and saves."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.memory import rows_at_a_time
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.stopping import StopSignals
from minigpt4.training.checks import some_rows_at_a_time
from minigpt4.training.distributed import Processes
from minigpt4.training.loader import Loaded
from minigpt4.training.loss import next_token_loss
from minigpt4.training.recipe import Recipe
from minigpt4.training.speed import memory_mb, operations, peak_operations

BETAS = (0.9, 0.999)  # as in the original configs
FIRST_SCALE = 4096.0  # float16: the loss is multiplied by this at first
MIN_SCALE = 1.0  # float16: gradients that overflow even at this scale are a divergence


@dataclass(frozen=True)
class Step:
    """Figures of one step, over all processes."""

    step: int  # how many are finished, so the first is 1
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    tokens_per_second: float  # the LLM's, padding apart
    data_wait: float = 0.0  # share of the time in which the model waited for data
    memory_mb: float = 0.0  # this process's; on CUDA the device's peak
    mfu: float | None = None  # share of the device's peak operations, if that is known
    loader: dict[str, Any] | None = field(default=None, repr=False, compare=False)  # where the data stand
    stop: bool = field(default=False, repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """What is written down and sent to trackers for the step."""
        hidden = ("step", "loader", "stop", *(("mfu",) if self.mfu is None else ()))
        return {key: value for key, value in vars(self).items() if key not in hidden}


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of step `step` (the first is 0): a linear rise in `warmup_steps`, then half a cosine."""
    if step < recipe.warmup_steps:
        rise = recipe.learning_rate - recipe.warmup_learning_rate
        return recipe.warmup_learning_rate + rise * step / recipe.warmup_steps
    progress = min(1.0, (step - recipe.warmup_steps) / max(1, recipe.steps - 1 - recipe.warmup_steps))
    height = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + height * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: MiniGPT4, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what `set_trainable` left trainable; weight decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS)


def make_scaler(model: MiniGPT4) -> torch.amp.GradScaler:
    """Scales the loss of a model that computes in float16, whose gradients would vanish; else does nothing."""
    return torch.amp.GradScaler(model.device.type, init_scale=FIRST_SCALE, enabled=model.dtype is torch.float16)


def training_steps(
    model: MiniGPT4,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loaded: Iterator[Loaded],
    recipe: Recipe,
    processes: Processes,
    stop: StopSignals,
    first_step: int = 0,
) -> Iterator[Step]:
    """Train from step `first_step` (0 is the first) to the recipe's last; yields after each optimizer step.

    `loaded` begins with the first step's batch. Each process goes through its own rows; losses and gradients are those
    of the whole batch, and a `stop.received` in one is seen by all. Raises UserError if loss or gradient is not finite;
    the weights are then those of the step before.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    peak = peak_operations(model.device, model.dtype)
    started = time.perf_counter()
    for step in range(first_step, recipe.steps):
        rate = learning_rate(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        asked = time.perf_counter()
        mine = next(loaded)
        waited = time.perf_counter() - asked
        figures = [mine.batch.is_target.sum(), len(mine.batch.images), mine.batch.num_tokens, stop.received]
        counts = torch.tensor(figures, dtype=torch.float32).to(model.device)
        processes.sum([counts])
        targets, samples, tokens, wishes = counts.tolist()
        optimizer.zero_grad()
        loss = _backward(model, mine, targets, _at_a_time(model, mine, recipe), scaler)
        gradients = [p.grad for p in trained if p.grad is not None]
        processes.sum([*gradients, loss])
        scaler.unscale_(optimizer)
        gradient_norm = float(torch.nn.utils.get_total_norm(gradients))
        overflow = scaler.is_enabled() and scaler.get_scale() > MIN_SCALE and math.isfinite(loss.item())
        if not (math.isfinite(loss.item()) and math.isfinite(gradient_norm)) and not overflow:
            culprits = [*chain.from_iterable(processes.gather(_culprits(model, mine, trained)))]
            raise UserError(
                f"training diverged at step {step + 1}: loss {loss.item()}, gradient norm {gradient_norm}, with "
                f"{_name(culprits, int(samples))}; the last checkpoint is kept; start again with a learning_rate below "
                f"{recipe.learning_rate:g}, or without these samples"
            )
        scaler.step(optimizer)
        scaler.update()
        now = time.perf_counter()
        seconds, started = now - started, now
        mfu = None
        if peak:
            work = operations(model, tokens - samples, targets, 0 if mine.are_features else samples)
            mfu = work / seconds / peak / processes.world
        yield Step(
            step + 1, loss.item(), rate, gradient_norm, samples / seconds, tokens / seconds, waited / seconds,
            memory_mb(model.device), mfu, mine.state, wishes > 0,
        )  # fmt: skip


def _at_a_time(model: MiniGPT4, mine: Loaded, recipe: Recipe) -> int:
    """How many of this process's rows are computed at a time: as the recipe says, or fewer on a CPU."""
    rows = math.ceil(len(mine.batch.images) / recipe.gradient_accumulation_steps)
    if not some_rows_at_a_time(recipe, model.device):
        return rows
    llm = model.blip2.language_model
    return rows_at_a_time(llm.config, rows, mine.batch.input_ids.shape[1], model.dtype.itemsize, llm.num_parameters())


def _backward(model: MiniGPT4, mine: Loaded, targets: float, rows: int, scaler: torch.amp.GradScaler) -> Tensor:
    """Accumulate the gradients of this process's rows, so many at a time; returns their part of the mean loss."""
    total = torch.zeros((), device=model.device)
    for piece in _pieces(mine, rows):
        share = float(piece.batch.is_target.sum()) / targets
        loss = next_token_loss(model, piece.batch, _features(model, piece)) * share
        scaler.scale(loss).backward()
        total += loss.detach()
    return total


def _pieces(mine: Loaded, rows: int) -> Iterator[Loaded]:
    count = len(mine.batch.images)
    for start in range(0, count, rows):
        yield mine if rows >= count else mine.part(slice(start, start + rows))


def _features(model: MiniGPT4, part: Loaded) -> Tensor:
    """The cached features, or those of the images, with gradients if the Q-Former is trained."""
    if part.are_features:
        return part.images
    if not model.trained.qformer:
        return model.encode_pixels(part.images)
    return model.run_qformer(model.run_encoder(part.images))


def _culprits(model: MiniGPT4, mine: Loaded, trained: list[Tensor]) -> list[str]:
    """The texts of the samples whose own loss or gradient is not finite."""
    texts = []
    for one in _pieces(mine, 1):
        loss = next_token_loss(model, one.batch, _features(model, one))
        found = (loss, *torch.autograd.grad(loss, trained, allow_unused=True))
        if not all(tensor.isfinite().all() for tensor in found if tensor is not None):
            ids = one.batch.input_ids[one.batch.is_target]
            [key] = one.batch.images
            name = key.hex()[:12] if mine.are_features else key.decode()
            texts.append(f"{model.tokenizer.decode(ids).strip()[:60]!r} (image {name})")
    return texts


def _name(culprits: list[str], samples: int) -> str:
    if not culprits:
        return "a finite loss and gradient for each sample alone"
    if len(culprits) == samples:
        return f"all {samples} samples of the batch, beginning with {culprits[0]}"
    return f"{len(culprits)} of {samples} samples: " + ", ".join(culprits[:3]) + (", ..." if len(culprits) > 3 else "")
