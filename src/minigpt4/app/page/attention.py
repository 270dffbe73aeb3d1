"""Hints at what a word rests on: how image tokens influenced it, and their attention to the image's patches."""

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.generation.stopping import decode_text
from minigpt4.images import open_image, to_pixels
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.encoders import placeless


def words(tokenizer: Any, tokens: Sequence[int]) -> list[tuple[str, int, int]]:
    """The words that token ids spell, each with the slice of them that holds it: (word, start, end)."""
    texts = [decode_text(tokenizer, tokens[: i + 1]) for i in range(len(tokens))]
    found = []
    for match in re.finditer(r"\S+", texts[-1] if texts else ""):
        start = next(i for i, text in enumerate(texts) if len(text) > match.start())
        whole = (i for i, text in enumerate(texts) if len(text.rstrip("\ufffd")) >= match.end())  # no half character
        found.append((match.group(), start, next(whole, len(tokens) - 1) + 1))
    return found


def token_influence(model: AlignedModel, ids: Sequence[int], features: Tensor, start: int, end: int) -> Tensor:
    """How much each image token influences the choice of the tokens `ids[start:end]`: (images, q), sum 1.

    The length of the gradient of their log-probability at each image token: attention would depend on the layer
    (docs/notes/pocket.md). Raises UserError if there is no image before them.
    """
    llm = model.blip2.language_model
    input_ids = torch.tensor([list(ids[:end])], device=model.device)
    places = (input_ids[0, :start] == model.image_token_id).nonzero().flatten()
    if not len(places):
        raise UserError("no image was shown before this word, so there is nothing that it could rest on")
    with torch.enable_grad():
        embeddings = model.embed(input_ids, features.to(model.device)).detach().requires_grad_()
        # A token is chosen from what the LLM makes of the one before it.
        logits = llm(inputs_embeds=embeddings[:, : end - 1], use_cache=False, logits_to_keep=end - start).logits[0]
        chosen = logits.float().log_softmax(-1).gather(1, input_ids[0, start:end, None]).sum()
        [gradient] = torch.autograd.grad(chosen, embeddings)
    weights = gradient[0, places].float().norm(dim=-1).view(-1, model.num_query_tokens)
    return (weights / weights.sum()).cpu()


@torch.no_grad()
def patch_attention(model: AlignedModel, images: Sequence[str | bytes | Image.Image]) -> Tensor:
    """Where image tokens come from, (n, q, rows, columns): by the Q-Former's last cross-attention, or own patches."""
    pixels = torch.from_numpy(to_pixels(model.image_processor, [open_image(image) for image in images]))
    count = model.num_query_tokens
    if not model.has_qformer:
        own = torch.eye(count).repeat_interleave(model.group, dim=1) / model.group
        return own.unflatten(1, (math.isqrt(own.shape[1]), -1)).expand(len(pixels), -1, -1, -1)
    patches = model.run_encoder(pixels)
    queries = model.blip2.query_tokens.expand(len(patches), -1, -1)
    # A twin on the same weights, whose attention is not fused, so that it gives its weights.
    former = model.blip2.qformer
    twin = copy.deepcopy(former, {id(tensor): tensor for tensor in (*former.parameters(), *former.buffers())})
    twin.set_attn_implementation("eager")
    seen = twin(query_embeds=queries, encoder_hidden_states=patches, output_attentions=True)
    weights = seen.cross_attentions[-1].float().mean(1)[:, :, placeless(patches.shape[1]) :]
    weights = weights / weights.sum(-1, keepdim=True)
    return weights.unflatten(2, (math.isqrt(weights.shape[2]), -1)).cpu()
