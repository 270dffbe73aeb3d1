"""Frozen linear layers in 8 bits: half the bytes of bfloat16, and products that newer hardware makes twice as fast.

Weights are held in 8 bits with a scale for each output. What comes in is rounded to 8 bits too, with a scale for each
row, and both are multiplied by the hardware, forwards and backwards. The gradient goes to the input only. Two formats:
`fp8`, floats (e4m3: 4 bits of exponent, 3 of mantissa), for GPUs, and `int8`, integers, for CPUs. No library does this:
torchao's 8-bit weights and transformers' are for inference (no gradient passes), torchao's and accelerate's float8
training holds the weights in bfloat16, and bitsandbytes multiplies in bfloat16 on a CPU.

Knows nothing about models but their linear layers, and how transformers loads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

FORMATS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
SIDE = 16  # the hardware multiplies in blocks of this many
METHOD = "minigpt4_eight_bits"


def quantise(x: Tensor, form: torch.dtype) -> tuple[Tensor, Tensor]:
    """(n, d) of any float type -> (n, d) in `form`, and the float32 scales (n, 1) that give its values back.

    What is no number makes its row's scale none.
    """
    largest = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    # The limit is asked for here: torch.compile takes a module's number for a variable.
    limit = torch.finfo(form).max if form.is_floating_point else torch.iinfo(form).max
    largest = largest.clamp(min=1e-12)  # a row of zeros stays one
    scaled = x * (limit / largest)
    return (scaled if form.is_floating_point else scaled.round()).to(form), largest / limit


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """(n, k) times the transpose of (m, k), both in one format with a scale for each row.

    (n, m) in bfloat16 from floats, for GPUs give no other with such scales, and in float32 from integers.
    """
    if a.dtype is torch.int8:
        return torch._int_mm(a, b.t()) * a_scale * b_scale.t()
    return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), out_dtype=torch.bfloat16)


class _Linear(torch.autograd.Function):
    """x (n, d_in) times the transpose of a frozen 8-bit weight (d_out, d_in) with scales (d_out, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return multiply(*quantise(x, weight.dtype), weight, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        # The sum now runs over outputs, so their scales go into the gradient before that is rounded: to e4m3 as well,
        # for with a scale for each row a mantissa bit is worth more than e5m2's further exponents.
        rounded, rows = quantise(gradient * scale.t(), weight.dtype)
        turned = weight.t()
        if weight.dtype is not torch.int8:
            # In each step: a GPU needs it so, and to keep it would take as much memory as bfloat16.
            turned = turned.contiguous()
        product = multiply(rounded, rows, turned, scale.new_ones(weight.shape[1], 1))
        return product.to(gradient.dtype), None, None


class EightBitLinear(torch.nn.Linear):
    """What a linear layer computes, from its weight (d_out, d_in) in 8 bits with `scale` (d_out, 1)."""

    def __init__(self, linear: torch.nn.Linear, form: torch.dtype) -> None:
        """Takes over the layer's bias. One on the meta device is not rounded: transformers will, when it reads it."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.form = linear.in_features, linear.out_features, form
        weight, scale = quantise(linear.weight.data, form)
        held = linear.weight.data if weight.is_meta else weight  # in the dtype that it is to be read in
        self.weight = torch.nn.Parameter(held, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = _Linear.apply(x.flatten(0, -2), self.weight, self.scale).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def hold_in(form: str, tower: Any) -> None:
    """Replace the linear layers of an LLM or a vision tower of transformers by those in `FORMATS[form]`, one by one.

    An LLM's head stays, and so do layers of odd sizes.
    """
    head = tower.get_output_embeddings()
    for name, layer in list(tower.named_modules()):
        fits = type(layer) is torch.nn.Linear and layer.in_features % SIDE == layer.out_features % SIDE == 0
        if fits and layer is not head:
            tower.set_submodule(name, EightBitLinear(layer, FORMATS[form]))


@register_quantization_config(METHOD)
class EightBitConfig(QuantizationConfigMixin):
    """Asks transformers' `from_pretrained` to hold a model's LLM in `FORMATS[form]`, from the moment it is read.

    `llm` is its name in the model, "" if it is the model.
    """

    def __init__(self, form: str = "fp8", llm: str = "") -> None:
        self.quant_method = METHOD
        self.form, self.llm = form, llm


@register_quantizer(METHOD)
class EightBitQuantizer(HfQuantizer):
    """Does it: the layers are replaced while they are empty, and each weight is rounded as it comes."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        hold_in(self.quantization_config.form, model.get_submodule(self.quantization_config.llm))

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        name, _, own = param_name.rpartition(".")
        return own == "weight" and isinstance(model.get_submodule(name), EightBitLinear)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        held = 1 if self.param_needs_quantization(model, param_name) else param.element_size()
        return float(held)

    def get_quantize_ops(self) -> ConversionOps:
        return _Rounding(FORMATS[self.quantization_config.form])

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Rounding(ConversionOps):
    def __init__(self, form: torch.dtype) -> None:
        self.form = form

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        ((name, found),) = input_dict.items()
        weight, scale = quantise(found[0] if isinstance(found, list) else found, self.form)
        frozen = torch.nn.Parameter(weight, requires_grad=False)
        return {name: frozen, name.removesuffix("weight") + "scale": scale}
