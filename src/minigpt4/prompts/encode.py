"""From text with image marks to token ids with image placeholders.

Knows nothing about models or images: an image is `num_query_tokens` placeholders in a row. Every piece between two
marks is tokenised on its own, as in the original implementation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minigpt4.prompts.templates import IMAGE_MARK, Message, Template, without_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, num_query_tokens: int, image_token_id: int, bos: bool = True
) -> list[int]:
    """Token ids of `text`, with `num_query_tokens` times `image_token_id` in place of every `<ImageHere>`.

    `bos` puts the tokenizer's BOS (if it has one) before everything; no other special token is added. Special tokens
    that the text spells out are taken as such: text from outside goes through `plain` first.
    """
    ids = [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []
    for i, piece in enumerate(text.split(IMAGE_MARK)):
        if i > 0:
            ids += [image_token_id] * num_query_tokens
        if piece:
            ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The spellings of all special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def plain(tokenizer: PreTrainedTokenizerBase, text: str, stop: str = "") -> str:
    """`text` without the spellings of control tokens, nor of a template's `stop` string.

    Each becomes a space, so that nobody can smuggle in the end of a turn, or an image that is not there.
    """
    control = (control_tokens(tokenizer) | {stop}) - {""}
    pattern = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True))
    return re.sub(pattern, " ", text) if pattern else text


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    messages: Sequence[Message],
    num_query_tokens: int,
    image_token_id: int,
) -> list[int]:
    """Token ids of a whole conversation up to the place where the next answer starts.

    Each answer is tokenised apart from what stands around it, as it was when it was generated, so the ids equal those
    that a chat collects in its cache.
    """
    messages = [replace(message, text=plain(tokenizer, message.text, template.stop)) for message in messages]
    first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
    pieces = [template.prompt(messages[: first + 1])]
    template.prompt(messages)  # checks the order of the turns
    for answer, question in zip(messages[first + 1 :: 2], messages[first + 2 :: 2], strict=True):
        pieces += [without_marks(answer.text), template.continuation(question)]
    ids: list[int] = []
    for i, piece in enumerate(pieces):
        ids += encode(tokenizer, piece, num_query_tokens, image_token_id, bos=i == 0)
    return ids
