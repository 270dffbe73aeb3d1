"""The device and dtype of a model, how an LLM is spread over several devices, and how glibc allocates CPU tensors."""

import ctypes
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minigpt4.errors import UserError
from minigpt4.model.four_bits import FAST_BFLOAT16
from minigpt4.model.quantization import check_load_in, quantization_config

_SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
DTYPES = {name: getattr(torch, full) for full, short in _SHORT.items() for name in (full, short)}


@dataclass(frozen=True)
class Placement:
    """Where the parts of a model are, and in which dtype."""

    device: torch.device  # of the vision side and, unless that is spread, the LLM
    dtype: torch.dtype
    dtype_given: bool = True  # whether that was asked for; else a large LLM in 4 bits has that of its files
    load_in: str | None = None  # quantization of the LLM's linear layers
    spread: bool = False  # whether the LLM's layers fill the GPUs, then the CPU's memory, then the disk
    max_memory: Mapping[int | str, int | str] | None = None  # bytes or "6GiB", by GPU number or "cpu"
    # Holds layers for which memory has no room. It is deleted with the last model that uses it.
    _disk: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list, repr=False)

    @classmethod
    def resolve(
        cls,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
    ) -> "Placement":
        """From the arguments of `MiniGPT4.from_pretrained`. Raises UserError if this machine cannot do that."""
        spread = device == "auto"
        if max_memory and not spread:
            raise UserError("max_memory is for device='auto', which shares a model out; give that, or no max_memory")
        if load_in and spread:
            raise UserError(f"load_in={load_in!r} needs one device; give device='cuda' or 'cpu', or leave load_in out")
        resolved = resolve_device(device)
        check_load_in(load_in, resolved)
        chosen = dtype or (training_dtype(resolved) if load_in == "4bit" else None)  # where little memory is wanted
        return cls(resolved, resolve_dtype(chosen, resolved), dtype is not None, load_in, spread, max_memory)

    def loading(self) -> dict[str, Any]:
        """Arguments for transformers' `from_pretrained` of the LLM."""
        if self.spread:
            self._disk.append(tempfile.TemporaryDirectory(prefix="minigpt4-offload-"))
            placed = {"device_map": "sequential", "offload_folder": self._disk[-1].name}
            return {"dtype": self.dtype, "max_memory": dict(self.max_memory or {}) or None, **placed}
        quantized = quantization_config(self.load_in, self.dtype, self.device) if self.load_in else None
        # accelerate does not take a torch.device
        return {"dtype": self.dtype, "device_map": {"": str(self.device)}, "quantization_config": quantized}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The given device, by default a GPU if there is one ("auto": or MPS). Raises UserError if it is not available."""
    if device == "auto" and torch.backends.mps.is_available():
        return torch.device("mps")
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is not known; use cpu, cuda, cuda:1, mps, auto") from None
    backend: Any = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(resolved.type)
    if backend and not backend.is_available():
        raise UserError(f"device {device} is not available on this machine; use device='cpu'")
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The given dtype; by default bfloat16 on CUDA and float32 elsewhere. Raises UserError if it is not known."""
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def training_dtype(device: torch.device) -> str | None:
    """bfloat16 on a CPU that multiplies it in hardware; else None, the default of the device."""
    return "bfloat16" if device.type == "cpu" and FAST_BFLOAT16 else None


#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, and their values here, in bytes.
MMAP_THRESHOLD, OWN_PAGES, SHARED_PAGES = -3, 2 * 2**20, 32 * 2**20
TRIM_THRESHOLD, AS_GLIBC = -1, 2 * SHARED_PAGES  # what it comes to by itself


def free_large_tensors_at_once() -> None:
    """Return large CPU tensors' memory when they are freed, for loading and encoding; glibc would leave holes."""
    _mallopt(MMAP_THRESHOLD, OWN_PAGES)


def keep_freed_memory(most: int = 2**30) -> None:
    """Keep the memory of freed CPU tensors for the next step's: to get it anew takes a fifth of a small one."""
    _mallopt(MMAP_THRESHOLD, SHARED_PAGES)
    _mallopt(TRIM_THRESHOLD, most)


def _mallopt(parameter: int, value: int) -> None:
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(parameter, value)
