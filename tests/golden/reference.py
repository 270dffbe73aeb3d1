"""What the paper's model computes, in plain torch from the tensors of the released files: no transformers, no minigpt4.

The names of tensors are those of the released checkpoints (and of Llama's in Hugging Face's layout), for this is what
defines them. Everything is float32 and one sample at a time; slow, and short enough to be read.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Softmax attention: (t, d), (s, d), (s, d) -> (t, d)."""
    split = [x.reshape(len(x), heads, -1).transpose(0, 1) for x in (query, key, value)]
    scores = split[0] @ split[1].transpose(1, 2) / math.sqrt(split[0].shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return (scores.softmax(-1) @ split[2]).transpose(0, 1).flatten(1)


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def norm(weights: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def vision_tower(weights: Weights, blocks: int, heads: int, pixels: Tensor) -> Tensor:
    """One picture (3, h, w) -> (1 + patches, d) after the first `blocks` blocks."""
    patch = weights["patch_embed.proj.weight"]
    grid = F.conv2d(pixels[None], patch, weights["patch_embed.proj.bias"], stride=patch.shape[-1])
    x = torch.cat([weights["cls_token"][0], grid[0].flatten(1).T]) + weights["pos_embed"][0]
    for i in range(blocks):
        name = f"blocks.{i}"
        query_bias, value_bias = weights[f"{name}.attn.q_bias"], weights[f"{name}.attn.v_bias"]
        bias = torch.cat([query_bias, torch.zeros_like(query_bias), value_bias])
        y = F.linear(norm(weights, f"{name}.norm1", x, 1e-6), weights[f"{name}.attn.qkv.weight"], bias)
        x = x + linear(weights, f"{name}.attn.proj", attend(*y.chunk(3, dim=-1), heads))
        y = linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.norm2", x, 1e-6))
        x = x + linear(weights, f"{name}.mlp.fc2", F.gelu(y))
    return x


def qformer(weights: Weights, layers: int, heads: int, patches: Tensor) -> Tensor:
    """Patches (p, d_vision) -> queries (q, d)."""
    x = norm(weights, "Qformer.bert.embeddings.LayerNorm", weights["query_tokens"][0], 1e-12)
    for i in range(layers):
        name = f"Qformer.bert.encoder.layer.{i}"
        for kind, read in (("attention", x), ("crossattention", patches)):
            if f"{name}.{kind}.self.query.weight" in weights:
                read = x if kind == "attention" else read
                query = linear(weights, f"{name}.{kind}.self.query", x)
                key, value = (linear(weights, f"{name}.{kind}.self.{part}", read) for part in ("key", "value"))
                y = linear(weights, f"{name}.{kind}.output.dense", attend(query, key, value, heads))
                x = norm(weights, f"{name}.{kind}.output.LayerNorm", x + y, 1e-12)
        y = F.gelu(linear(weights, f"{name}.intermediate_query.dense", x))
        y = linear(weights, f"{name}.output_query.dense", y)
        x = norm(weights, f"{name}.output_query.LayerNorm", x + y, 1e-12)
    return x


def four_patches_each(patches: Tensor) -> Tensor:
    """The variant without a Q-Former: (1 + p, d) -> (p / 4, 4 d)."""
    return torch.stack([torch.cat(list(patches[i : i + 4])) for i in range(1, len(patches), 4)])


def rms_norm(weight: Tensor, x: Tensor, eps: float) -> Tensor:
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, heads: int) -> Tensor:
    """Llama's rotary position embedding of (t, d), positions from 0."""
    x = x.reshape(len(x), heads, -1)
    half = x.shape[-1] // 2
    frequency = 10000.0 ** (-torch.arange(half) / half)
    angle = torch.arange(len(x))[:, None] * frequency
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).flatten(1)


def llama(weights: Weights, layers: int, heads: int, x: Tensor, eps: float = 1e-6) -> Tensor:
    """Input embeddings (t, d) -> logits (t, vocabulary)."""
    for i in range(layers):
        name = f"model.layers.{i}"
        y = rms_norm(weights[f"{name}.input_layernorm.weight"], x, eps)
        query, key, value = (linear(weights, f"{name}.self_attn.{part}_proj", y) for part in "qkv")
        y = attend(rotate(query, heads), rotate(key, heads), value, heads, causal=True)
        x = x + linear(weights, f"{name}.self_attn.o_proj", y)
        y = rms_norm(weights[f"{name}.post_attention_layernorm.weight"], x, eps)
        y = F.silu(linear(weights, f"{name}.mlp.gate_proj", y)) * linear(weights, f"{name}.mlp.up_proj", y)
        x = x + linear(weights, f"{name}.mlp.down_proj", y)
    return linear(weights, "lm_head", rms_norm(weights["model.norm.weight"], x, eps))


def tokens(sentencepiece: Any, text: str) -> list[int]:
    """Token ids of one piece of a prompt, `<s>` and `</s>` in it being tokens: sentencepiece's own for the rest."""
    special = {"<s>": sentencepiece.bos_id(), "</s>": sentencepiece.eos_id()}
    ids: list[int] = []
    for stretch in re.split("(</?s>)", text):
        ids += [special[stretch]] if stretch in special else sentencepiece.encode(stretch)
    return ids


class Model:
    """All of it: `project(pixels)`, then what follows from a prompt's pieces."""

    def __init__(self, vision: Weights, others: Weights, projection: Weights, llm: Weights, sizes: dict[str, int]):
        self.vision, self.others, self.projection, self.llm, self.sizes = vision, others, projection, llm, sizes

    def project(self, pixels: Tensor) -> Tensor:
        """(3, h, w) -> (places, d_llm); without a Q-Former if there are no query tokens."""
        patches = vision_tower(self.vision, self.sizes["blocks"], self.sizes["vision_heads"], pixels)
        patches = norm(self.others, "ln_vision", patches, 1e-6)
        if "query_tokens" in self.others:
            features = qformer(self.others, self.sizes["qformer_layers"], self.sizes["qformer_heads"], patches)
        else:
            features = four_patches_each(patches)
        return linear(self.projection, "llama_proj", features)

    def context(self, pieces: list[list[int]], image: Tensor) -> Tensor:
        """Embeddings of a prompt with one image between two pieces."""
        words = self.llm["model.embed_tokens.weight"]
        return torch.cat([words[pieces[0]], image, words[pieces[1]]])

    def logits(self, context: Tensor, answer: list[int]) -> Tensor:
        """(len(answer) + 1, vocabulary): what comes after the context, and after each token of the answer."""
        embeddings = torch.cat([context, self.llm["model.embed_tokens.weight"][answer]])
        all_logits = llama(self.llm, self.sizes["llm_layers"], self.sizes["llm_heads"], embeddings)
        return all_logits[len(context) - 1 :]

    def losses(self, context: Tensor, answer: list[int]) -> Tensor:
        """Cross-entropy of each token of the answer."""
        return F.cross_entropy(self.logits(context, answer)[:-1], torch.tensor(answer), reduction="none")

    def greedy(self, context: Tensor, count: int) -> list[int]:
        ids: list[int] = []
        for _ in range(count):
            ids.append(int(self.logits(context, ids)[-1].argmax()))
        return ids

    def beams(self, context: Tensor, count: int, width: int, ends: set[int]) -> list[int]:
        """Beam search; raises ValueError if one of the `ends` is among the candidates, for then rules differ."""
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for _ in range(count):
            candidates = []
            for score, ids in beams:
                best = self.logits(context, ids)[-1].log_softmax(-1).topk(2 * width)
                scored = zip(best.values.tolist(), best.indices.tolist(), strict=True)
                if ends & set(best.indices.tolist()):
                    raise ValueError("an end is among the candidates: take another seed")
                candidates += [(score + gain, [*ids, token]) for gain, token in scored]
            beams = sorted(candidates, reverse=True)[:width]
        return beams[0][1]
