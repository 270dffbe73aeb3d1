"""Vision encoders: BLIP-2's own, others of transformers, EfficientNet-Lite. Tokens without a place come first."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, Blip2VisionConfig

from minigpt4.errors import UserError
from minigpt4.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig

AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite)


def encoder_config(found: Mapping[str, Any], name: str | Path) -> Any:
    """The configuration of the encoder that a config.json describes, alone or in a CLIP or BLIP-2. Raises UserError."""
    own = Blip2VisionConfig.model_type
    if found.get("model_type") == "blip-2":
        found = found["vision_config"]
        found = {**found, "model_type": found.get("model_type") or own}
    if found.get("model_type") == own:
        return Blip2VisionConfig(**found)
    config = AutoConfig.for_model(**found)
    config = getattr(config, "vision_config", config)
    if getattr(MODEL_MAPPING.get(type(config), None), "main_input_name", None) != "pixel_values":
        raise UserError(f"{name}: is no vision encoder (model_type {found.get('model_type')!r:.40}); give one")
    return config


def measure(config: Any, side: int, name: str | Path) -> None:
    """Note in `config` its images' side in pixels and the tokens of one. Raises UserError, and what encoders raise."""
    with torch.device("meta"):
        encoder = AutoModel.from_config(config, trust_remote_code=False).to("meta")
        seen = encoder(pixel_values=torch.empty(1, 3, side, side, device="meta")).last_hidden_state
    if seen.dim() != 3 or seen.shape[2] != config.hidden_size:
        raise UserError(f"{name}: a {config.model_type!r} encoder makes no row of tokens of an image; give another one")
    config.input_size, config.output_tokens = side, seen.shape[1]


def image_tokens(config: Any) -> tuple[int, int]:
    """The side of an encoder's images in pixels, and the tokens that it makes of one."""
    if isinstance(config, Blip2VisionConfig):
        return config.image_size, (config.image_size // config.patch_size) ** 2 + 1
    return config.input_size, config.output_tokens


def placeless(tokens: int) -> int:
    """How many of an encoder's tokens come before the patches: what is more than a square."""
    return tokens - math.isqrt(tokens) ** 2


def make_encoder(config: Any) -> Any:
    """The network of an encoder without weights, on torch's meta device."""
    with torch.device("meta"):
        encoder = AutoModel.from_config(config, trust_remote_code=False)
    for module in encoder.modules():  # what no file holds, such as the numbers of positions, is real
        if names := module._non_persistent_buffers_set:
            for name in names:
                setattr(module, name, torch.empty_like(getattr(module, name), device="cpu"))
            encoder._init_weights(module)
    return encoder
