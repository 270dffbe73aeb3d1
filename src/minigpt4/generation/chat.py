"""A conversation about images that keeps the KV cache. A turn that fails or is cancelled changes nothing."""

import json
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from minigpt4.errors import UserError
from minigpt4.files import expand, write_atomically
from minigpt4.generation.batching import decode, decode_stream
from minigpt4.generation.decoding import Decoding
from minigpt4.generation.engine import as_list, encode_images
from minigpt4.generation.stopping import Answer
from minigpt4.model.aligned import AlignedModel
from minigpt4.prompts.encode import CUT, check_template, encode, encode_chat, plain_message
from minigpt4.prompts.templates import Message, Template, get_template, what_is_read, without_marks


class Chat:
    """A conversation with `model` in the format `template`; `streaming` may stand in for `batching.decode_stream`."""

    def __init__(
        self,
        model: AlignedModel,
        template: str | Template | None = None,
        streaming: Callable[..., Generator[str, None, Answer]] | None = None,
    ) -> None:
        self.model = model
        self._decode_stream = streaming or partial(decode_stream, model)
        self.template = self._own = get_template(model.template if template is None else template)
        if template is not None:
            check_template(model.tokenizer, self._own, "the model")
        self.reset()

    def reset(self) -> None:
        """Forget everything that was said and shown."""
        self._turns: list[tuple[Message, list[str]]] = []  # each message with the names of its images
        self._read: list[_Turn] = []  # what the LLM had read for each answer
        self._known: dict[bytes, Tensor] = {}  # features of the images shown, by content
        self._features = encode_images(self.model, [[]])[0]  # of every image so far: (images, q, d_qformer)
        self._cache = DynamicCache()  # keys and values of what was read and written last, seldom of its last token

    def set_system(self, text: str | None) -> None:
        """Use `text` as the system text in place of the template's own (None: the template's), and start again."""
        told = text and plain_message(self.model.tokenizer, self._own, Message("system", text)).text
        system = self._own.system if told is None else self._own.system_turn.replace("{text}", without_marks(told))
        self.template = replace(self._own, system=system)
        self.reset()

    @property
    def history(self) -> list[Message]:
        """All messages so far, oldest first; the LLM reads what `prompts.templates.what_is_read` says of them."""
        return [message for message, _ in self._turns]

    def rewind(self, turns: int) -> None:
        """Forget all but the first `turns` questions and answers, as if the others had not been."""
        if not 0 <= turns <= len(self._read):
            raise UserError(f"the chat has {len(self._read)} turns; it cannot go back to turn {turns}")
        known = turns > 0 and all(turn.continues for turn in self._read[turns:])
        del self._turns[2 * turns :], self._read[turns:]
        self._features = self._features[: sum(message.images for message in self.history)]
        _shorten(self._cache, len(self._read[-1].all_ids) if known else 0)

    def reading(self, turn: int) -> tuple[list[int], int, Tensor]:
        """Token ids read and written by the end of an answer, where it starts in them, and their images' features."""
        read = self._read[turn]
        return read.all_ids, len(read.ids), read.features

    def ask(self, text: str, image: Any = None, cancelled: threading.Event | None = None, **settings: Any) -> str:
        """The answer to `text`, about `image` (a path, bytes, Pillow image, or a list of them) or the one shown last.

        `text` may speak of earlier images ("the first picture", "compare"): see `prompts.templates.what_is_read`.
        `settings`: the fields of `decoding.Decoding`, such as `max_new_tokens`, `do_sample`, `num_beams`, `seed`.
        Setting `cancelled` ends the answer after the current token; the text up to then is the answer.
        Raises UserError for an image that cannot be read, or a conversation longer than the LLM can read.
        """
        decoding = Decoding.from_settings(settings, self.model.decoding)
        with self._turn(text, image) as (turn, kept):
            # Beams each need a cache of their own, so they start from the tokens and leave the chat's cache as it is.
            cache = kept if decoding.num_beams == 1 else None
            [turn.answer] = decode(
                self.model, [turn.ids], [turn.features], decoding, self.template.stop, cache=cache, cancelled=cancelled
            )
        return turn.answer.text

    def stream(
        self, text: str, image: Any = None, cancelled: threading.Event | None = None, **settings: Any
    ) -> Iterator[str]:
        """The same in pieces, as they come. Closing the iterator early stops the LLM and undoes the turn."""
        decoding = Decoding.from_settings(settings, self.model.decoding)
        with self._turn(text, image) as (turn, cache):
            turn.answer = yield from self._decode_stream(
                turn.ids, turn.features, decoding, self.template.stop,
                cache=cache, cancelled=cancelled or threading.Event(),
            )  # fmt: skip

    def recall(self, text: str, image: Any, answer: str) -> None:
        """Take up a question (as in `ask`) and its `answer` from a conversation that was kept elsewhere."""
        said = without_marks(plain_message(self.model.tokenizer, self.template, Message("assistant", answer)).text)
        ids = self.model.tokenizer(said.replace(CUT, ""), add_special_tokens=False)["input_ids"]  # as learnt
        with self._turn(text, image) as (turn, _):
            turn.answer = Answer(answer, True, tuple(ids))

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the conversation to a file: JSON if its name ends in .json, readable Markdown otherwise."""
        path = expand(path)
        if path.is_dir():
            raise UserError(f"{path} is a directory; name a file in it, such as {path / 'chat.md'}")
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another name")
        if path.suffix == ".json":
            messages = [{"role": m.role, "text": m.text, "images": names} for m, names in self._turns]
            content = json.dumps({"template": self.template.name, "messages": messages}, indent=2, ensure_ascii=False)
        else:
            speaker = {"user": "You", "assistant": "MiniGPT-4"}
            lines = ([f"**{speaker[m.role]}:**", *(f"![]({n})" for n in names), m.text] for m, names in self._turns)
            content = "\n\n".join(map(" ".join, lines))
        write_atomically(path, f"{content}\n".encode())
        return path

    @contextmanager
    def _turn(self, text: str, image: Any) -> "Iterator[tuple[_Turn, DynamicCache]]":
        """A turn, kept with the answer that it is given, and its cache; if it fails, the chat is as it was before."""
        model, images = self.model, as_list(image)
        message = Message("user", text, len(images))
        [features] = encode_images(model, [images], self._known)
        features = torch.cat([self._features, features])
        told = what_is_read([*self.history, message])
        last = self._read[-1] if self._read else None
        if last is not None and len(told) == last.messages + 2:
            cache = self._cache
            new = self.template.continuation(plain_message(model.tokenizer, self.template, message))
            ids = last.all_ids + encode(model.tokenizer, new, model.num_query_tokens, model.image_token_id, bos=False)
        else:
            cache = DynamicCache()
            ids = encode_chat(model.tokenizer, self.template, told, model.num_query_tokens, model.image_token_id)
        names = [str(given) if isinstance(given, (str, Path)) else "image" for given in images]
        seen = features[len(features) - sum(each.images for each in told) :]
        turn = _Turn(len(told), ids, seen, continues=cache is self._cache)
        length = cache.get_seq_length()
        try:
            yield turn, cache
        except BaseException:
            _shorten(cache, length)
            raise
        self._turns += [(message, names), (Message("assistant", turn.answer.text), [])]
        self._read.append(turn)
        self._cache, self._features = cache, features
        _shorten(cache, len(turn.all_ids) - turn.answer.respelled)


def _shorten(cache: DynamicCache, length: int) -> None:
    # Layer by layer, for a turn that was broken off in the middle of a step leaves some longer than others.
    for layer in cache.layers:
        surplus = layer.get_seq_length() - length
        if surplus > 0:
            layer.crop(-surplus)


@dataclass
class _Turn:
    """What the LLM reads for a question: so many messages, their token ids and images' features; the answer in time."""

    messages: int
    ids: list[int]
    features: Tensor
    continues: bool  # the ids begin with `all_ids` of the turn before
    answer: Answer = field(init=False)

    @property
    def all_ids(self) -> list[int]:
        return self.ids + list(self.answer.tokens)
