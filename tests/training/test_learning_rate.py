from __future__ import annotations

import pytest

from minigpt4.training.loop import learning_rate
from minigpt4.training.recipe import Recipe

PAPER = Recipe.load(
    "pocket-stage1",
    ["steps=20000", "warmup_steps=5000", "warmup_learning_rate=1e-6", "learning_rate=1e-4", "final_learning_rate=8e-5"],
)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1e-6), (2500, 5.05e-5), (5000, 1e-4), (12_500, 9e-5), (19_999, 8e-5)]
)
def test_the_papers_schedule(step: int, expected: float) -> None:
    assert learning_rate(step, PAPER) == pytest.approx(expected, rel=1e-4)


def test_it_rises_then_falls() -> None:
    rates = [learning_rate(step, PAPER) for step in range(0, 20_000, 100)]
    assert rates[:51] == sorted(rates[:51])
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_without_warm_up_and_in_a_single_step() -> None:
    recipe = Recipe.load("pocket-stage1", ["steps=1", "warmup_steps=0", "learning_rate=0.5"])
    assert learning_rate(0, recipe) == 0.5
