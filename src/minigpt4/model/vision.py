"""The frozen vision side: images in, features out. It can be loaded without an LLM, to cache features."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.images import open_image, to_pixels
from minigpt4.model import parts, sources
from minigpt4.model.graph import NO_LLM, make_graph, put_tensors
from minigpt4.model.loading import ADAPTERS_FILE, Origin, load_tensors, read_record
from minigpt4.model.lora import Trained
from minigpt4.model.precision import Placement

ENCODE_BATCH = 64  # images that are encoded together when features are cached


class VisionSide(torch.nn.Module):
    """Vision encoder and Q-Former of a BLIP-2 graph."""

    def __init__(self, blip2: Any, image_processor: Any, origin: Origin, trained: Trained) -> None:
        super().__init__()
        self.blip2 = blip2
        self.image_processor = image_processor
        self.origin = origin  # where the frozen parts came from
        self.trained = trained  # what the stages train
        self.familiar: dict[str, Tensor] = {}  # the measure of `is_unfamiliar`; empty if nobody made it
        self._trained_vision = ""  # the vision side's fingerprint if its Q-Former was trained

    def encode_images(self, images: Sequence[str | Path | bytes | Image.Image]) -> Tensor:
        """Images -> features (n, num_query_tokens, d_qformer). Raises UserError if one cannot be read."""
        opened = [open_image(image) for image in images]
        return self.encode_pixels(torch.from_numpy(to_pixels(self.image_processor, opened)))

    @torch.no_grad()
    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Preprocessed images (n, 3, h, w) -> features (n, num_query_tokens, d_qformer) in the model's dtype."""
        return self.run_qformer(self.run_encoder(pixel_values))

    @torch.no_grad()
    def run_encoder(self, pixel_values: Tensor) -> Tensor:
        """Preprocessed images (n, 3, h, w) -> the vision encoder's tokens (n, p, d_vision): its patches come last."""
        encoder = self.blip2.vision_model
        return encoder(pixel_values.to(self.device, encoder.dtype)).last_hidden_state

    @torch.no_grad()
    def is_unfamiliar(self, image: str | Path | bytes | Image.Image) -> bool:
        """Whether an image is unlike those that the model learnt from, by the encoder's mean (`tools/familiar.py`)."""
        if not self.familiar:
            return False
        pixels = torch.from_numpy(to_pixels(self.image_processor, [open_image(image)]))
        mean = self.run_encoder(pixels).float().mean(1).cpu()
        return bool(mean @ self.familiar["direction"] > self.familiar["limit"])

    def run_qformer(self, patches: Tensor) -> Tensor:
        """The vision encoder's patches (n, p, d_vision) -> features (n, num_query_tokens, d_qformer)."""
        queries = self.blip2.query_tokens.expand(len(patches), -1, -1)
        seen = patches.float() if queries.dtype is torch.float32 else patches  # a trained one is in float32
        features = self.blip2.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        return features.to(patches.dtype)

    @property
    def num_query_tokens(self) -> int:
        """Image tokens of an image in the LLM's input."""
        return self.blip2.config.num_query_tokens

    @property
    def device(self) -> torch.device:
        return self.blip2.query_tokens.device

    @property
    def has_qformer(self) -> bool:
        """False for the paper's variant that projects groups of the encoder's patches (section 4.4)."""
        return self.blip2.config.qformer_config.num_hidden_layers > 0

    @property
    def group(self) -> int:
        """How many patches an image token holds without a Q-Former."""
        return getattr(self.blip2.qformer, "group", parts.PATCHES_PER_TOKEN)

    @property
    def vision_fingerprint(self) -> str:
        """Changes when the weights of the vision side do: the key for cached features."""
        return self._trained_vision or self.origin.vision_fingerprint

    def adapter_names(self) -> list[str]:
        """Names of the parameters that this variant trains in addition to the projection."""
        prefixes = ("blip2.qformer.", "blip2.query_tokens") if self.trained.qformer else ()
        return [name for name, _ in self.named_parameters() if name.startswith(("lora.", *prefixes))]

    def put_adapters(self, tensors: Mapping[str, Tensor], name: str) -> None:
        """Load a trained Q-Former or LoRA matrices of the alignment `name`. Raises UserError if they do not fit."""
        parameters = {key: self.get_parameter(key) for key in self.adapter_names()}
        if {k: t.shape for k, t in tensors.items()} != {k: p.shape for k, p in parameters.items()}:
            raise UserError(f"{name}: {ADAPTERS_FILE} does not fit the parts that it names; train the alignment again")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])
        if self.trained.qformer:
            names = [name for name in self.adapter_names() if name.startswith("blip2.")]
            vision = sources.fingerprint({name: self.get_parameter(name).detach().cpu() for name in names})
            self._trained_vision = hashlib.sha256((self.origin.vision_fingerprint + vision).encode()).hexdigest()


def load_vision_side(
    name_or_path: str | Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> VisionSide:
    """The vision side that `MiniGPT4.from_pretrained` would load; the LLM is not read. Raises UserError as it does."""
    record, placement = read_record(name_or_path), Placement.resolve(dtype, device)
    vision = parts.load_vision_qformer(record.parts[0], record.qformer, record.group)
    record.check_parts(name_or_path, vision.fingerprint)
    blip2 = make_graph(vision, NO_LLM, 0)
    put_tensors(blip2, vision, str(name_or_path), placement.dtype)
    del blip2.language_model, blip2.language_projection
    trained = Trained(qformer=record.trained.qformer)
    side = VisionSide(blip2.to(placement.device), vision.image_processor, record.origin, trained)
    side.familiar = vision.familiar
    if trained.qformer:
        tensors = load_tensors(name_or_path, ADAPTERS_FILE)
        side.put_adapters({key: t for key, t in tensors.items() if key.startswith("blip2.")}, str(name_or_path))
    return side.requires_grad_(False).eval()
