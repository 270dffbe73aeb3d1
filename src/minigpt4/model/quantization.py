"""Frozen weights in 8 or 4 bits: bitsandbytes' formats, and 8-bit layers that also multiply in 8 bits.

bitsandbytes holds the LLM as LLM.int8() ("8bit") or NF4 ("4bit", QLoRA) and computes in the model's dtype. An
`EightBitLinear` holds weights as floats ("fp8", e4m3) or integers ("int8") and rounds its inputs, so that the hardware
multiplies 8-bit numbers, forwards and backwards: half the bytes of bfloat16 and up to twice the speed. No library does
this: torchao and transformers pass no gradient, and torchao's float8 training holds weights in bfloat16.
"""

import importlib.util
import logging
from typing import Any

import torch
from torch import Tensor
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from minigpt4.errors import UserError

_ANY = ("cuda", "cpu", "mps")
#: The formats of the recipe's and the commands' `load_in`, and the devices on which they work (fp8 on a CPU slowly).
LOAD_IN = {"8bit": _ANY, "4bit": _ANY, "fp8": ("cuda", "cpu"), "int8": ("cpu",)}
FORMATS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
FLOAT8_CAPABILITY = (8, 9)  # of the first GPUs that multiply float8: L4, L40S, RTX 40; H100 and H200 have 9.0
SIDE = 16  # the hardware multiplies in blocks of this many
BLOCK = 64  # weights that share one scale in 4 bits
METHOD = "minigpt4_eight_bits"
_INSTEAD = {"load_in": "use load_in='8bit'", "vision_load_in": "leave it out"}


def check_load_in(load_in: str | None, device: torch.device, key: str = "load_in") -> None:
    """Raises UserError if the format `load_in` does not work on `device` or in this installation; `key` names it."""
    if load_in is None:
        return
    if load_in not in LOAD_IN:
        raise UserError(f"load_in {load_in!r} is not known; use {', '.join(LOAD_IN)}, or leave it out")
    if device.type not in LOAD_IN[load_in]:
        kinds, instead = " and ".join(LOAD_IN[load_in]), _INSTEAD[key] if load_in in FORMATS else "leave it out there"
        raise UserError(f"{key}={load_in!r} works on {kinds}, not on {device.type}; {instead}")
    if load_in == "fp8" and device.type == "cuda":
        check_float8(torch.cuda.get_device_capability(device), key)
    if load_in in ("8bit", "4bit") and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"load_in={load_in!r} needs bitsandbytes; install it with: pip install 'minigpt4-vlm[quantized]'"
        )


def check_float8(capability: tuple[int, int], key: str = "load_in") -> None:
    """Raises UserError if a GPU of this CUDA compute capability does not multiply float8."""
    if capability < FLOAT8_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (FLOAT8_CAPABILITY, capability))
        raise UserError(
            f"{key}='fp8' needs a GPU of compute capability {needed} or higher (L4, H100), and this one has {found}; "
            + _INSTEAD[key]
        )


def quantization_config(load_in: str, dtype: torch.dtype) -> Any:
    """transformers' `quantization_config` for an LLM in the format `load_in` that computes in `dtype`."""
    if load_in in FORMATS:
        return EightBitConfig(load_in)
    # It would warn in every layer that LLM.int8() rounds its inputs to float16, and that faster kernels are on the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def pack_4bit_layers(model: Any, allowed: bool) -> None:
    """Allow or forbid bitsandbytes' packed form of 4-bit layers on CPUs; forbidding unpacks packed layers.

    On a CPU with AVX-512 BF16 a layer packs itself on its first inference, and is then many times faster. But packed
    layers pass no gradient, and fail if their height is no multiple of 32. Raises UserError for layers of a width that
    bitsandbytes rounds wrongly on a CPU.
    """
    for module in model.modules():
        if type(module).__name__ != "Linear4bit":
            continue
        module.state_dict()  # unpacks the layer, since the packed form is never saved
        if module.weight.device.type == "cpu" and module.in_features % BLOCK:  # seen in 0.50: errors 2.5 times as large
            raise UserError(
                f"load_in='4bit' on a CPU needs layers of a width that is a multiple of {BLOCK}, but this LLM has a "
                f"layer of {module.in_features}; use load_in='8bit'"
            )
        if not (allowed and module.out_features % 32 == 0):
            module.support_avx512bf16_for_cpu = False


def quantize(x: Tensor, form: torch.dtype) -> tuple[Tensor, Tensor]:
    """(n, d) of any float type -> (n, d) in `form` and float32 scales (n, 1); their product is `x`, rounded."""
    largest = torch.linalg.vector_norm(x, float("inf"), dim=-1, keepdim=True, dtype=torch.float32)
    # The limit is looked up here since torch.compile takes a module's number for a variable.
    limit = torch.finfo(form).max if form.is_floating_point else torch.iinfo(form).max
    largest = largest.clamp(min=1e-12)  # a row of zeros stays one
    scaled = x * (limit / largest)
    return (scaled if form.is_floating_point else scaled.round()).to(form), largest / limit


def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    """(n, k) times the transpose of (m, k), both 8-bit with scales of rows -> (n, m), float32 or (fp8) bfloat16."""
    if a.dtype is torch.int8:
        return torch._int_mm(a, b.t()) * a_scale * b_scale.t()
    return torch._scaled_mm(a, b.t(), a_scale, b_scale.t(), out_dtype=torch.bfloat16)


class _Linear(torch.autograd.Function):
    """x (n, d_in) times the transpose of a frozen 8-bit weight (d_out, d_in) with scales (d_out, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return multiply(*quantize(x, weight.dtype), weight, scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        # The sum now runs over outputs, so their scales go into the gradient before it is rounded (to e4m3 too: with a
        # scale for each row, a bit of mantissa is worth more than e5m2's larger exponents).
        rounded, rows = quantize(gradient * scale.t(), weight.dtype)
        # A GPU needs it contiguous. Keeping it would take as much memory as bfloat16, so each step copies it.
        transposed = weight.t() if weight.dtype is torch.int8 else weight.t().contiguous()
        product = multiply(rounded, rows, transposed, scale.new_ones(weight.shape[1], 1))
        return product.to(gradient.dtype), None, None


class EightBitLinear(torch.nn.Linear):
    """A linear layer with its weight (d_out, d_in) in 8 bits and `scale` (d_out, 1)."""

    def __init__(self, linear: torch.nn.Linear, form: torch.dtype) -> None:
        """Takes over the layer's bias. A weight on the meta device is quantized later, when transformers reads it."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.form = linear.in_features, linear.out_features, form
        weight, scale = quantize(linear.weight.data, form)
        held = linear.weight.data if weight.is_meta else weight  # in the dtype that it is read in
        self.weight = torch.nn.Parameter(held, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = _Linear.apply(x.flatten(0, -2), self.weight, self.scale).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def quantize_linears(form: str, model: Any) -> None:
    """Replace the linear layers of an LLM or a vision encoder, but not the LM head, by 8-bit ones (`FORMATS[form]`)."""
    head = model.get_output_embeddings()
    for name, layer in list(model.named_modules()):
        fits = type(layer) is torch.nn.Linear and layer.in_features % SIDE == layer.out_features % SIDE == 0
        if fits and layer is not head:
            model.set_submodule(name, EightBitLinear(layer, FORMATS[form]))


@register_quantization_config(METHOD)
class EightBitConfig(QuantizationConfigMixin):
    """Asks transformers' `from_pretrained` to quantize the LLM to `FORMATS[form]` while it is read."""

    def __init__(self, form: str = "fp8") -> None:
        self.quant_method = METHOD
        self.form = form


@register_quantizer(METHOD)
class EightBitQuantizer(HfQuantizer):
    """Replaces linear layers before weights are loaded, then quantizes each weight as it arrives."""

    is_trainable = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        quantize_linears(self.quantization_config.form, model)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        name, _, own = param_name.rpartition(".")
        return own == "weight" and isinstance(model.get_submodule(name), EightBitLinear)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        return 1.0 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeWeight(FORMATS[self.quantization_config.form])

    def is_serializable(self) -> bool:
        return False


class _QuantizeWeight(ConversionOps):
    def __init__(self, form: torch.dtype) -> None:
        self.form = form

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        ((name, found),) = input_dict.items()
        weight, scale = quantize(found[0] if isinstance(found, list) else found, self.form)
        frozen = torch.nn.Parameter(weight, requires_grad=False)
        return {name: frozen, name.removesuffix("weight") + "scale": scale}
