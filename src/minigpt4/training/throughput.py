"""How much work a step is, how much a device could do, and how much memory it takes. Knows nothing about recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

#: Dense bfloat16 (and float16) tensor-core operations per second, from NVIDIA's data sheets; a name's part -> peak.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "L4": 121e12}


def peak_operations(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second that the device's maker states for `dtype`; None where they are not known."""
    if device.type != "cuda" or dtype is torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def operations(model: MiniGPT4, tokens: float, targets: float, pictures: float) -> float:
    """Operations that a step needs in matrix products with weights; attention itself is left out, as usual.

    `tokens` are those that the LLM reads: all but padding and each row's last. A token takes 2 per weight forwards and
    as many backwards (to its own input: weights are frozen); the head, and what a packed LLM's last layer does to each
    token by itself, work for targets only, and the vision side for `pictures` that are not cached, forwards.
    """
    blip2 = model.blip2
    head = blip2.language_model.get_output_embeddings().weight.numel()
    body = _weights(blip2.language_model.base_model) - blip2.language_model.get_input_embeddings().weight.numel()
    at_targets = sum(map(_weights, model.packer.last_layer_modules)) if model.packer else 0
    work = 4.0 * ((body - at_targets) * tokens + (at_targets + head) * targets)
    if pictures:
        vision = blip2.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        per_picture = _weights(blip2.vision_model) * patches + _weights(blip2.qformer) * model.num_query_tokens
        work += 2.0 * per_picture * pictures
    return work


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_mb(device: torch.device) -> float:
    """Memory in MB: on CUDA the most that tensors have taken so far, else what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return psutil.Process().memory_info().rss / 1e6
