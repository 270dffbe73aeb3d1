"""Frozen linear layers in 8-bit floats: half the bytes of bfloat16, and products that newer GPUs make twice as fast.

Weights are held in float8 (e4m3: 4 bits of exponent, 3 of mantissa) with a scale for each output. What comes in is
rounded to float8 too, with a scale for each row, and both are multiplied by the hardware, forwards and backwards. The
gradient goes to the input only. No library does this: torchao's float8 weights and transformers' are for inference
(no gradient passes), and torchao's and accelerate's float8 training holds the weights in bfloat16.

Knows nothing about models but their linear layers, and how transformers loads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

FORMAT = torch.float8_e4m3fn
SIDE = 16  # the hardware multiplies float8 in blocks of this many
METHOD = "minigpt4_float8"


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """(n, d) of any float type -> (n, d) in float8, and the float32 scales (n, 1) that give its values back."""
    largest = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    # A row of zeros stays one. The limit is asked for here: torch.compile takes a module's number for a variable.
    scale = largest.clamp(min=1e-12) / torch.finfo(FORMAT).max
    return (x / scale).to(FORMAT), scale


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """(n, k) times the transpose of (m, k), both float8 with a scale for each row: (n, m) in bfloat16."""
    return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), out_dtype=torch.bfloat16)


class _Linear(torch.autograd.Function):
    """x (n, d_in) times the transpose of a frozen float8 weight (d_out, d_in) with scales (d_out, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return multiply(*quantise(x), weight, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        # The sum now runs over outputs, so their scales go into the gradient before that is rounded: to e4m3 as well,
        # for with a scale for each row a mantissa bit is worth more than e5m2's further exponents.
        rounded, rows = quantise(gradient * scale.t())
        # Turned round in each step: the hardware needs it so, and to keep it would take as much memory as bfloat16.
        product = multiply(rounded, rows, weight.t().contiguous(), scale.new_ones(weight.shape[1], 1))
        return product.to(gradient.dtype), None, None


class Float8Linear(torch.nn.Linear):
    """What a linear layer computes, from its weight (d_out, d_in) in float8 with `scale` (d_out, 1)."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        """Takes over the layer's bias. One on the meta device is not rounded: transformers will, when it reads it."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantise(linear.weight.data)
        held = linear.weight.data if weight.is_meta else weight  # in the dtype that it is to be read in
        self.weight = torch.nn.Parameter(held, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = _Linear.apply(x.flatten(0, -2), self.weight, self.scale).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def hold_in_float8(tower: Any) -> None:
    """Replace the linear layers of an LLM or a vision tower of transformers by float8 ones, one after the other.

    An LLM's head stays, and so do layers of odd sizes.
    """
    head = tower.get_output_embeddings()
    for name, layer in list(tower.named_modules()):
        fits = type(layer) is torch.nn.Linear and layer.in_features % SIDE == layer.out_features % SIDE == 0
        if fits and layer is not head:
            tower.set_submodule(name, Float8Linear(layer))


@register_quantization_config(METHOD)
class Float8Config(QuantizationConfigMixin):
    """Asks transformers' `from_pretrained` to hold a model's LLM in float8, from the moment it is read.

    `llm` is its name in the model, "" if it is the model.
    """

    def __init__(self, llm: str = "") -> None:
        self.quant_method = METHOD
        self.llm = llm


@register_quantizer(METHOD)
class Float8Quantizer(HfQuantizer):
    """Does it: the layers are replaced while they are empty, and each weight is rounded as it comes."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        hold_in_float8(model.get_submodule(self.quantization_config.llm))

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        name, _, own = param_name.rpartition(".")
        return own == "weight" and isinstance(model.get_submodule(name), Float8Linear)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        held = 1 if self.param_needs_quantization(model, param_name) else param.element_size()
        return float(held)

    def get_quantize_ops(self) -> ConversionOps:
        return _Rounding()

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return True


class _Rounding(ConversionOps):
    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        ((name, found),) = input_dict.items()
        weight, scale = quantise(found[0] if isinstance(found, list) else found)
        frozen = torch.nn.Parameter(weight, requires_grad=False)
        return {name: frozen, name.removesuffix("weight") + "scale": scale}
