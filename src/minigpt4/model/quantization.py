"""Frozen weights in 8 or 4 bits: bitsandbytes' formats, our 4 bits on CPUs, and layers that also multiply in 8 bits.

bitsandbytes holds the LLM as LLM.int8() ("8bit") or NF4 ("4bit", QLoRA) and computes in the model's dtype; on a CPU,
"4bit" is `FourBitLinear` (`four_bits.py`). An `EightBitLinear` holds weights as floats ("fp8", e4m3) or integers
("int8") and rounds its inputs, so that the hardware multiplies 8-bit numbers, forwards and backwards: half the bytes of
bfloat16 and up to twice the speed. No library does this: torchao and transformers pass no gradient, and torchao's
float8 training holds weights in bfloat16.
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
from minigpt4.model import four_bits
from minigpt4.model.four_bits import FourBitLinear

_ANY = ("cuda", "cpu", "mps")
#: The formats of the recipe's and the commands' `load_in`, and the devices on which they work (fp8 on a CPU slowly).
LOAD_IN = {"8bit": _ANY, "4bit": _ANY, "fp8": ("cuda", "cpu"), "int8": ("cpu",)}
FORMATS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
FLOAT8_CAPABILITY = (8, 9)  # of the first GPUs that multiply float8: L4, L40S, RTX 40; H100 and H200 have 9.0
SIDE = 16  # the hardware multiplies in blocks of this many
METHOD = "minigpt4"
#: What the config.json of an LLM says whose files hold `FourBitLinear`s, with the version of their format.
IN_FILES = {"quant_method": METHOD, "form": "4bit", "version": 1}
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
    if load_in == "4bit" and device.type == "cpu":
        if not four_bits.fast_block():
            logging.getLogger(__name__).warning(
                "load_in='4bit' saves memory here but no time: PyTorch has no fast 4-bit product for this processor"
            )
    elif load_in in ("8bit", "4bit") and importlib.util.find_spec("bitsandbytes") is None:
        install = "pip install 'minigpt4-vlm[quantized]'"
        raise UserError(f"load_in={load_in!r} needs bitsandbytes; install it with: {install}")


def check_float8(capability: tuple[int, int], key: str = "load_in") -> None:
    """Raises UserError if a GPU of this CUDA compute capability does not multiply float8."""
    if capability < FLOAT8_CAPABILITY:
        needed, found = (".".join(map(str, version)) for version in (FLOAT8_CAPABILITY, capability))
        needs = f"{key}='fp8' needs a GPU of compute capability {needed} or higher (L4, H100)"
        raise UserError(f"{needs}, and this one has {found}; {_INSTEAD[key]}")


def quantization_config(load_in: str, dtype: torch.dtype, device: torch.device) -> Any:
    """transformers' `quantization_config` for an LLM in the format `load_in` that computes in `dtype` on `device`."""
    if load_in in FORMATS or (load_in == "4bit" and device.type == "cpu"):
        return OwnConfig(load_in)
    # It would warn in every layer that LLM.int8() rounds its inputs to float16, and that faster kernels are on the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


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
    """A linear layer, its weight (d_out, d_in) in 8 bits, `scale` (d_out, 1). With `rounds_inputs` it is faster too."""

    scale: Tensor

    def __init__(self, linear: torch.nn.Linear, form: torch.dtype, rounds_inputs: bool = True) -> None:
        """Takes over the layer's bias. A weight on the meta device is quantized later, when transformers reads it."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.form = linear.in_features, linear.out_features, form
        self.rounds_inputs = rounds_inputs
        weight, scale = quantize(linear.weight.data, form)
        held = linear.weight.data if weight.is_meta else weight  # in the dtype that it is read in
        self.weight = torch.nn.Parameter(held, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if self.rounds_inputs:
            y = _Linear.apply(rows, self.weight, self.scale)
        else:
            rows = rows.to(four_bits.multiplies(rows))
            y = (rows @ self.weight.to(rows.dtype).t() * self.scale.to(rows.dtype).t()).to(x.dtype)
        y = y.unflatten(0, x.shape[:-1])
        return y if self.bias is None else y + self.bias


def is_in_files(name: Any, config: Any) -> bool:
    """True if the files of the LLM `name` hold `FourBitLinear`s. Raises UserError if in another format than ours."""
    found = getattr(config, "quantization_config", None) or {}
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        return False
    if found != IN_FILES:
        held = f"its LLM is held in {found.get('form')!r:.20}, format version {found.get('version')!r:.20}"
        reads = f"this package reads version {IN_FILES['version']} of '4bit'"
        raise UserError(f"{name}: {held}; {reads}, so use the release of minigpt4 that wrote it")
    return True


def scale_name(name: str) -> str:
    """The name of the scales beside the weight `name`."""
    return f"{name.removesuffix('weight')}scale"


def layers_in(form: str, model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers of an LLM or a vision encoder that are held in `form`, by name: not the LM head."""
    head, wide, high = model.get_output_embeddings(), *((four_bits.GROUP, 1) if form == "4bit" else (SIDE, SIDE))
    return {
        name: layer for name, layer in model.named_modules()
        if type(layer) is torch.nn.Linear and layer is not head
        and layer.in_features % wide == layer.out_features % high == 0
    }  # fmt: skip


def quantize_linears(form: str, model: Any, packed: bool = False) -> None:
    """Replace these layers by those of `form`; `packed`: their weights come in the form of files."""
    for name, layer in layers_in(form, model).items():
        eight = EightBitLinear(layer, FORMATS[form], not packed) if form in FORMATS else None
        model.set_submodule(name, eight or FourBitLinear(layer, packed))


def arrange(model: Any) -> None:
    """Put the layers in 4 bits of a model that was just loaded into this machine's order, one after the other."""
    for layer in model.modules():
        if isinstance(layer, FourBitLinear):
            layer.arrange()


@register_quantization_config(METHOD)
class OwnConfig(QuantizationConfigMixin):
    """Asks transformers' `from_pretrained` to hold the LLM in `form` ("4bit" or of `FORMATS`)."""

    def __init__(self, form: str = "fp8", version: int = 1, **_: Any) -> None:
        self.quant_method, self.form, self.version = METHOD, form, version


@register_quantizer(METHOD)
class OwnQuantizer(HfQuantizer):
    """Replaces linear layers before weights are loaded; quantizes each as it arrives, unless files hold it so."""

    is_trainable = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        quantize_linears(self.quantization_config.form, model, packed=self.pre_quantized)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        name, _, own = param_name.rpartition(".")
        return own == "weight" and isinstance(model.get_submodule(name), EightBitLinear | FourBitLinear)

    def param_element_size(self, model: Any, param_name: str, param: Tensor) -> float:
        return 1.0 if self.param_needs_quantization(model, param_name) else param.element_size()

    def get_quantize_ops(self) -> ConversionOps:
        return _QuantizeWeight(self.quantization_config.form)

    def is_serializable(self) -> bool:
        return False


class _QuantizeWeight(ConversionOps):
    def __init__(self, form: str) -> None:
        self.form = form

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        ((name, found),) = input_dict.items()
        weight = found[0] if isinstance(found, list) else found
        held, scale = four_bits.quantize(weight) if self.form == "4bit" else quantize(weight, FORMATS[self.form])
        return {name: torch.nn.Parameter(held, requires_grad=False), scale_name(name): scale}
