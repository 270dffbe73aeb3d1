"""Two layers in front of a finished pocket LLM that look words up, by how they are built, before they are trained.

"Where is the kite?" asks the LLM to find the kite in its context and to say what stands around it. A small Llama that
learns from text alone arrives at this late or not at all: its first layer drowns the words' embeddings (norm 1.3, its
output 135), and without them nothing later can tell that two tokens are the same word. `add_lookup_layers` puts two
layers before that first one. Heads of the first gather what stood 1, 2, 3 and 4 tokens earlier; heads of the second let
a word find where it stood before, and the tokens that came 1, 2 and 3 after it, and add their embeddings to its own.
Training then has to learn only how to read this; all weights stay ordinary weights of a `LlamaForCausalLM`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

#: How far back the four heads of the first layer look, in tokens.
OFFSETS = (1, 2, 3, 4)
#: Length of the constant part that every embedding gets, in embeddings' mean lengths. Positions are found by it.
CONSTANT = 0.8
#: Pairs of rotary dimensions by which positions are told apart: the fast half. The slow half compares words.
FAST = 16


def add_lookup_layers(model: LlamaForCausalLM, words: Sequence[int]) -> LlamaForCausalLM:
    """A copy of `model` with two more layers at the start; its other weights are the same but for the constant part.

    Args:
        model: A Llama with four heads of 64 dimensions, float32, its embeddings tied to its head.
        words: Ids of the words that are to be looked up; what is copied keeps the 64 main directions of these.
    """
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 2
    grown = LlamaForCausalLM(config)
    weights = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(int(parts[2]) + 2)
        weights[".".join(parts)] = tensor
    grown.load_state_dict(weights, strict=False)
    grown.tie_weights()
    with torch.no_grad():
        constant = _add_constant(grown)
        for layer in grown.model.layers[:2]:
            for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
                matrix.weight.normal_(std=0.04)
            layer.mlp.down_proj.weight.zero_()
            for matrix in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                matrix.weight.zero_()
        _start(grown, constant, words)
    return grown


def _add_constant(model: LlamaForCausalLM) -> Tensor:
    """Gives every embedding the same component along the direction that they use least; returns what reads it as 1.

    Logits change by one constant for all tokens, which softmax does not see. The former first layer is told to
    overlook it.
    """
    embeddings = model.model.embed_tokens.weight
    length = embeddings.norm(dim=1).mean()
    direction = torch.linalg.svd(embeddings, full_matrices=False).Vh[-1]
    embeddings += CONSTANT * length * direction - (embeddings @ direction)[:, None] * direction
    former = model.model.layers[2]
    norm = former.input_layernorm.weight
    norm *= embeddings.norm(dim=1).mean() / length  # the constant part makes all else smaller, once normalised
    for matrix in (former.self_attn.q_proj, former.self_attn.k_proj, former.self_attn.v_proj):
        matrix.weight -= (matrix.weight @ (norm * direction))[:, None] * (direction / norm)
    return direction / (_normalised(embeddings) @ direction).mean()


def _normalised(rows: Tensor) -> Tensor:
    """As an RMSNorm with weight 1 hands them to a layer."""
    return rows / rows.square().mean(1, keepdim=True).sqrt()


def _start(model: LlamaForCausalLM, constant: Tensor, words: Sequence[int]) -> None:
    gather, match = (layer.self_attn for layer in model.model.layers[:2])
    width, size = model.config.hidden_size, model.config.head_dim
    speeds = model.config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))
    slow = [*range(FAST, size // 2), *range(size // 2 + FAST, size)]
    free = torch.eye(width) - torch.outer(constant, constant) / constant.square().sum()
    rows = _normalised(model.model.embed_tokens.weight)[list(words)] @ free
    meaning = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:size]  # (64, width)
    marks = [_orthonormal(size, width) for _ in OFFSETS]  # where the word so many tokens earlier is written
    gather.o_proj.weight.zero_()
    match.o_proj.weight.zero_()
    for number, offset in enumerate(OFFSETS):
        at = size * number
        # q and k are the same for every token, turned against each other so that they agree `offset` tokens apart.
        for pair in range(FAST):
            gather.q_proj.weight[at + pair] = 8 * constant
            gather.k_proj.weight[at + pair] = 8 * math.cos(speeds[pair] * offset) * constant
            gather.k_proj.weight[at + pair + size // 2] = 8 * math.sin(speeds[pair] * offset) * constant
        gather.v_proj.weight[at : at + size] = meaning
        gather.o_proj.weight[:, at : at + size] = 0.1 * marks[number].T
    for number in range(len(OFFSETS)):
        at = size * number
        if number == 0:  # where this very word stood, and what stood before it there
            compare = 1.3 * _orthonormal(len(slow), size) @ meaning
            queries, keys, values, share = compare, compare, marks[0] + 0.7 * marks[1], 0.2
        else:  # what stood `number` tokens after this word
            mix = 3 * _orthonormal(len(slow), size)
            queries, keys, values, share = mix @ meaning, mix @ marks[number - 1], meaning, 0.08
        match.q_proj.weight[[at + d for d in slow]] = queries
        match.k_proj.weight[[at + d for d in slow]] = keys
        for pair in range(6):  # not the word itself: it would always match best
            match.q_proj.weight[at + pair] = -3 * constant
            match.k_proj.weight[at + pair] = 3 * constant
        match.v_proj.weight[at : at + size] = values
        match.o_proj.weight[:, at : at + size] = share * meaning.T


def _orthonormal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))
