"""Answers to prompts about images: here both become token ids and features, which `batching.py` decodes."""

import hashlib
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.generation.batching import decode
from minigpt4.generation.decoding import Decoding
from minigpt4.generation.stopping import Answer
from minigpt4.images import open_image
from minigpt4.model.aligned import AlignedModel
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message, Template, get_template

ImageSource = str | Path | bytes | Image.Image
#: A question, or a conversation that ends with a question.
Prompt = str | Sequence[Message]


@torch.no_grad()
def answers(
    model: AlignedModel,
    images: Any = None,
    prompts: Prompt | Sequence[Prompt] = (),
    *,
    features: Tensor | Sequence[Tensor] | None = None,
    template: str | Template | None = None,
    **settings: Any,
) -> list[Answer]:
    """One answer for each prompt, decoded together; each stops at its own end.

    `prompts`: a list of questions (str) or of conversations (list of Message) that end with one, or a single one for
    every image of `images`.
    `images`: None, one image for all prompts, or a list with one entry for each prompt: an image, a list of images, or
    None. An image is a path, bytes, or a Pillow image; equal ones are encoded once.
    `features`: instead of images, their `model.encode_images`: `(prompts or 1, q, d_qformer)`, or a list with one
    `(images, q, d_qformer)` tensor for each prompt.
    `settings`: the fields of `Decoding`. Raises UserError for arguments that do not fit together.
    """
    decoding = Decoding.from_settings(settings, model.decoding)
    chat_format = get_template(model.template if template is None else template)
    if images is not None and features is not None:
        raise UserError("give either images or their features, not both")
    shown = len(features) if features is not None else len(images) if isinstance(images, (list, tuple)) else 1
    alone = isinstance(prompts, str) or (prompts and isinstance(prompts[0], Message))
    conversations: list[Any] = [prompts] * shown if alone else list(prompts)
    if not conversations:
        raise UserError("there is nothing to answer: give at least one prompt and, if in a list, at least one image")
    if features is None:
        per_prompt = encode_images(model, _images(images, len(conversations)))
    else:
        per_prompt = _features(features, len(conversations))
    ids = [
        encode_chat(
            model.tokenizer, chat_format, _messages(conversation, len(seen)),
            model.num_query_tokens, model.image_token_id,
        )
        for conversation, seen in zip(conversations, per_prompt, strict=True)
    ]  # fmt: skip
    return decode(model, ids, per_prompt, decoding, chat_format.stop)


def _messages(prompt: Prompt, images: int) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt, images)]
    messages = list(prompt)
    counted = sum(message.images for message in messages)
    if counted == 0 and images and messages:  # few callers say that the image belongs to the first turn
        first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
        messages[first] = Message(messages[first].role, messages[first].text, images)
    elif counted != images:
        raise UserError(f"the conversation speaks of {counted} images, but {images} were given")
    return messages


def as_list(images: Any) -> list[ImageSource]:
    return list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]


def _images(images: Any, count: int) -> list[list[ImageSource]]:
    given = images if isinstance(images, (list, tuple)) else [images] * count
    if len(given) != count:
        one_for_each = "give one image or list of images for each, or a single image, not in a list, for all"
        raise UserError(f"{len(given)} images were given for {count} prompts; {one_for_each}")
    return [as_list(entry) for entry in given]


def encode_images(
    model: AlignedModel, images: Sequence[Sequence[ImageSource]], known: dict[bytes, Tensor] | None = None
) -> list[Tensor]:
    """For each prompt its images' features (images, q, d_qformer), encoded once if not `known`. Raises UserError."""
    known = {} if known is None else known
    # By path, bytes or identity, so that an image for many prompts is read once.
    sources = [[id(image) if isinstance(image, Image.Image) else image for image in row] for row in images]
    given = dict(zip(chain(*sources), chain(*images), strict=True))
    opened = {source: open_image(image) for source, image in given.items()}
    keys = {source: content_key(image) for source, image in opened.items()}
    new = {keys[source]: image for source, image in opened.items() if keys[source] not in known}
    if new:
        known.update(zip(new, model.encode_images(list(new.values())), strict=True))
    return [torch.stack([known[keys[s]] for s in row]) if row else no_features(model) for row in sources]


def content_key(image: Image.Image) -> bytes:
    """The SHA-256 of an image's mode, size and pixels: the same for the same image in another file or format."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).digest()


def no_features(model: AlignedModel) -> Tensor:
    """The features (0, q, d_qformer) of no image."""
    width = model.blip2.config.qformer_config.hidden_size
    return torch.zeros((0, model.num_query_tokens, width), dtype=model.dtype, device=model.device)


def _features(features: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    if len(features) == 1 and count > 1:
        features = [features[0]] * count
    if len(features) != count:
        raise UserError(f"features of {len(features)} images were given for {count} prompts; give one for each")
    return [entry[None] if entry.dim() == 2 else entry for entry in features]
