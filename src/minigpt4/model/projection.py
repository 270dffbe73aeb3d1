"""How the projection starts its training: among word embeddings."""

from typing import Any

import torch

from minigpt4.model.aligned import AlignedModel


def start_among_words(model: AlignedModel) -> None:
    """Start image tokens at the LLM's mean word embedding, in the last bias: the pocket LLM finds positions by it."""
    projection: Any = model.blip2.language_projection
    last: Any = projection[-1] if isinstance(projection, torch.nn.Sequential) else projection
    with torch.no_grad():
        last.bias.copy_(model.blip2.language_model.get_input_embeddings().weight.mean(0, dtype=torch.float32))
