"""The learning rate of each step: linear warm-up, then cosine decay (paper, section 3; original configs)."""

from __future__ import annotations

import math

from minigpt4.training.recipe import Recipe


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate of step `step` (the first is 0).

    Rises linearly from `warmup_learning_rate` at step 0 to `learning_rate` at step `warmup_steps`, then falls along
    half a cosine to `final_learning_rate` at the last step.
    """
    if step < recipe.warmup_steps:
        rise = recipe.learning_rate - recipe.warmup_learning_rate
        return recipe.warmup_learning_rate + rise * step / recipe.warmup_steps
    decay_steps = max(1, recipe.steps - 1 - recipe.warmup_steps)
    progress = min(1.0, (step - recipe.warmup_steps) / decay_steps)
    height = recipe.learning_rate - recipe.final_learning_rate
    return recipe.final_learning_rate + height * 0.5 * (1 + math.cos(math.pi * progress))
