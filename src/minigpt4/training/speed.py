"""Training speed: compiled layers, attention, and the work of a step.

None of it changes what is computed. `minigpt4 train` and `bench/training.py` use the same functions.
"""

import os
import shutil
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.modeling_layers import GradientCheckpointingLayer

from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.encoders import image_tokens
from minigpt4.model.quantization import EightBitLinear

#: For layers in 8 bits: what takes more operations than this is kept where it is needed twice, as in rounding, which
#: reads a row for its scale first. By default a CPU computes even an activation anew (torch 2.13).
ROUNDING = {"realize_cpu_opcount_threshold": 5}

#: transformers' name for `attention_written_out`.
WRITTEN_OUT = "minigpt4_written_out"

#: Seconds that compiling takes at least (20 to 26 on 2 cores), and that it saves by core for each number of a token's
#: state in a layer: measured at 17, 90 and 369 million parameters in bfloat16, 7 to 9.6 ns on 2 cores.
COMPILING, SAVED = 25, 16e-9


def saved_by_compiling(model: MiniGPT4, tokens: float) -> float:
    """Seconds that compiled layers save, about, of training on so many tokens; 0 without a compiler or on a GPU."""
    config, llm = model.blip2.config.text_config, model.blip2.language_model
    if model.device.type != "cpu" or not has_compiler():
        return 0.0
    rounding = 6 if _in_8_bits(llm) else 1  # 490 ms a step become 194 in int8 at 100M, 349 become 305 in bfloat16
    return rounding * SAVED * tokens * config.num_hidden_layers * config.hidden_size / torch.get_num_threads()


def has_compiler() -> bool:
    return any(map(shutil.which, ("g++", "clang++", "c++", "cl")))


def make_fast(model: MiniGPT4, compiled: bool = False) -> None:
    """Choose how attention is computed, and compile the LLM's layers (and an 8-bit tower's). Raises UserError."""
    llm, on_cpu = model.blip2.language_model, model.device.type == "cpu"
    if compiled and on_cpu and not has_compiler():
        raise UserError("compile=true needs a C++ compiler on the CPU; install g++, or leave it out")
    if on_cpu:
        # PyTorch's fused attention is slow backwards on a CPU at these lengths: it takes a third of a step in bfloat16.
        llm.set_attn_implementation("eager")
        if model.dtype is torch.bfloat16:  # and forwards twice as slow as plain products, at an image's 200 patches
            model.blip2.vision_model.set_attn_implementation("eager")
    _ = model.packer  # tried now, for what is compiled is compiled with it
    if compiled:
        tower = model.blip2.vision_model
        # Else not worth its minute: compiled, the tower in bfloat16 takes as long as before (docs/notes/speed.md).
        layers = [module for module in tower.modules() if isinstance(module, GradientCheckpointingLayer)]
        of_tower = layers if _in_8_bits(tower) else []
        if of_tower and on_cpu:
            tower.set_attn_implementation(WRITTEN_OUT)
        for layer in (*llm.base_model.layers, *of_tower):
            layer.compile(dynamic=True, options=ROUNDING if _in_8_bits(layer) else None)
        model.compiled = True


def attention_written_out(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **others: Any
) -> tuple[Tensor, None]:
    """Attention without a mask, (b, h, n, d) -> (b, n, h, d), in a form that the compiler makes one pass of."""
    scores = query @ key.transpose(-1, -2)
    largest = scores.amax(-1, keepdim=True)
    weights = ((scores.float() - largest.float()) * query.shape[-1] ** -0.5).exp()
    mixed = (weights.to(value.dtype) @ value) / weights.sum(-1, keepdim=True)
    return mixed.to(value.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register(WRITTEN_OUT, attention_written_out)


def _in_8_bits(part: torch.nn.Module) -> bool:
    return any(isinstance(module, EightBitLinear) for module in part.modules())


#: Dense bfloat16 (and float16) tensor-core operations per second, from NVIDIA's data sheets; a name's part -> peak.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12, "L4": 121e12}


def peak_operations(device: torch.device, dtype: torch.dtype) -> float | None:
    """Operations per second that the device's maker states for `dtype`; None where they are not known."""
    if device.type != "cuda" or dtype is torch.float32:
        return None
    return next((peak for part, peak in PEAKS.items() if part in torch.cuda.get_device_name(device)), None)


def operations(model: MiniGPT4, tokens: float, targets: float, images: float) -> float:
    """Operations that a step needs in matrix products with weights; attention itself is left out, as usual.

    `tokens` are those that the LLM reads: all but padding and each row's last. A token takes 2 per weight forwards and
    as many backwards (to its own input: weights are frozen); the head, and what a packed LLM's last layer does to each
    token by itself, work for targets only, and the vision side for `images` that are not cached, forwards.
    """
    blip2 = model.blip2
    head = blip2.language_model.get_output_embeddings().weight.numel()
    body = _weights(blip2.language_model.base_model) - blip2.language_model.get_input_embeddings().weight.numel()
    at_targets = sum(map(_weights, model.packer.last_layer_modules)) if model.packer else 0
    work = 4.0 * ((body - at_targets) * tokens + (at_targets + head) * targets)
    if images:
        patches = image_tokens(blip2.config.vision_config)[1]
        per_image = _weights(blip2.vision_model) * patches + _weights(blip2.qformer) * model.num_query_tokens
        work += 2.0 * per_image * images
    return work


def _weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def memory_mb(device: torch.device) -> float:
    """Memory in MB: on CUDA the most that tensors have taken so far, else what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return psutil.Process().memory_info().rss / 1e6


def keep_little_code() -> None:
    """Bound what oneDNN, and PyTorch above it, keep for each shape of a product: by default 0.3 GB each.

    To be called before the first product, for then both look how much that may be. A step uses some 30 shapes.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "256")
