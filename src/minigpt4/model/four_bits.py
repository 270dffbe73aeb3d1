"""Frozen layers in 4 bits on a CPU: how weights are rounded and packed, and two ways to multiply them.

Each group of 32 weights of an output (64 in large LLMs) has a scale and an offset: `weight = (code - 8) * scale +
offset`, codes from 0 to 15. PyTorch's product for this form reads 4 bits where bfloat16's reads 16, so a token is as
fast as memory allows. It takes one row at a time; for many rows (a prompt, training) unpacking a piece of the layer and
multiplying it in the input's dtype is faster.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LARGE = 2048  # inputs of a layer of large LLMs, from 1B on
GROUP = 32  # weights that share a scale and an offset, at least
BLOCK = 64  # outputs that are packed together; a layer is filled up to a multiple
ROWS = 32  # up to so many, PyTorch's product is faster than unpacking (measured on an AMD EPYC, one thread)
_int4_product = torch.ops.aten._weight_int4pack_mm_for_cpu.default  # to look up a packet takes as long as to call it
PIECE = 2**20  # weights that are unpacked together: they should stay in the processor's cache


@lru_cache
def fast_block() -> int | None:
    """Outputs whose codes lie together in PyTorch's product here, 64 (AVX-512; files too) or 32; None if it is slow."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2"):
        return None
    codes = torch.arange(2 * BLOCK * GROUP, dtype=torch.int32).view(BLOCK, -1) * 7 // 3 % 16
    found = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return next((block for block in (BLOCK, 32) if torch.equal(pack(codes.to(torch.uint8), block), found)), None)


_ABLE = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
#: Whether this CPU has instructions for products of bfloat16, and whether they are known to take long without.
FAST_BFLOAT16 = bool(_ABLE.get("avx512_bf16") or _ABLE.get("amx_bf16"))
SLOW_BFLOAT16 = bool(_ABLE.get("avx2")) and not FAST_BFLOAT16


def multiplies(x: Tensor) -> torch.dtype:
    """The dtype for products with `x`: float32 where those of bfloat16 are slow."""
    slow = SLOW_BFLOAT16 and x.device.type == "cpu" and x.dtype is torch.bfloat16
    return torch.float32 if slow else x.dtype


def pack(codes: Tensor, block: int = BLOCK) -> Tensor:
    """Codes (n, k), uint8 from 0 to 15 -> (n, k / 2) bytes: of each `block` of outputs the n-th of both halves."""
    low, high = codes.unflatten(0, (-1, block)).transpose(1, 2).chunk(2, -1)
    return (low | high << 4).contiguous().reshape(len(codes), -1)


def unpack(packed: Tensor, block: int = BLOCK) -> Tensor:
    """The inverse of `pack`."""
    found = packed.view(len(packed) // block, -1, block // 2)
    return torch.cat([found & 15, found >> 4], -1).transpose(1, 2).reshape(len(packed), -1)


def held(codes: Tensor, scale: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (n, k), scales, offsets (n, groups) -> bytes (n, k / 2) as in files, bfloat16 (groups, n, 2); n in 64s."""
    codes, scale, offset = (torch.nn.functional.pad(x, (0, 0, 0, -len(x) % BLOCK)) for x in (codes, scale, offset))
    return pack(codes), torch.stack([scale, offset], -1).transpose(0, 1).to(torch.bfloat16).contiguous()


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (n, k) -> its rounding as `held`: scale, offset from a group's range, then twice by least squares."""
    rows = max(BLOCK, PIECE // weight.shape[1] // BLOCK * BLOCK)
    return held(*(torch.cat(parts) for parts in zip(*map(_rounded, weight.split(rows)), strict=True)))


def group_size(k: int) -> int:
    """Weights of an output that share a scale and an offset, of `k`: 64 in the layers of large LLMs, else 32."""
    return GROUP if k < LARGE or k % (2 * GROUP) else 2 * GROUP


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w = weight.float().unflatten(-1, (-1, group_size(weight.shape[1])))
    low, high = w.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    offset, mean = (high + low + scale) / 2, w.mean(-1, keepdim=True)  # codes reach from -8 to 7
    for fits in (False, False, True):
        scale, offset = scale.clamp(min=1e-12).bfloat16().float(), offset.bfloat16().float()
        codes = w.sub(offset).div_(scale).round_().clamp_(-8, 7)
        if not fits:
            around = codes - (middle := codes.mean(-1, keepdim=True))
            slope = (around * w).sum(-1, keepdim=True) / around.square().sum(-1, keepdim=True)
            scale = torch.where(slope > 0, slope, scale)  # it is no number where all codes are the same
            offset = mean - scale * middle
    return (codes + 8).flatten(1).to(torch.uint8), scale.squeeze(-1), offset.squeeze(-1)


def _pieces(packed: Tensor, scale: Tensor, block: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """The weights of some outputs after others, transposed: (k, outputs) in `dtype`."""
    k, groups = 2 * packed.shape[1], len(scale)
    rows = max(BLOCK, PIECE // k // BLOCK * BLOCK)
    for some, scales in zip(packed.split(rows), scale.split(rows, dim=1), strict=True):
        found = some.view(-1, groups, k // groups, block // 2).permute(1, 2, 0, 3)
        factors, offsets = (x.reshape(groups, 1, -1, block).to(dtype).chunk(2, -1) for x in scales.unbind(-1))
        weight = torch.empty(*found.shape[:3], block, dtype=dtype, device=packed.device)
        for half, codes, factor, offset in zip(
            weight.chunk(2, -1), (found & 15, found >> 4), factors, offsets, strict=True
        ):
            torch.addcmul(offset, codes.sub_(8).view(torch.int8).to(dtype), factor, out=half)
        yield weight.view(k, -1)


def unpacked(layer: "FourBitLinear") -> Tensor:
    """The weight (n, k) in float32 that a layer computes with."""
    weight = torch.cat(list(_pieces(layer.weight.data, layer.scale, layer.block, torch.float32)), -1)
    return weight.unflatten(0, (-1, layer.in_features)).sum(0).t()[: layer.out_features]


def multiply(x: Tensor, packed: Tensor, scale: Tensor, block: int, fast: bool) -> Tensor:
    """x (rows, k) times the weight (k, n) that `packed` and `scale` hold."""
    if fast and len(x) <= ROWS:
        return _int4_product(x.bfloat16().contiguous(), packed, x.shape[1] // len(scale), scale).to(x.dtype)
    wide = x.to(multiplies(x))
    return torch.cat([(wide @ weight).to(x.dtype) for weight in _pieces(packed, scale, block, wide.dtype)], -1)


class _Product(torch.autograd.Function):
    """`multiply` for training; the weight gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, scale: Tensor, block: int, fast: bool) -> Tensor:
        ctx.save_for_backward(packed, scale)
        ctx.block = block
        return multiply(x, packed, scale, block, fast)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        packed, scale = ctx.saved_tensors
        wide, start = gradient.to(multiplies(gradient)), 0
        total = wide.new_zeros(())
        for weight in _pieces(packed, scale, ctx.block, wide.dtype):
            total = total + wide[:, start : start + weight.shape[1]] @ weight.t()
            start += weight.shape[1]
        return total.to(gradient.dtype), None, None, None, None


class FourBitLinear(torch.nn.Linear):
    """A linear layer of packed bytes (n, k / 2) and `scale`: see `held`. With k doubled, weights are sums of two."""

    scale: Tensor

    def __init__(self, linear: torch.nn.Linear, packed: bool = False) -> None:
        """Takes over the layer's bias. A weight on the meta device comes later, whole or (`packed`) as in files."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.block, self.fast = BLOCK, False
        weight, scale = linear.weight.data, torch.empty(0, dtype=torch.bfloat16, device=linear.weight.device)
        if packed:
            weight = torch.empty(0, dtype=torch.uint8, device=weight.device)
        elif not weight.is_meta:
            weight, scale = quantize(weight)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)

    def arrange(self) -> None:
        """Put the codes into the order that this machine's product reads. To be called once they are there."""
        block = fast_block()
        self.fast = block is not None and self.weight.device.type == "cpu"
        if block and self.fast and block != self.block:
            self.weight.data, self.block = pack(unpack(self.weight.data), block), block

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        if 2 * self.weight.shape[1] != self.in_features:
            rows = torch.cat([rows, rows], -1)
        # A custom function takes longer to call than a small layer's product, and there are two hundred in a token.
        product = _Product.apply if torch.is_grad_enabled() and rows.requires_grad else multiply
        y = product(rows, self.weight, self.scale, self.block, self.fast)[:, : self.out_features]
        y = y.reshape(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias
