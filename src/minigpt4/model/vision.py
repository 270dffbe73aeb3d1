"""The frozen vision side: images in, features out. It can be loaded without an LLM, to cache features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.images import open_image, to_pixels
from minigpt4.model import parts, sources
from minigpt4.model.graph import NO_LLM, make_graph, put_tensors
from minigpt4.model.lora import Trained
from minigpt4.model.precision import Placement
from minigpt4.model.record import ADAPTERS_FILE, Origin, check_origin, load_tensors, read_record

if TYPE_CHECKING:
    from transformers import Blip2ForConditionalGeneration


#: Images that are encoded together when features are cached.
ENCODE_BATCH = 64


class VisionSide(torch.nn.Module):
    """Vision encoder and Q-Former of a BLIP-2 graph.

    Attributes: `blip2` (the network), `image_processor`, `origin` (where the parts came from), `trained` (what the
    stages train, which may include the Q-Former).
    """

    blip2: Blip2ForConditionalGeneration

    def __init__(self, blip2: Any, image_processor: Any, origin: Origin, trained: Trained) -> None:
        super().__init__()
        self.blip2 = blip2
        self.image_processor = image_processor
        self.origin = origin
        self.trained = trained
        self._trained_vision = ""  # the vision side's fingerprint if its Q-Former was trained

    @torch.no_grad()
    def encode_images(self, images: Sequence[str | Path | bytes | Image.Image]) -> Tensor:
        """Images -> features (n, num_query_tokens, d_qformer). Raises UserError if one cannot be read."""
        opened = [open_image(image) for image in images]
        return self.encode_pixels(torch.from_numpy(to_pixels(self.image_processor, opened)))

    @torch.no_grad()
    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Preprocessed images (n, 3, h, w) -> features (n, num_query_tokens, d_qformer) in the model's dtype."""
        return self.run_qformer(self.blip2.vision_model(pixel_values.to(self.device)).last_hidden_state)

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
    def vision_fingerprint(self) -> str:
        """Changes when the weights of the vision side do: the key for cached features."""
        return self._trained_vision or self.origin.vision_fingerprint

    def adapter_names(self) -> list[str]:
        """Names of the parameters that this variant trains in addition to the projection."""
        prefixes = ("blip2.qformer.", "blip2.query_tokens") if self.trained.qformer else ()
        return [name for name, _ in self.named_parameters() if name.startswith(("lora.", *prefixes))]

    def put_adapters(self, tensors: Mapping[str, Tensor], name: str) -> None:
        """Load a trained Q-Former or LoRA matrices, in the model's dtypes.

        Raises UserError if they do not fit; `name` is the alignment's.
        """
        parameters = {key: self.get_parameter(key) for key in self.adapter_names()}
        if {k: t.shape for k, t in tensors.items()} != {k: p.shape for k, p in parameters.items()}:
            raise UserError(f"{name}: {ADAPTERS_FILE} does not fit the parts that it names; train the alignment again")
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(tensors[key])
        if self.trained.qformer:
            self._trained_vision = self.trained_vision()

    def trained_vision(self) -> str:
        """The fingerprint of a vision side whose Q-Former was trained."""
        mark = hashlib.sha256(self.origin.vision_fingerprint.encode())
        tensors = {name: self.get_parameter(name).detach().cpu() for name in self.adapter_names()}
        vision = {name: t for name, t in tensors.items() if name.startswith("blip2.")}
        mark.update(sources.fingerprint(vision).encode())
        return mark.hexdigest()


def load_vision_side(
    name_or_path: str | Path, *, dtype: str | torch.dtype | None = None, device: str | torch.device | None = None
) -> VisionSide:
    """The vision side of an alignment or an export, without reading the LLM.

    Its features and fingerprint are those of `MiniGPT4.from_pretrained` with these arguments. Raises UserError if
    anything is missing, broken, or does not fit together.
    """
    source = sources.resolve(name_or_path)
    record = read_record(source)
    origin = record.origin
    placement = Placement.resolve(dtype, device)
    whole = sources.find_file(source, "config.json") is not None  # an export holds the parts itself
    vision = parts.load_vision_qformer(source if whole else origin.vision_qformer, record.qformer)
    if not whole:
        check_origin(str(name_or_path), origin, replace(origin, vision_fingerprint=vision.fingerprint))
    blip2 = make_graph(vision, NO_LLM, 0)
    put_tensors(blip2, vision, str(name_or_path), placement.dtype)
    del blip2.language_model, blip2.language_projection
    trained = Trained(qformer=record.trained.qformer and not whole)
    side = VisionSide(blip2.to(placement.device), vision.image_processor, origin, trained)
    if trained.qformer:
        tensors = load_tensors(sources.find_file(source, ADAPTERS_FILE), str(name_or_path), ADAPTERS_FILE)
        side.put_adapters({key: t for key, t in tensors.items() if key.startswith("blip2.")}, str(name_or_path))
    return side.requires_grad_(False).eval()
