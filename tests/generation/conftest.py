"""Models for tests of generation: one that says random things, and one that says what the test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from speaking import make_it_say

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4


@pytest.fixture(scope="session")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    """Random weights: every picture and every question gets another answer, of another length."""
    from minigpt4 import MiniGPT4

    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")


@pytest.fixture
def says(tiny_vision: Path, tiny_llm: Path) -> Callable[[Sequence[str]], MiniGPT4]:
    """Makes a model that answers every question with the given tokens, each different from all others."""
    from minigpt4 import MiniGPT4

    def make(pieces: Sequence[str]) -> MiniGPT4:
        model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")
        make_it_say(model.blip2.language_model, model.tokenizer, pieces)
        return model

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (i * 30, 100, 200 - i * 20)) for i in range(8)]
