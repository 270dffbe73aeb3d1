"""From text with image marks to token ids; an image is `num_query_tokens` placeholders in a row.

Each piece between two marks is tokenised on its own, as in the original implementation. Sentencepiece tokenizers
(Llama's, Vicuna's, Mistral's) put a space before every text. In the training text of the released checkpoints it stands
at the start of each piece and after each special token only, so with these tokenizers pieces are never cut further,
except where a message's text and the template would share a token ("#" before "###").
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from minigpt4.errors import UserError
from minigpt4.prompts.templates import IMAGE_MARK, Message, Template, without_marks

#: Marks the seam between a text and what stands around it in a rendered chat. Here a seam is cut only if a token would
#: lie across it; an exported tokenizer cuts at each. Unicode reserves this code point for a program's own use.
CUT = "\ufdd0"
#: How many characters on either side of a seam are looked at, and the rest of the word in which they end.
NEAR = 256


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, num_query_tokens: int, image_token_id: int, bos: bool = True
) -> list[int]:
    """Token ids of `text`, with `num_query_tokens` times `image_token_id` in place of every `<ImageHere>`.

    `bos` puts the tokenizer's BOS (if it has one) first; without it, `text` continues earlier text, so the tokenizer's
    own space is left out. Special tokens in the text are encoded as such: users' text must go through `plain` first.
    """
    ids = [tokenizer.bos_token_id] if bos and tokenizer.bos_token_id is not None else []
    for i, piece in enumerate(text.split(IMAGE_MARK)):
        if i > 0:
            ids += [image_token_id] * num_query_tokens
        ids += _encode_piece(tokenizer, piece, goes_on=i == 0 and not bos)
    return ids


def puts_space_first(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer puts a space of its own before a text (sentencepiece's dummy prefix)."""
    first = tokenizer.convert_ids_to_tokens(_whole(tokenizer, "a")[:1])
    return bool(first) and first[0].startswith(("\u2581", "\u0120"))  # sentencepiece's and byte-level BPE's space


def _encode_piece(tokenizer: PreTrainedTokenizerBase, piece: str, goes_on: bool) -> list[int]:
    if not piece or not puts_space_first(tokenizer):
        return _ids(tokenizer, piece)
    # Newer tokenizers put the space before the first word only, not after special tokens: encode stretches alone.
    special = "|".join(re.escape(token) for token in sorted(control_tokens(tokenizer), key=len, reverse=True))
    ids: list[int] = []
    for i, stretch in enumerate(re.split(f"({special})", piece) if special else [piece]):
        ids += _ids(tokenizer, stretch, goes_on and i == 0)
    return ids


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, goes_on: bool = False) -> list[int]:
    """Ids of a text with seams (`CUT`): one that no token would lie across changes nothing, the others are cut."""
    groups: list[str] = []
    for stretch in filter(None, text.split(CUT)):
        if groups and _harmless(tokenizer, groups[-1], stretch, goes_on or len(groups) > 1):
            groups[-1] += stretch
        else:
            groups.append(stretch)
    return [i for n, group in enumerate(groups) for i in _whole(tokenizer, group, goes_on or n > 0)]


def _harmless(tokenizer: PreTrainedTokenizerBase, before: str, after: str, goes_on: bool) -> bool:
    """Whether the two texts have the same ids together as apart, wherever the white space between them goes."""
    # Words further off play no part, and to tokenise a long text many times would take long.
    _, space, word = before[:-NEAR].rpartition(" ")
    before, after = space + word + before[-NEAR:], after[:NEAR] + after[NEAR:].partition(" ")[0]
    goes_on, both = goes_on or bool(space), before + after
    together = _whole(tokenizer, both, goes_on)
    return any(
        together == _whole(tokenizer, both[:place], goes_on) + _whole(tokenizer, both[place:], True)
        for place in (len(before), len(before.rstrip()), len(both) - len(after.lstrip()))
    )


def _whole(tokenizer: PreTrainedTokenizerBase, text: str, goes_on: bool = False) -> list[int]:
    if not text:
        return []
    if not goes_on or not puts_space_first(tokenizer):
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    before = "\n"  # a token of its own in every such vocabulary: it takes the space
    return _whole(tokenizer, before + text)[len(_whole(tokenizer, before)) :]


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The spellings of all special tokens."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return added | set(tokenizer.all_special_tokens)


def check_template(tokenizer: PreTrainedTokenizerBase, template: Template, name: str) -> None:
    """Raises UserError if the tokenizer of the LLM `name` lacks tokens that the template needs."""
    written = (template.system, template.system_end, template.user, template.assistant, template.image, template.stop)
    for token in re.findall(r"</?s>|<\|\w+\|>", "".join(written)):
        if token not in tokenizer.get_vocab():
            lacks = f"has no token {token}, which the chat template {template.name!r} needs"
            raise UserError(f"{name}: its tokenizer {lacks}; give another template or LLM")
    for text in written:
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in _ids(tokenizer, without_marks(text)):
            part = f"{without_marks(text).strip()!r}, a part of the chat template {template.name!r}"
            raise UserError(f"{name}: its tokenizer cannot write {part}; give another template or LLM")


def plain(tokenizer: PreTrainedTokenizerBase, text: str, *reserved: str) -> str:
    """`text` with a space for control tokens and `reserved` strings (it could end a turn, or claim an image) and for
    halves of characters, which no tokenizer takes."""
    control = control_tokens(tokenizer).union([CUT, *reserved]) - {""}
    tokens = "|".join(re.escape(token) for token in sorted(control, key=len, reverse=True))
    return re.sub(f"{tokens}|[\ud800-\udfff]", " ", text)


def plain_message(tokenizer: PreTrainedTokenizerBase, template: Template, message: Message) -> Message:
    """The message as `plain` text, with seams around it. System texts may speak of tags, as the released one does."""
    tags = () if message.role == "system" else template.tags
    text = plain(tokenizer, message.text, template.stop, *tags)
    return replace(message, text=CUT + text.replace(IMAGE_MARK, CUT + IMAGE_MARK + CUT) + CUT)


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    messages: Sequence[Message],
    num_query_tokens: int,
    image_token_id: int,
) -> list[int]:
    """Token ids of a conversation up to the next answer: each answer on its own, as generated, or all as trained on."""
    messages = [plain_message(tokenizer, template, message) for message in messages]
    if puts_space_first(tokenizer):  # as in the released training
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
