"""Sequence packing: rows of different lengths end to end, so that no padding is computed; `PACKED` tells attention."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

PACKED = "minigpt4_packed"
LONGEST = 2048  # tokens of a row: a sliding window of at least so many makes no difference
#: Modules of a layer that compute each token by itself, by their names in most families.
_ON_EACH_TOKEN = ("q_proj", "o_proj", "dense", "mlp")
#: Attention arguments that `packed_attention` does not support.
_FOREIGN = ("softcap", "s_aux", "position_bias")
#: What a family's own code raises if it does not know packed rows: NotPackableError too, and Python's for its methods.
_FAMILYS_OWN = (TypeError, AttributeError, IndexError, NotImplementedError)


class NotPackableError(TypeError):
    """The LLM computes attention in a way that packed rows do not support; its rows are padded instead."""


def few(count: int) -> int:
    """The next larger of a few sizes, at most 16 between a number and its double.

    For every new shape oneDNN makes and keeps 0.2 to 0.6 MB of code, which lies among the tensors in the heap.
    """
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def filled(mask: Tensor) -> Tensor:
    """The mask with so many more True, the first of its False, that there are `few` of them, or all."""
    return mask | ((~mask).flatten().cumsum(0) <= few(count := int(mask.sum())) - count).view_as(mask)


class Packing:
    """Where packed tokens stand: `indices` (t,) in the flattened batch of `rows` rows of `longest` tokens each."""

    def __init__(self, is_real: Tensor) -> None:
        """From a mask (b, longest) that is False for padding, which stands on the right."""
        self.rows, self.longest = is_real.shape
        self.indices = is_real.flatten().nonzero()[:, 0]

    def pack(self, padded: Tensor) -> Tensor:
        """(..., b * longest, d) -> (..., t, d)."""
        return padded.index_select(-2, self.indices)

    def unpack(self, packed: Tensor) -> Tensor:
        """(..., t, d) -> (..., b * longest, d), zeros where there is padding."""
        shape = (*packed.shape[:-2], self.rows * self.longest, packed.shape[-1])
        return packed.new_zeros(shape).index_copy(-2, self.indices, packed)


class Packer:
    """Runs an LLM on packed rows; hooks let its last layer compute only the tokens whose hidden states are needed."""

    def __init__(self, llm: Any) -> None:
        if not getattr(llm.base_model, "_supports_attention_backend", False):
            raise NotPackableError("its attention is not left to the library")
        self._llm = llm
        self._needed: Tensor | None = None
        self._tokens = 0
        parts = llm.base_model.layers[-1].named_modules()
        self.last_layer_modules = [module for name, module in parts if name.rpartition(".")[2] in _ON_EACH_TOKEN]
        for module in self.last_layer_modules:
            module.register_forward_pre_hook(self._take)
            module.register_forward_hook(self._put_back)

    @classmethod
    @torch.no_grad()
    def try_packing(cls, llm: Any) -> "Packer | None":
        """A packer for `llm`, or None if two short rows give other hidden states packed than padded."""
        embeddings = llm.get_input_embeddings().weight
        rows = embeddings[torch.arange(10, device=embeddings.device).view(2, 5) % len(embeddings)]
        is_real = torch.tensor([[True] * 3 + [False] * 2, [True] * 5], device=rows.device)
        needed = torch.tensor([2, 5, 7], device=rows.device)
        expected = llm.base_model(inputs_embeds=rows, use_cache=False).last_hidden_state[is_real][needed].float()
        try:
            packer = cls(llm)
            found = packer.hidden_states(rows[is_real], Packing(is_real), needed).float()
        except _FAMILYS_OWN:
            return None
        allowed = 1e-3 if rows.dtype is torch.float32 else 0.1
        return packer if (found - expected).norm() <= allowed * expected.norm() else None

    def hidden_states(self, embeddings: Tensor, packing: Packing, needed: Tensor) -> Tensor:
        """Packed input embeddings (t, d) -> the LLM's last hidden states (n, d) of the tokens at `needed` (n,)."""
        config = self._llm.config
        before, config._attn_implementation = config._attn_implementation, PACKED
        is_needed = torch.zeros(len(embeddings), dtype=torch.bool, device=needed.device).index_fill(0, needed, True)
        self._needed, self._tokens = filled(is_needed).nonzero()[:, 0], len(embeddings)
        positions = (packing.indices % packing.longest)[None]  # of each token in its own row
        try:
            hidden = self._llm.base_model(
                inputs_embeds=embeddings[None], position_ids=positions, use_cache=False, packing=packing
            ).last_hidden_state
        finally:
            self._needed, config._attn_implementation = None, before
        return hidden[0].index_select(0, needed)

    def _take(self, module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return None if self._needed is None else (inputs[0].index_select(1, self._needed), *inputs[1:])

    def _put_back(self, module: Any, inputs: Any, output: Tensor) -> Tensor | None:
        if self._needed is None:
            return None
        return output.new_zeros(1, self._tokens, output.shape[-1]).index_copy(1, self._needed, output)


def packed_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: Any = None, **others: Any
) -> tuple[Tensor, None]:
    """Causal attention within each row: query (1, h, t, d), key and value (1, h_kv, t, d) -> (1, t, h, d)."""
    packing, window = others.get("packing"), others.get("sliding_window")
    windowed = window is not None and window < LONGEST
    if packing is None or windowed or any(others.get(name) is not None for name in _FOREIGN):
        raise NotPackableError("packed rows are for plain causal attention")
    heads = query.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if query.device.type == "cpu":  # where PyTorch's fused kernels are slow with short rows, most of all backwards
        q, k, v = (_rows(packing, x[0], heads // x.shape[1]) for x in (query, key, value))
        future = q.new_full((packing.longest, packing.longest), float("-inf")).triu(1)
        probs = torch.baddbmm(future, q, k.transpose(1, 2), alpha=scaling).softmax(-1)
        out = packing.pack((probs @ v).view(heads, -1, v.shape[-1]))
    else:
        q, k, v = (
            packing.unpack(x[0]).unflatten(-2, (packing.rows, packing.longest)).transpose(0, 1)
            for x in (query, key, value)
        )
        grouped = heads != key.shape[1]
        full = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=grouped)
        out = packing.pack(full.transpose(0, 1).flatten(1, 2))
    return out.transpose(0, 1)[None], None


def _rows(packing: Packing, packed: Tensor, groups: int) -> Tensor:
    """(h, t, d) -> (h * groups * rows, longest, d)."""
    padded = packing.unpack(packed)
    if groups > 1:
        padded = padded.repeat_interleave(groups, 0)
    return padded.view(-1, packing.longest, padded.shape[-1])


AttentionInterface.register(PACKED, packed_attention)
