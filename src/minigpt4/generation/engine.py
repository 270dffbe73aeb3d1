"""Answers from a model: many prompts in one batch, or one answer as a stream of text.

Knows nothing about conversations that go on (see `chat.py`). The decoding loop is transformers' own `generate`; what
is added here is where an answer ends (EOS, or the template's stop string wherever its tokens fall) and what of it may
be shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from minigpt4.errors import UserError
from minigpt4.generation.endings import Answer, StopString, decode_text, end_tokens, read_answer, showable
from minigpt4.images import open_image
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message, Template, get_template

if TYPE_CHECKING:
    from minigpt4.model.aligned import AlignedModel

ImageSource = str | Path | bytes | Image.Image
#: A question, or a conversation whose last word is a question.
Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen. The defaults are those of the released demo (sampling).

    `do_sample` defaults to True with one beam and to False with more; `repetition_penalty` (on the answer's own tokens)
    defaults to 1.05 when sampling and to 1 otherwise, so that `do_sample=False` is the model's plain first choice.
    `seed` makes sampling repeatable and leaves torch's global generator as it was.
    """

    max_new_tokens: int = 300
    do_sample: bool | None = None
    temperature: float = 1.0
    top_p: float = 0.9
    repetition_penalty: float | None = None
    num_beams: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        allowed = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature > 0, "more than 0 (for the most likely token use do_sample=False)"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty is None or self.repetition_penalty > 0, "more than 0"),
            ("num_beams", self.num_beams >= 1, "at least 1"),
        )
        for name, fits, expected in allowed:
            if not fits:
                raise UserError(f"{name}={getattr(self, name)} does not work: it must be {expected}")

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Decoding:
        """The decoding that keyword arguments ask for. Raises UserError for one that does not exist."""
        cls.check_names(settings)
        return cls(**settings)

    @classmethod
    def check_names(cls, settings: Iterable[str]) -> None:
        """Raises UserError for the first that is no setting."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise UserError(f"there is no generation setting {name!r}; the settings are {', '.join(known)}")

    @property
    def sampling(self) -> bool:
        return self.num_beams == 1 if self.do_sample is None else self.do_sample

    def generation_config(self, ends: Sequence[int], image_token_id: int) -> GenerationConfig:
        """transformers' form of it, with nothing left to the defaults that the LLM's own files may carry.

        The repetition penalty is not in it but in `processors`: as part of this it warns at every call that an
        embedded prompt cannot be penalised, which is what the paper's code does too.
        """
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.sampling,
            temperature=self.temperature if self.sampling else 1.0,
            top_p=self.top_p if self.sampling else 1.0,
            top_k=0 if self.sampling else 50,  # 50 means "not set": anything else is warned of without sampling
            repetition_penalty=1.0,
            num_beams=self.num_beams,
            suppress_tokens=[image_token_id],
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,  # what stands behind an answer that ended before others in its batch
        )

    def processors(self) -> list[LogitsProcessor]:
        penalty = self.repetition_penalty or (1.05 if self.sampling else 1.0)
        return [RepetitionPenaltyLogitsProcessor(penalty)] if penalty != 1 else []


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
    return decode(model, ids, torch.cat(per_prompt), decoding, chat_format.stop)


def stream(
    model: AlignedModel,
    images: Any = None,
    prompt: Prompt = "",
    *,
    features: Tensor | None = None,
    template: str | Template | None = None,
    **settings: Any,
) -> Iterator[str]:
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


@torch.no_grad()
def decode(
    model: AlignedModel,
    ids: Sequence[Sequence[int]],
    features: Tensor,
    decoding: Decoding,
    stop: str,
    *,
    cache: Cache | None = None,
    streamer: BaseStreamer | None = None,
    cancelled: threading.Event | None = None,
) -> list[Answer]:
    """Continue every row of token ids. `features` holds all pictures, in the order of their placeholders.

    With a `cache` (one row only) the positions that it holds are not computed again, and it grows by the new ones.
    Once `cancelled` is set, decoding ends after the token at hand.
    """
    tokenizer, llm = model.tokenizer, model.blip2.language_model
    new_tokens = room_for_answer(model, max(len(row) for row in ids), decoding)
    input_ids, mask = left_padded(ids)
    ends = end_tokens(llm, tokenizer)
    config = decoding.generation_config(ends, model.image_token_id)
    config.max_new_tokens = new_tokens
    criteria: list[StoppingCriteria] = [StopString(tokenizer, stop)] if stop else []
    if cancelled is not None:
        criteria.append(_Cancelled(cancelled))
    with _seeded(decoding.seed, model.device):
        new_ids = llm.generate(
            inputs_embeds=model.embed(input_ids.to(model.device), features.to(model.device)),
            attention_mask=mask.to(model.device),
            generation_config=config,
            logits_processor=decoding.processors(),
            stopping_criteria=criteria,
            past_key_values=cache,
            streamer=streamer,
        )
    return [read_answer(tokenizer, row, stop, ends) for row in new_ids.tolist()]


def room_for_answer(model: AlignedModel, prompt: int, decoding: Decoding) -> int:
    """How many tokens may follow a prompt of so many. Raises UserError if the LLM cannot read even the prompt."""
    limit = getattr(model.blip2.language_model.config, "max_position_embeddings", None)
    if limit and prompt >= limit:
        raise UserError(
            f"the conversation is {prompt} tokens long and this LLM reads at most {limit}; "
            "ask less at once or start a new chat"
        )
    return min(decoding.max_new_tokens, limit - prompt) if limit else decoding.max_new_tokens


def left_padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor (rows, longest), and its attention mask.

    Padding stands on the left, so that every row's answer starts in the same column; the mask hides it and positions
    are counted without it, so it changes no answer.
    """
    longest = max(len(row) for row in ids)
    input_ids = torch.zeros((len(ids), longest), dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(ids):
        input_ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return input_ids, mask


def decode_stream(
    model: AlignedModel,
    ids: Sequence[int],
    features: Tensor,
    decoding: Decoding,
    stop: str,
    *,
    cache: Cache | None = None,
    cancelled: threading.Event | None = None,
) -> Generator[str, None, Answer]:
    """`decode` for one row, as a generator of pieces of text that returns the `Answer`.

    Decoding runs in a thread of its own. Closing the generator ends it, and whatever it raises is raised here. Setting
    `cancelled` ends it too, and the answer is what was said by then.
    """
    if decoding.num_beams > 1:
        raise UserError("beams cannot be streamed, for the best answer is known at the end only; use num_beams=1")
    tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    cancelled = cancelled or threading.Event()
    result: list[Answer | BaseException] = []

    def work() -> None:
        try:
            streamer = _TokenStreamer(tokens)
            [answer] = decode(
                model, [ids], features, decoding, stop, cache=cache, streamer=streamer, cancelled=cancelled
            )
            result.append(answer)
        except BaseException as error:
            result.append(error)
        finally:
            tokens.put(None)

    worker = threading.Thread(target=work, name="minigpt4-decode", daemon=True)
    worker.start()
    seen: list[int] = []
    shown = 0
    try:
        while (token := tokens.get()) is not None:
            seen.append(token)
            safe = showable(decode_text(model.tokenizer, seen), stop)
            if len(safe) > shown:
                yield safe[shown:]
                shown = len(safe)
    except BaseException:
        cancelled.set()
        raise
    finally:
        worker.join()
    [outcome] = result
    if isinstance(outcome, BaseException):
        raise outcome
    if len(outcome.text) > shown:
        yield outcome.text[shown:]
    return outcome


class _TokenStreamer(BaseStreamer):
    """Hands each new token to a queue. (transformers' TextIteratorStreamer knows no stop strings.)"""

    def __init__(self, tokens: queue.SimpleQueue[int | None]) -> None:
        self.tokens = tokens

    def put(self, value: Tensor) -> None:
        for token in value.flatten().tolist():  # the first call brings the prompt's ids: none, for it is embeddings
            self.tokens.put(token)

    def end(self) -> None:
        pass  # the worker marks the end itself, after errors too


class _Cancelled(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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
