"""The training loop: one optimiser step after the other, from any step on.

Knows nothing about files: what is done with a step's figures, and when to save, is `run.py`'s business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from minigpt4.errors import UserError
from minigpt4.training.loss import next_token_loss
from minigpt4.training.schedule import learning_rate

if TYPE_CHECKING:
    from minigpt4.data.batches import Batches
    from minigpt4.data.features import FeatureCache
    from minigpt4.model.alignment import MiniGPT4
    from minigpt4.training.recipe import Recipe

BETAS = (0.9, 0.999)  # as in the original configs


@dataclass(frozen=True)
class Step:
    """Figures of one step. `step` counts finished steps, so the first is 1; tokens are the LLM's, padding apart."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_second: float
    tokens_per_second: float


def make_optimizer(model: MiniGPT4, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over what `set_trainable` left trainable; weight decay on matrices only."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS)


def training_steps(
    model: MiniGPT4,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    features: FeatureCache,
    recipe: Recipe,
    first_step: int = 0,
) -> Iterator[Step]:
    """Train from step `first_step` (0 is the first) to the recipe's last; yields after each optimiser step.

    Raises:
        UserError: the loss or the gradient is not finite. The weights are those of the step before.
    """
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    started = time.perf_counter()
    for step in range(first_step, recipe.steps):
        rate = learning_rate(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = batches[step]
        loss = next_token_loss(model, batch, features[batch.pictures])
        optimizer.zero_grad()
        loss.backward()
        gradient_norm = float(torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]))
        if not (math.isfinite(loss.item()) and math.isfinite(gradient_norm)):
            raise UserError(
                f"training diverged at step {step + 1}: loss {loss.item()}, gradient norm {gradient_norm}; "
                f"the last checkpoint is kept; start again with a learning_rate below {recipe.learning_rate:g}"
            )
        optimizer.step()
        now = time.perf_counter()
        seconds, started = now - started, now
        yield Step(
            step + 1, loss.item(), rate, gradient_norm, len(batch.pictures) / seconds, batch.num_tokens / seconds
        )
