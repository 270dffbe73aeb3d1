"""Answers from a model: `generate` for many prompts in one batch, `stream` for one answer as pieces of text.

Here prompts and images become token ids and features; `batching.py` decodes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor

from minigpt4.errors import UserError
from minigpt4.generation.batching import decode, decode_stream
from minigpt4.generation.decoding import Decoding
from minigpt4.generation.stopping import Answer
from minigpt4.images import open_image
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message, Template, get_template

if TYPE_CHECKING:
    from minigpt4.model.aligned import AlignedModel

ImageSource = str | Path | bytes | Image.Image
#: A question, or a conversation that ends with a question.
Prompt = str | Sequence[Message]


def generate(
    model: AlignedModel,
    images: Any = None,
    prompts: Prompt | Sequence[Prompt] = (),
    *,
    features: Tensor | Sequence[Tensor] | None = None,
    template: str | Template | None = None,
    **settings: Any,
) -> list[str]:
    """Answers to all `prompts` in one batch; see `answers` for the arguments."""
    found = answers(model, images, prompts, features=features, template=template, **settings)
    return [answer.text for answer in found]


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

    `prompts`: a list of questions (str) or of conversations (list of Message) that end with one, or a single one, which
    then is put to every picture of `images`.
    `images`: None, one picture for all prompts, or a list with one entry for each prompt: a picture, a list of
    pictures, or None. A picture is a path, bytes, or a Pillow image; equal ones are encoded once.
    `features`: instead of images, what `model.encode_images` made of them: `(prompts or 1, q, d_qformer)`, or a list
    with one `(pictures, q, d_qformer)` tensor for each prompt.
    `settings`: the fields of `Decoding`. Raises UserError for what does not fit together.
    """
    decoding = Decoding.from_settings(settings)
    chat_format = get_template(template) if template is not None else model.template
    if images is not None and features is not None:
        raise UserError("give either images or their features, not both")
    pictured = len(features) if features is not None else len(images) if isinstance(images, (list, tuple)) else 1
    conversations = _conversations(prompts, pictured)
    if not conversations:
        raise UserError("there is nothing to answer: give at least one prompt and, if in a list, at least one picture")
    if features is None:
        per_prompt = encode_pictures(model, _pictures(images, len(conversations)))
    else:
        per_prompt = _features(features, len(conversations))
    ids = []
    for conversation, pictures in zip(conversations, per_prompt, strict=True):
        messages = _messages(conversation, len(pictures))
        ids.append(encode_chat(model.tokenizer, chat_format, messages, model.num_query_tokens, model.image_token_id))
    return decode(model, ids, per_prompt, decoding, chat_format.stop)


def stream(
    model: AlignedModel,
    images: Any = None,
    prompt: Prompt = "",
    *,
    features: Tensor | None = None,
    template: str | Template | None = None,
    **settings: Any,
) -> Generator[str, None, Answer]:
    """The answer to one prompt, in pieces of text as they come; joined they are what `generate` returns.

    `images`: None, a picture, or a list of pictures; `features`: `(pictures, q, d_qformer)` instead.
    """
    decoding = Decoding.from_settings(settings)
    chat_format = get_template(template) if template is not None else model.template
    with torch.no_grad():
        if features is None:
            [features] = encode_pictures(model, [as_list(images)])
    messages = _messages(prompt, len(features))
    ids = encode_chat(model.tokenizer, chat_format, messages, model.num_query_tokens, model.image_token_id)
    return decode_stream(model, ids, features, decoding, chat_format.stop)


def _conversations(prompts: Prompt | Sequence[Prompt], pictured: int) -> list[Prompt]:
    """All prompts; a single one as many times as there are prompts' pictures to put it to."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], Message)):
        return [cast(Prompt, prompts)] * pictured
    return cast(list[Prompt], list(prompts))


def _messages(prompt: Prompt, images: int) -> list[Message]:
    if isinstance(prompt, str):
        return [Message("user", prompt, images)]
    messages = list(prompt)
    counted = sum(message.images for message in messages)
    if counted == 0 and images and messages:  # who asks about a picture seldom says that it belongs to the first turn
        first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
        messages[first] = Message(messages[first].role, messages[first].text, images)
    elif counted != images:
        raise UserError(f"the conversation speaks of {counted} images, but {images} were given")
    return messages


def as_list(images: Any) -> list[ImageSource]:
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _pictures(images: Any, count: int) -> list[list[ImageSource]]:
    """For each of `count` prompts its pictures."""
    if not isinstance(images, (list, tuple)):
        return [as_list(images)] * count
    if len(images) != count:
        raise UserError(
            f"{len(images)} images were given for {count} prompts; give one picture (or list of pictures) per prompt, "
            "or a single picture, not in a list, for all of them"
        )
    return [as_list(entry) for entry in images]


def encode_pictures(
    model: AlignedModel, pictures: Sequence[Sequence[ImageSource]], known: dict[bytes, Tensor] | None = None
) -> list[Tensor]:
    """For each prompt the features `(pictures, q, d_qformer)` of its pictures.

    What has the same pixels is encoded once, and not at all if its features are in `known` (by `content_key`), which
    takes up the new ones. Raises UserError for a picture that cannot be read; `known` is then as it was.
    """
    known = {} if known is None else known
    keys: dict[Any, bytes] = {}  # by path, bytes or identity, so that a picture for many prompts is read once
    new: dict[bytes, Image.Image] = {}
    sources = [[id(p) if isinstance(p, Image.Image) else p for p in row] for row in pictures]
    for row, source_row in zip(pictures, sources, strict=True):
        for picture, source in zip(row, source_row, strict=True):
            if source not in keys:
                image = open_image(picture)
                keys[source] = content_key(image)
                if keys[source] not in known:
                    new[keys[source]] = image
    if new:
        known.update(zip(new, model.encode_images(list(new.values())), strict=True))
    none = no_features(model)
    return [torch.stack([known[keys[s]] for s in row]) if row else none for row in sources]


def content_key(image: Image.Image) -> bytes:
    """The SHA-256 of a picture's mode, size and pixels: the same for the same picture in another file or format."""
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    return digest.digest()


def no_features(model: AlignedModel) -> Tensor:
    """The features (0, q, d_qformer) of no picture."""
    width = model.blip2.config.qformer_config.hidden_size
    return torch.zeros((0, model.num_query_tokens, width), dtype=model.dtype, device=model.device)


def _features(features: Tensor | Sequence[Tensor], count: int) -> list[Tensor]:
    if len(features) == 1 and count > 1:
        features = [features[0]] * count
    if len(features) != count:
        raise UserError(f"features of {len(features)} images were given for {count} prompts; give one for each")
    return [entry[None] if entry.dim() == 2 else entry for entry in features]
