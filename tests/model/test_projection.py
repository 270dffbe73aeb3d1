"""Where the projection starts: among words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.lora import Trained
from minigpt4.model.projection import start_among_words


@pytest.mark.parametrize("layers", [1, 3])
def test_image_tokens_start_around_the_mean_word(tiny_vision: Path, tiny_llm: Path, layers: int) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="vicuna_v0", trained=Trained(projection_layers=layers))
    words = model.blip2.language_model.get_input_embeddings().weight
    with torch.no_grad():
        words += 3.0  # something that all have in common
    start_among_words(model)
    nothing = torch.zeros(1, 4, 24)
    last = model.blip2.language_projection if layers == 1 else model.blip2.language_projection[-1]
    torch.testing.assert_close(last.bias, words.mean(0))
    if layers == 1:
        torch.testing.assert_close(model.project(nothing)[0, 0], words.mean(0))
