"""Pretraining of the pocket towers: one resumable loop for the language models and for the vision side.

Batches follow from their number alone, so a run killed at any moment goes on where its last checkpoint stood. Matrices
of the hidden layers are trained with Muon, all else with AdamW (Muon needs about half the steps of AdamW at this size);
the learning rate warms up, stays, and decays over the last part.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretraining:
    """How long and how fast to train. `steps` may grow between runs; the decay then starts later.

    Without a `muon_lr` AdamW trains all: Muon computes in bfloat16, which takes long on CPUs that do not multiply it.
    With `seconds`, training ends after so many if that comes first, with the learning rate down by then.
    """

    steps: int
    muon_lr: float = 0.02
    adam_lr: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.3
    weight_decay: float = 0.05
    checkpoint_every: int = 100
    log_every: int = 25
    seconds: float | None = None

    def factor(self, step: int, elapsed: float = 0.0) -> float:
        """The learning rate's factor at a step: linear warm-up, constant, linear decay to 2 %."""
        left = (self.steps - step) / max(1.0, self.decay_share * self.steps)
        if self.seconds:
            left = min(left, (self.seconds - elapsed) / (self.decay_share * self.seconds))
        return max(0.02, min(1.0, (step + 1) / self.warmup, left))


def _optimizers(module: nn.Module, plan: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon for matrices inside the layers; AdamW for embeddings, heads, norms, biases and convolutions."""
    hidden: list[Tensor] = []
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        inside_layer = ".layers." in f".{name}" or ".layer." in f".{name}"
        if parameter.ndim == 2 and inside_layer and plan.muon_lr:
            hidden.append(parameter)
        elif parameter.ndim >= 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    adam_groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adam = torch.optim.AdamW([g for g in adam_groups if g["params"]], lr=plan.adam_lr, betas=(0.9, 0.95), fused=True)
    muon = [torch.optim.Muon(hidden, lr=plan.muon_lr, weight_decay=plan.weight_decay)] if hidden else []
    return [*muon, adam]


def pretrain(
    module: nn.Module,
    batch: Callable[[int], Any],
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]],
    plan: Pretraining,
    out: Path,
    *,
    evaluate: Callable[[], dict[str, float]] | None = None,
    evaluate_every: int = 1000,
) -> None:
    """Trains `module` (its parameters that require gradients) in place; the rest of the graph is the caller's.

    `batch` makes batch `n` for step `n`, the same each time; `loss` gives a batch's scalar loss and figures to log.
    `checkpoint.pt` and `metrics.jsonl` go to `out`; an existing checkpoint is resumed from.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    optimizers = _optimizers(module, plan)
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    step, elapsed = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, elapsed = state["step"], state.get("elapsed", 0.0)
        logger.info("resuming %s at step %d of %d", out, step, plan.steps)

    def save() -> None:
        state = {
            "module": module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
            "elapsed": elapsed,
        }
        aside = checkpoint.with_suffix(".tmp")
        torch.save(state, aside)
        aside.replace(checkpoint)

    # One worker draws and tokenises the next batches while this process computes.
    loader = iter(DataLoader(range(step, plan.steps), batch_size=None, collate_fn=batch, num_workers=1))  # type: ignore[arg-type]
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    sums: dict[str, float] = {}
    started, since = time.monotonic(), 0
    begun = started - elapsed
    try:
        while step < plan.steps and not (plan.seconds and elapsed >= plan.seconds):
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * plan.factor(step, elapsed)
            value, figures = loss(next(loader))
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            since += 1
            elapsed = time.monotonic() - begun
            for key, figure in {"loss": value.item(), **figures}.items():
                sums[key] = sums.get(key, 0.0) + figure
            if step % plan.log_every == 0 or step == plan.steps:
                means = {key: round(total / since, 4) for key, total in sums.items()}
                record = {"step": step, **means, "s_per_step": round((time.monotonic() - started) / since, 3)}
                if evaluate and (step % evaluate_every == 0 or step == plan.steps):
                    record |= evaluate()
                logger.info("%s", json.dumps(record))
                with (out / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(record) + "\n")
                sums, started, since = {}, time.monotonic(), 0
            if step % plan.checkpoint_every == 0:
                save()
    finally:
        save()
