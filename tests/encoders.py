"""Small random vision encoders, written as transformers does, alone and with a Q-Former."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from minigpt4.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig

PICTURES = [Image.radial_gradient("L").convert("RGB").resize((90, 61)), Image.linear_gradient("L").convert("RGB")]


def efficientnet(where: Path) -> Any:
    model = EfficientNetLite(EfficientNetLiteConfig(width_coefficient=0.2, hidden_size=16, image_size=100))
    model.save_pretrained(where)
    size = {"height": 100, "width": 100}
    SiglipImageProcessorPil(size=size, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3).save_pretrained(where)
    return model


def with_qformer(encoder: Path, width: int, vision: Path) -> None:
    """Write a vision side of this encoder with a Q-Former."""
    config = Blip2QFormerConfig(
        hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, encoder_hidden_size=width,
        vocab_size=8, initializer_range=0.2,
    )  # fmt: skip
    tensors = {f"vision_model.{name}": t for name, t in AutoModel.from_pretrained(encoder).state_dict().items()}
    tensors |= {f"qformer.{name}": t for name, t in Blip2QFormerModel(config).state_dict().items()}
    vision.mkdir()
    save_file(tensors | {"query_tokens": torch.randn(1, 3, 24)}, vision / "model.safetensors")
    described = {
        "model_type": "blip-2", "num_query_tokens": 3, "qformer_config": config.to_dict(),
        "vision_config": json.loads((encoder / "config.json").read_text()),
    }  # fmt: skip
    (vision / "config.json").write_text(json.dumps(described))
    shutil.copy(encoder / "preprocessor_config.json", vision)
