"""The device and dtype of a model, and how an LLM is spread over several devices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from minigpt4.errors import UserError
from minigpt4.model.quantization import check_load_in, quantization_config

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class Placement:
    """The device and dtype of a model.

    `device` holds the vision side, and the LLM too unless `spread` is set: then the LLM's layers fill the memory of the
    GPUs, then of the CPU, then the disk, up to `max_memory` (bytes or a text such as "6GiB", by GPU number or "cpu").
    `load_in` is the quantization of the LLM's linear layers (`quantization.LOAD_IN`), or None.
    """

    device: torch.device
    dtype: torch.dtype
    load_in: str | None = None
    spread: bool = False
    max_memory: Mapping[int | str, int | str] | None = None
    # Holds layers for which memory has no room. It is deleted with the last model that uses it.
    _disk: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list, repr=False)

    @classmethod
    def resolve(
        cls,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        load_in: str | None = None,
        max_memory: Mapping[int | str, int | str] | None = None,
    ) -> Placement:
        """From the arguments of `MiniGPT4.from_pretrained`. Raises UserError if this machine cannot do that."""
        spread = device == "auto"
        if max_memory and not spread:
            raise UserError("max_memory is for device='auto', which shares a model out; give that, or no max_memory")
        if load_in and spread:
            raise UserError(f"load_in={load_in!r} needs one device; give device='cuda' or 'cpu', or leave load_in out")
        resolved = resolve_device(device)
        check_load_in(load_in, resolved)
        return cls(resolved, resolve_dtype(dtype, resolved), load_in, spread, max_memory)

    def loading(self, skeleton: Callable[[], Any], prefix: str = "") -> dict[str, Any]:
        """Arguments for transformers' `from_pretrained`.

        `skeleton` makes the LLM on the meta device; `prefix` is its name in the model that is loaded, whose other parts
        go to `device`.
        """
        device = str(self.device)  # accelerate does not take a torch.device
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
            spread = {f"{prefix}.{name}".strip("."): where for name, where in shares.items()}
            return arguments | {"device_map": others | spread}
        arguments["device_map"] = {"": device}
        if self.load_in:
            arguments["quantization_config"] = quantization_config(self.load_in, self.dtype, prefix, _VISION_SIDE)
        return arguments


_VISION_SIDE = ("query_tokens", "vision_model", "qformer", "language_projection")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The given device; by default CUDA if there is one, else the CPU. Raises UserError if it is not available.

    For "auto" it is the device of the vision side: CUDA or MPS if there is one, else the CPU.
    """
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
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if device.type == "cpu" and fast else None
