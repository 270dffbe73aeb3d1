"""Rows of different lengths laid end to end, so that a frozen LLM spends nothing on padding.

Only attention has to know where one row ends: it is registered with transformers under the name `PACKED`, the rest of
the LLM sees one long row. Knows nothing about losses or training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

PACKED = "minigpt4_packed"

#: Rows are shorter than this, so a sliding window of so many tokens is the same as none.
LONGEST = 2048


class NotPackableError(Exception):
    """The LLM's family computes attention in another way than packed rows need; its rows are padded instead."""


#: What running an LLM on packed rows raises if its family is not made for it: ours, or whatever its code stumbles over.
NOT_PACKED = (NotPackableError, NotImplementedError, TypeError, AttributeError, IndexError)

#: Parts of a layer that work on each token by itself, by their names in most families.
_ON_EACH_TOKEN = ("q_proj", "o_proj", "dense", "mlp")

#: What the attention of some families is told that the one below does not do.
_FOREIGN = ("softcap", "s_aux", "position_bias")


@dataclass(frozen=True)
class Packing:
    """How rows of so many tokens lie end to end.

    `places` (t,) says where each token lies when the rows stand below each other, each as long as the longest.
    """

    rows: int
    longest: int
    places: Tensor

    @classmethod
    def of(cls, is_real: Tensor) -> Packing:
        """From which places (b, t) hold a token; the others, padding, stand on the right."""
        rows, longest = is_real.shape
        return cls(rows, longest, is_real.flatten().nonzero()[:, 0])

    @cached_property
    def positions(self) -> Tensor:
        """(1, t): the place of each token in its own row."""
        return (self.places % self.longest)[None]

    def pack(self, padded: Tensor) -> Tensor:
        """(..., b * longest, d) -> (..., t, d)."""
        return padded.index_select(-2, self.places)

    def unpack(self, packed: Tensor) -> Tensor:
        """(..., t, d) -> (..., b * longest, d), zeros where there is padding."""
        shape = (*packed.shape[:-2], self.rows * self.longest, packed.shape[-1])
        return packed.new_zeros(shape).index_copy(-2, self.places, packed)


class Packer:
    """Runs an LLM on rows laid end to end, and its last layer only for the tokens that are asked for.

    In the last layer nothing but keys and values is needed of other tokens: hooks take those out before what works on
    each token by itself, and put zeros in their places behind it. Generation, which does not come through here, sees
    nothing of that.
    """

    def __init__(self, llm: Any) -> None:
        if not getattr(llm.base_model, "_supports_attention_backend", False):
            raise NotPackableError("its attention is not left to the library")
        self._llm = llm
        self._asked: Tensor | None = None
        self._tokens = 0
        parts = llm.base_model.layers[-1].named_modules()
        #: Parts of the last layer that run for the tokens that are asked for only.
        self.at_asked = [module for name, module in parts if name.rpartition(".")[2] in _ON_EACH_TOKEN]
        for module in self.at_asked:
            module.register_forward_pre_hook(self._take)
            module.register_forward_hook(self._put_back)

    @classmethod
    @torch.no_grad()
    def of(cls, llm: Any) -> Packer | None:
        """None for an LLM that does not compute the same this way, which is tried on two short rows.

        Where attention is not left to the library it does not, or where places do not count by `position_ids`.
        """
        embeddings = llm.get_input_embeddings().weight
        rows = embeddings[torch.arange(10, device=embeddings.device).view(2, 5) % len(embeddings)]
        is_real = torch.tensor([[True] * 3 + [False] * 2, [True] * 5], device=rows.device)
        asked = torch.tensor([2, 5, 7], device=rows.device)
        expected = llm.base_model(inputs_embeds=rows, use_cache=False).last_hidden_state[is_real][asked].float()
        try:
            packer = cls(llm)
            found = packer.hidden_states(rows[is_real], Packing.of(is_real), asked).float()
        except NOT_PACKED:
            return None
        allowed = 1e-3 if rows.dtype is torch.float32 else 0.1
        return packer if (found - expected).norm() <= allowed * expected.norm() else None

    def hidden_states(self, embeddings: Tensor, packing: Packing, asked: Tensor) -> Tensor:
        """Packed input embeddings (t, d) -> the LLM's last hidden states of the tokens `asked` for (n,), (n, d)."""
        self._asked, self._tokens = asked, len(embeddings)
        try:
            with _attention(self._llm.config, PACKED):
                hidden = self._llm.base_model(
                    inputs_embeds=embeddings[None], position_ids=packing.positions, use_cache=False, packing=packing
                ).last_hidden_state
        finally:
            self._asked = None
        return hidden[0].index_select(0, asked)

    def _take(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if self._asked is None else (inputs[0].index_select(1, self._asked), *inputs[1:])

    def _put_back(self, module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if self._asked is None:
            return None
        return output.new_zeros(1, self._tokens, output.shape[-1]).index_copy(1, self._asked, output)


@contextmanager
def _attention(config: Any, name: str) -> Iterator[None]:
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row: query (1, h, t, d), key and value (1, h_kv, t, d) -> (1, t, h, d).

    Raises NotPackableError for a family whose attention is of another kind, or that does not hand on `packing`.
    """
    windowed = sliding_window is not None and sliding_window < LONGEST
    if packing is None or windowed or any(others.get(name) is not None for name in _FOREIGN):
        raise NotPackableError("packed rows are for plain causal attention")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":
        out = _CausalAttention.apply(query[0], key[0], value[0], packing, scaling)
    else:
        q, k, v = (
            packing.unpack(x[0]).unflatten(-2, (packing.rows, packing.longest)).transpose(0, 1)
            for x in (query, key, value)
        )
        grouped = query.shape[1] != key.shape[1]
        full = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        out = packing.pack(full.transpose(0, 1).flatten(1, 2))
    return out.transpose(0, 1)[None], None


class _CausalAttention(torch.autograd.Function):
    """Attention of short rows on a CPU, where PyTorch's fused kernels are slow, backwards above all.

    Probabilities are kept for the backward pass; softmax reads and writes the compute dtype and works in float32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
        groups = query.shape[0] // key.shape[0]
        q, k, v = (_rows(packing, x, n) for x, n in ((query, 1), (key, groups), (value, groups)))
        future = q.new_full((packing.longest, packing.longest), float("-inf")).triu(1)
        shares = torch.baddbmm(future, q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        ctx.save_for_backward(q, k, v, shares)
        ctx.packing, ctx.scaling, ctx.groups = packing, scaling, groups
        return packing.pack((shares @ v).view(query.shape[0], -1, v.shape[-1]))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, shares = ctx.saved_tensors
        packing, groups = ctx.packing, ctx.groups
        out = _rows(packing, gradient, 1)
        scores = torch._softmax_backward_data(out @ v.transpose(1, 2), shares, -1, shares.dtype).mul_(ctx.scaling)
        found = scores @ k, scores.transpose(1, 2) @ q, shares.transpose(1, 2) @ out
        packed = [packing.pack(x.view(gradient.shape[0], -1, x.shape[-1])) for x in found]
        if groups > 1:
            packed[1:] = [x.unflatten(0, (-1, groups)).sum(1) for x in packed[1:]]
        return *packed, None, None


def _rows(packing: Packing, packed: Tensor, groups: int) -> Tensor:
    """(h, t, d) -> (h * groups * rows, longest, d)."""
    padded = packing.unpack(packed)
    if groups > 1:
        padded = padded.repeat_interleave(groups, 0)
    return padded.view(-1, packing.longest, padded.shape[-1])


AttentionInterface.register(PACKED, packed_attention)
