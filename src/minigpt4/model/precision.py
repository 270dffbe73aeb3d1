"""Which device and which number format a model runs in, and how its memory is handed out there.

Knows nothing about the model itself.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minigpt4.errors import UserError

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip

#: Formats of fewer bits in which the LLM's linear layers can be held: LLM.int8() and NF4 (QLoRA), which bitsandbytes
#: has for CUDA, CPUs and Apple's MPS; and those in which the products are computed too (`minigpt4.model.eight_bits`),
#: 8-bit floats for GPUs that multiply them, 8-bit integers for CPUs.
LOAD_IN = ("8bit", "4bit", "fp8", "int8")
#: The first CUDA compute capability that multiplies float8: L4, L40S, RTX 40; H100 and H200 are 9.0.
FLOAT8_CAPABILITY = (8, 9)
BLOCK = 64  # weights that share one scale in 4 bits


@dataclass(frozen=True)
class Placement:
    """Where a model lives and in which numbers.

    `device` holds the vision side, and the LLM too unless `spread` is set: then the LLM's layers fill what memory
    there is on the GPUs, then on the CPU, then on the disk, up to `max_memory` (bytes, or a text such as "6GiB", by
    GPU number or "cpu"). `load_in` holds the LLM's linear layers in 8 or 4 bits, and they compute in `dtype`; or in
    8-bit floats or integers, and they compute in those.
    """

    device: torch.device
    dtype: torch.dtype
    load_in: str | None = None
    spread: bool = False
    max_memory: Mapping[int | str, int | str] | None = None
    # What finds no place in memory. It goes when the last model that uses it does.
    _disk: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list, repr=False)

    @classmethod
    def of(
        cls,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
    ) -> Placement:
        """What those arguments of `MiniGPT4.from_pretrained` ask for. Raises UserError for what cannot be had."""
        spread = device == "auto"
        if max_memory and not spread:
            raise UserError("max_memory is for device='auto', which shares a model out; give that, or no max_memory")
        if load_in and spread:
            raise UserError(f"load_in={load_in!r} needs one device; give device='cuda' or 'cpu', or leave load_in out")
        resolved = resolve_device(device)
        check_load_in(load_in, resolved)
        return cls(resolved, resolve_dtype(dtype, resolved), load_in, spread, max_memory)

    def loading(self, skeleton: Callable[[], Any], prefix: str = "") -> dict[str, Any]:
        """The arguments for transformers' `from_pretrained` that put the LLM in its place.

        `skeleton` makes that LLM without weights (on the meta device), `prefix` is its name in the model that is
        loaded, whose other parts go to `device`.
        """
        device = str(self.device)  # accelerate does not know a torch.device for what it says
        others = dict.fromkeys(_VISION_SIDE, device) if prefix else {}
        arguments: dict[str, Any] = {"dtype": self.dtype}
        if self.spread:
            from accelerate import infer_auto_device_map

            llm = skeleton().to(self.dtype)
            llm.tie_weights()
            shares = infer_auto_device_map(
                llm,
                max_memory=dict(self.max_memory) if self.max_memory else None,
                no_split_module_classes=llm._no_split_modules,
                dtype=self.dtype,
            )
            if "disk" in shares.values():
                self._disk.append(tempfile.TemporaryDirectory(prefix="minigpt4-offload-"))
                arguments["offload_folder"] = self._disk[-1].name
            return arguments | {"device_map": others | {_join(prefix, name): where for name, where in shares.items()}}
        arguments["device_map"] = {"": device}
        if self.load_in:
            arguments["quantization_config"] = _quantization(self.load_in, self.dtype, prefix)
        return arguments


_VISION_SIDE = ("query_tokens", "vision_model", "qformer", "language_projection")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}".strip(".")


def _quantization(load_in: str, dtype: torch.dtype, prefix: str) -> Any:
    if load_in in ("fp8", "int8"):
        from minigpt4.model.eight_bits import EightBitConfig

        return EightBitConfig(load_in, prefix)
    from transformers import BitsAndBytesConfig

    skipped = [*_VISION_SIDE, "lm_head"] if prefix else None  # transformers itself skips the head of a bare LLM
    # It would say in every layer that LLM.int8() rounds its inputs to float16, and that faster kernels are on the hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if load_in == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )


def pack_4bit_layers(model: Any, allowed: bool) -> None:
    """Let `model`'s 4-bit layers take bitsandbytes' packed form for CPUs, or undo and forbid it.

    A layer takes it on its first inference on a CPU with AVX-512 BF16, and then computes many times faster. But no
    gradient passes through a packed layer, without a word, and one whose height does not fit its blocks fails.
    Raises UserError for layers of a width that bitsandbytes rounds wrongly on a CPU.
    """
    for module in model.modules():
        if type(module).__name__ != "Linear4bit":
            continue
        module.state_dict()  # unpacks the layer: its saved form is the plain one
        if module.weight.device.type == "cpu" and module.in_features % BLOCK:  # seen in 0.50: errors 2.5 times as large
            raise UserError(
                f"load_in='4bit' on a CPU needs layers of a width that is a multiple of {BLOCK}, but this LLM has a "
                f"layer of {module.in_features}; use load_in='8bit'"
            )
        if not (allowed and module.out_features % 32 == 0):
            module.support_avx512bf16_for_cpu = False


def check_load_in(load_in: str | None, device: torch.device, key: str = "load_in") -> None:
    """Raises UserError if what `key` names cannot be held in that format on `device`, or by this installation."""
    if load_in is None:
        return
    if load_in not in LOAD_IN:
        raise UserError(f"load_in {load_in!r} is not known; use {', '.join(LOAD_IN)}, or leave it out")
    if load_in == "fp8":
        check_float8(device.type, torch.cuda.get_device_capability(device) if device.type == "cuda" else None, key)
        return
    if load_in == "int8":
        if device.type != "cpu":
            raise UserError(f"{key}='int8' works on the cpu, not on {device.type}; {_instead(key)}")
        return
    if device.type not in ("cpu", "cuda", "mps"):
        raise UserError(f"load_in={load_in!r} works on cuda, cpu and mps, not on {device.type}; leave it out there")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"load_in={load_in!r} needs bitsandbytes; install it with: pip install 'minigpt4[quantized]'")


def check_float8(kind: str, capability: tuple[int, int] | None, key: str = "load_in") -> None:
    """Raises UserError for a kind of device, or a CUDA compute capability, that does not multiply float8.

    A CPU does, but slowly: torch converts each number. It is for trying things out.
    """
    if kind == "cuda" and capability and capability < FLOAT8_CAPABILITY:
        raise UserError(
            f"{key}='fp8' needs a GPU of compute capability {_dotted(FLOAT8_CAPABILITY)} or higher (L4, H100), and "
            f"this one has {_dotted(capability)}; {_instead(key)}"
        )
    if kind not in ("cpu", "cuda"):
        raise UserError(f"{key}='fp8' works on cuda and, slowly, on the cpu, not on {kind}; {_instead(key)}")


def _instead(key: str) -> str:
    return "use load_in='8bit'" if key == "load_in" else "leave it out"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; without one CUDA if there is one, else the CPU. Raises UserError if it is not there.

    "auto" gives the device where the rest of a spread model stands: CUDA or MPS if there is one, else the CPU.
    """
    if device == "auto" and torch.backends.mps.is_available():
        return torch.device("mps")
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is not known; use cpu, cuda, cuda:1, mps, auto") from None
    missing = (resolved.type == "cuda" and not torch.cuda.is_available()) or (
        resolved.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise UserError(f"device {device} is not available on this machine; use device='cpu'")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for; without one bfloat16 on CUDA and float32 elsewhere."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def training_dtype(device: torch.device) -> str | None:
    """bfloat16 on a CPU that multiplies it in hardware; None leaves the choice to the device."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if device.type == "cpu" and fast else None


#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, and what they are set to, in bytes.
MMAP_THRESHOLD, OWN_PAGES, SHARED_PAGES = -3, 2 * 2**20, 32 * 2**20
TRIM_THRESHOLD, NEVER = -1, 2**30


def free_large_tensors_at_once() -> None:
    """Let this process give the memory of large CPU tensors back as soon as they are freed: for loading and encoding.

    glibc by itself raises its threshold for that to 32 MiB at the first large tensor; what is smaller then leaves holes
    behind that nothing fits in. Does nothing under other C libraries.
    """
    _set({MMAP_THRESHOLD: OWN_PAGES})


def keep_freed_memory() -> None:
    """Let this process keep the memory of freed CPU tensors for those that follow, which training's steps make anew.

    To get it from the system each time takes a fifth of a small model's step. Does nothing under other C libraries.
    """
    _set({MMAP_THRESHOLD: SHARED_PAGES, TRIM_THRESHOLD: NEVER})


def _set(values: dict[int, int]) -> None:
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in values.items():
            libc.mallopt(parameter, value)
