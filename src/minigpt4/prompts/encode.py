"""From text with image marks to token ids; an image is `num_query_tokens` placeholders in a row.

Each piece between two marks is tokenised on its own, as in the original implementation. Sentencepiece tokenizers
(Llama's, Vicuna's, Mistral's) put a space before every text. In the training text of the released checkpoints it stands
at the start of each piece and after each special token only, so with these tokenizers pieces are never cut further.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from minigpt4.errors import UserError
from minigpt4.prompts.templates import IMAGE_MARK, Message, Template, without_marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Marks the end of a piece in a rendered chat; an exported tokenizer cuts there and drops it. Unicode reserves this
#: code point for internal use, so no text contains it.
CUT = "\ufdd0"


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, num_query_tokens: int, image_token_id: int, bos: bool = True
) -> list[int]:
    """Token ids of `text`, with `num_query_tokens` times `image_token_id` in place of every `<ImageHere>`.

    `bos` puts the tokenizer's BOS (if it has one) first; without `bos`, `text` continues earlier text, so the
    tokenizer's own space is left out. Special tokens spelled out in the text are encoded as such: text from users must
    go through `plain` first.
    """
    ids = [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []
    for i, piece in enumerate(text.split(IMAGE_MARK)):
        if i > 0:
            ids += [image_token_id] * num_query_tokens
        ids += _encode_piece(tokenizer, piece, goes_on=i == 0 and not bos)
    return ids


def puts_space_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if the tokenizer puts a space before every text (sentencepiece's dummy prefix)."""
    first = tokenizer.convert_ids_to_tokens(_ids(tokenizer, "a")[:1])
    return bool(first) and first[0].startswith(("\u2581", "\u0120"))  # sentencepiece's and byte-level BPE's space


def _encode_piece(tokenizer: PreTrainedTokenizerBase, piece: str, goes_on: bool) -> list[int]:
    if not piece or not puts_space_first(tokenizer):
        return _ids(tokenizer, piece)
    # Newer tokenizers put the space before the first word only, not after special tokens: encode stretches alone.
    special = "|".join(re.escape(token) for token in sorted(control_tokens(tokenizer), key=len, reverse=True))
    ids: list[int] = []
    for i, stretch in enumerate(re.split(f"({special})", piece) if special else [piece]):
        if goes_on and i == 0 and stretch:
            before = "\n"  # takes the space; a token of its own in every such vocabulary
            ids += _ids(tokenizer, before + stretch)[len(_ids(tokenizer, before)) :]
        elif stretch:
            ids += _ids(tokenizer, stretch)
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The spellings of all special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def check_template(tokenizer: PreTrainedTokenizerBase, template: Template, name: str) -> None:
    """Raises UserError if the tokenizer of the LLM `name` lacks tokens that the template needs."""
    written = (template.system, template.system_end, template.user, template.assistant, template.image, template.stop)
    for token in re.findall(r"</?s>|<\|\w+\|>", "".join(written)):
        if token not in tokenizer.get_vocab():
            raise UserError(
                f"{name}: its tokenizer has no token {token}, which the chat template {template.name!r} needs; "
                "give another template, or the LLM that the template belongs to"
            )
    for text in written:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in _ids(tokenizer, without_marks(text)):
            raise UserError(
                f"{name}: its tokenizer cannot write {without_marks(text).strip()!r}, a part of the chat template "
                f"{template.name!r}; give another template, or an LLM whose tokenizer knows these characters"
            )


def plain(tokenizer: PreTrainedTokenizerBase, text: str, *reserved: str) -> str:
    """`text` with a space in place of control tokens and the `reserved` strings of a template.

    Otherwise a text could end a turn, or claim an image that is not there.
    """
    control = control_tokens(tokenizer).union(reserved) - {""}
    pattern = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True))
    return re.sub(pattern, " ", text) if pattern else text


def plain_message(tokenizer: PreTrainedTokenizerBase, template: Template, message: Message) -> Message:
    """The message as `plain` text; tags stay in system texts, as the released one contains a harmless `<Img>`."""
    tags = () if message.role == "system" else template.tags
    return replace(message, text=plain(tokenizer, message.text, template.stop, *tags))


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    messages: Sequence[Message],
    num_query_tokens: int,
    image_token_id: int,
) -> list[int]:
    """Token ids of a whole conversation up to the next answer.

    Each answer is tokenised on its own, as it was generated, so the ids equal those in a chat's KV cache. Only if the
    tokenizer puts a space before every text (`puts_space_first`), the conversation is tokenised whole, as the original
    does: these are the ids that the released checkpoints were trained on.
    """
    messages = [plain_message(tokenizer, template, message) for message in messages]
    if puts_space_first(tokenizer):
        return encode(tokenizer, template.prompt(messages), num_query_tokens, image_token_id)
    first = next((i for i, message in enumerate(messages) if message.role == "user"), 0)
    pieces = [template.prompt(messages[: first + 1])]
    template.prompt(messages)  # checks the order of the turns
    for answer, question in zip(messages[first + 1 :: 2], messages[first + 2 :: 2], strict=True):
        pieces += [without_marks(answer.text), template.continuation(question)]
    ids: list[int] = []
    for i, piece in enumerate(pieces):
        ids += encode(tokenizer, piece, num_query_tokens, image_token_id, bos=i == 0)
    return ids
