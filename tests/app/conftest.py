"""Toy models behind real servers on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from speaking import make_it_say

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4


@pytest.fixture(scope="session")
def varied(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    """Random weights: every picture and every question gets another answer, of another length."""
    from minigpt4 import MiniGPT4

    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def endless(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> MiniGPT4:
    """Answers "Yes" and then falls silent without an end, up to the token limit, which may be far away."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("endless")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    llm = LlamaForCausalLM.from_pretrained(tiny_llm, max_position_embeddings=100_000)
    make_it_say(llm, tokenizer, ["Y", "e", "s"])
    llm.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return MiniGPT4.assemble(tiny_vision, directory, template="pocket", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (i * 30, 100, 200 - i * 20)) for i in range(8)]
