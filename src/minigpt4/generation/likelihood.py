"""Log-likelihoods: how likely a model finds given texts as answers to a prompt with an image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minigpt4.model.aligned import AlignedModel


@torch.inference_mode()
def token_likelihoods(
    model: AlignedModel,
    prompts: Sequence[list[int]],
    texts: Sequence[list[int]],
    features: Sequence[Tensor],
    batch_size: int = 32,
) -> list[Tensor]:
    """Log-likelihoods (tokens,), in nats, of texts after prompts (ids), with an image's features (q, d_qformer)."""
    limit = getattr(model.blip2.language_model.config, "max_position_embeddings", None)
    found = [torch.empty(0)] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda i: len(prompts[i]) + len(texts[i]))
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        rows = [torch.tensor([*prompts[i], *texts[i]][:limit]) for i in batch]
        # Padding on the right of causal attention changes nothing before it.
        shown = torch.stack([features[i] for i in batch]).to(model.device)
        hidden = model.hidden_states(pad_sequence(rows, batch_first=True), shown)
        for i, row, states in zip(batch, rows, hidden, strict=True):
            first = len(prompts[i])
            logits = model.logits(states[first - 1 : len(row) - 1]).float()
            found[i] = -F.cross_entropy(logits, row[first:].to(logits.device), reduction="none").cpu()
    return found
