"""Models for tests of generation: one that says random things, and one that says what the test wants."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4


@pytest.fixture(scope="session")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    """Random weights: every picture and every question gets another answer, of another length."""
    from minigpt4 import MiniGPT4

    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")


@pytest.fixture
def says(tiny_vision: Path, tiny_llm: Path) -> Callable[[Sequence[str]], MiniGPT4]:
    """Makes a model that answers every question with the given tokens, each different from all others.

    Its layers pass on what they get, and its head gives each token the next one as its successor.
    """
    import torch

    from minigpt4 import MiniGPT4

    def make(pieces: Sequence[str]) -> MiniGPT4:
        model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")
        tokenizer = model.tokenizer
        start = tokenizer("Assistant: ", add_special_tokens=False)["input_ids"][-1]
        whole = [piece for piece in pieces if len(tokenizer(piece, add_special_tokens=False)["input_ids"]) > 1]
        tokenizer.add_tokens(whole)
        chain = [start, *(tokenizer(piece, add_special_tokens=False)["input_ids"][0] for piece in pieces)]
        assert len(set(chain)) == len(chain), "no token may have two successors"
        llm = model.blip2.language_model
        llm.resize_token_embeddings(len(tokenizer))
        generator = torch.Generator().manual_seed(0)
        vectors = torch.nn.functional.normalize(
            torch.randn(len(tokenizer), llm.config.hidden_size, generator=generator)
        )
        with torch.no_grad():
            for layer in llm.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            llm.get_input_embeddings().weight.copy_(vectors)
            head = llm.get_output_embeddings().weight.zero_()
            for token, successor in itertools.pairwise(chain):
                head[successor] = vectors[token]
        return model

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (i * 30, 100, 200 - i * 20)) for i in range(8)]
