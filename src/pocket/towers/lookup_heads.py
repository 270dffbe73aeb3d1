"""Two layers in front of a finished pocket LLM that look words up, by how they are built, before they are trained.

"Where is the kite?" asks the LLM to find the kite in its context and to say what stands around it. A small Llama that
learns from text alone arrives at this late or not at all: its first layer drowns the words' embeddings (norm 1.3, its
output 135), and without them nothing later can tell that two tokens are the same word. `add_lookup_layers` puts two
layers before that first one. Heads of the first write down what stands at a token itself and 1, 2 and 4 before it;
heads of the second let a word find where it stood before, and write down what stood around it there: 2 tokens before
to 4 after.

All of this is written along directions that the embeddings hardly use, and the layers that follow overlook those: the
LLM still says what it said before. Then it is made louder, which costs the LLM its balance for some dozens of batches,
as later layers have to learn to read what the former first layer drowned. All weights stay ordinary weights of a
`LlamaForCausalLM`.
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
OFFSETS = (0, 1, 2, 4)
#: Of each head of the second layer: where it looks, in tokens after the word, and what it takes there, of what the
#: first layer has written down, by offset.
FINDS = ((1, (0, 2)), (2, (0, 4)), (4, (0, 1)))
#: Numbers by which a word is written down: enough to tell the pocket world's words apart.
CODE = 14
#: Directions that are freed: one for the constant part, and one for each number that is written.
FREED = 1 + CODE * (len(OFFSETS) + sum(len(taken) for _, taken in FINDS))
#: Length of the constant part that every embedding gets, in embeddings' mean lengths. Positions are found by it; the
#: longer it is, the less it matters to them that some words' embeddings are longer than others.
CONSTANT = 2.0
#: Length of a code, in embeddings' mean lengths.
WRITTEN = 1.0
#: Pairs of rotary dimensions by which neighbours are told apart: the fastest. Slower ones add to every place alike.
FAST = 6
#: The slower half of the pairs compares words wherever they stand.
SLOW = 16
#: How sharply the first layer picks a place, and the second a word.
SHARP, ALIKE = 8.8, 4.0
#: How many times as strong what stands before the former first layer's MLP is made.
LOUDER = 10.0
#: Of how many main directions of the words codes are made, and how little the lesser ones are raised (so is noise).
KEPT, SMOOTH = 32, 0.15


def add_lookup_layers(model: LlamaForCausalLM, words: Sequence[int], text: Sequence[int]) -> LlamaForCausalLM:
    """A copy of `model` with two more layers at the start, and with a head of its own where it shared the embeddings.

    Args:
        model: A Llama with four heads of 64 dimensions, float32, its embeddings tied to its head.
        words: Ids of the words that are to be looked up.
        text: Ids of what the model usually reads; the directions that these use most are left as they are.
    """
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(model.config)
    config.num_hidden_layers += 2
    config.tie_word_embeddings = False
    grown = LlamaForCausalLM(config)
    weights = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(int(parts[2]) + 2)
        weights[".".join(parts)] = tensor
    grown.load_state_dict(weights, strict=False)
    grown.lm_head.weight = nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    with torch.no_grad():
        former = grown.model.layers[2]
        attention, mlp = former.self_attn, former.mlp
        readers = {
            former.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            former.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        before = [_length(grown, norm, text, first=2) for norm in readers]
        freed = _free(grown, text)
        _build(grown, freed, words)
        for (norm, matrices), was in zip(readers.items(), before, strict=True):
            for matrix in matrices:
                seen = matrix.weight * norm.weight
                matrix.weight.copy_((seen - seen @ freed @ freed.T) / norm.weight)
            # What is new makes all else smaller, once normalised.
            norm.weight.mul_(_length(grown, norm, text, first=0) / was)
        # All that the former first layer's MLP adds to, so that what it adds does not drown it for later layers.
        louder = (grown.model.embed_tokens, *(layer.self_attn.o_proj for layer in grown.model.layers[:3]))
        for module in louder:
            module.weight.mul_(LOUDER)
    return grown


def _length(model: LlamaForCausalLM, norm: nn.Module, text: Sequence[int], first: int) -> Tensor:
    """Mean length of what `norm` is handed when the layers from `first` to 2 read this text."""
    lengths: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].norm(dim=-1).mean()))
    ids = torch.tensor([[model.config.bos_token_id, *text]])
    states = model.model.embed_tokens(ids)
    rotary = model.model.rotary_emb(states, torch.arange(ids.shape[1])[None])
    mask = torch.full((ids.shape[1], ids.shape[1]), float("-inf")).triu(1)[None, None]
    for layer in model.model.layers[first:3]:
        states = layer(states, attention_mask=mask, position_embeddings=rotary)
    hook.remove()
    return lengths[0]


def _free(model: LlamaForCausalLM, text: Sequence[int]) -> Tensor:
    """Takes the directions that the embeddings use least out of them; returns these, (width, FREED), orthonormal.

    Every embedding gets the same component along the first. Logits change by one constant for all tokens, which
    softmax does not see.
    """
    embeddings = model.model.embed_tokens.weight
    length = embeddings[list(text)].norm(dim=1).mean()
    freed = torch.linalg.svd(embeddings[list(text)], full_matrices=False).Vh[-FREED:].T
    embeddings -= embeddings @ freed @ freed.T
    embeddings *= length / embeddings.norm(dim=1, keepdim=True).clamp_min(0.1 * length)
    embeddings += CONSTANT * length * freed[:, 0]
    return freed


def _normalised(rows: Tensor) -> Tensor:
    """As an RMSNorm with weight 1 hands them to a layer."""
    return rows / rows.square().mean(1, keepdim=True).sqrt()


def _build(model: LlamaForCausalLM, freed: Tensor, words: Sequence[int]) -> None:
    for layer in model.model.layers[:2]:
        for matrix in (layer.mlp.gate_proj, layer.mlp.up_proj):
            matrix.weight.normal_(std=0.04)
        layer.mlp.down_proj.weight.zero_()
        attention = layer.self_attn
        for matrix in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            matrix.weight.zero_()
    gather, match = (layer.self_attn for layer in model.model.layers[:2])
    size = model.config.head_dim
    speeds = model.config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))
    slow = [*range(SLOW, size // 2), *range(size // 2 + SLOW, size)]
    embeddings = model.model.embed_tokens.weight
    rows = _normalised(embeddings)[list(words)]
    constant = freed[:, 0] / (rows @ freed[:, 0]).mean()  # reads the constant part as 1
    codes = _codes(rows - (rows @ freed) @ freed.T)
    written = WRITTEN * (embeddings[list(words)] - embeddings[list(words)] @ freed @ freed.T).norm(dim=1).mean()
    places = iter(freed[:, 1:].split(CODE, dim=1))
    marks = {offset: next(places) for offset in OFFSETS}  # where codes are written, (width, CODE) each
    for number, offset in enumerate(OFFSETS):
        at = size * number
        # q and k are the same for every token, turned against each other so that they agree `offset` tokens apart.
        for pair in range(FAST):
            gather.q_proj.weight[at + pair] = SHARP * constant
            gather.k_proj.weight[at + pair] = SHARP * math.cos(speeds[pair] * offset) * constant
            gather.k_proj.weight[at + pair + size // 2] = SHARP * math.sin(speeds[pair] * offset) * constant
        gather.v_proj.weight[at : at + CODE] = codes
        gather.o_proj.weight[:, at : at + CODE] = written * marks[offset]
    # After the first layer all that is written has this length, and a norm makes it that of a row of ones.
    total = (embeddings[list(words)].square().sum(1).mean() + len(OFFSETS) * written**2).sqrt()
    unit = total / written / math.sqrt(model.config.hidden_size)
    for number, (offset, taken) in enumerate(FINDS):
        at = size * number
        mix = ALIKE * size**0.25 * nn.init.orthogonal_(torch.empty(len(slow), CODE))
        rows_of_head = [at + dimension for dimension in slow]
        match.q_proj.weight[rows_of_head] = unit * mix @ marks[0].T
        match.k_proj.weight[rows_of_head] = unit * mix @ marks[offset].T
        for place, source in enumerate(taken):
            values = slice(at + CODE * place, at + CODE * (place + 1))
            match.v_proj.weight[values] = unit * marks[source].T
            match.o_proj.weight[:, values] = written * next(places)


def _codes(rows: Tensor) -> Tensor:
    """A (CODE, width) matrix that turns words, as normalised rows, into numbers of mean length 1 that differ."""
    centred = rows - rows.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    even = directions[:KEPT] / (spread[:KEPT, None] + SMOOTH * spread[0])
    codes = nn.init.orthogonal_(torch.empty(CODE, KEPT)) @ even
    return codes / (centred @ codes.T).norm(dim=1).mean()
