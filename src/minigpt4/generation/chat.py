"""A conversation about images that keeps the KV cache, so that each turn costs only its own tokens.

A turn that fails or is cancelled leaves the chat as it was before it.
"""

from __future__ import annotations

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
from minigpt4.prompts.encode import encode, encode_chat, plain_message
from minigpt4.prompts.templates import Message, Template, get_template, without_marks


class Chat:
    """One conversation with `model`, in the format of `template` (a name or a Template; default: the model's own).

    `streaming` stands in for `batching.decode_stream` without its model: answers that come as a stream may be decoded
    together with those of others (`app.scheduler.Scheduler.stream`).
    """

    def __init__(
        self,
        model: AlignedModel,
        template: str | Template | None = None,
        streaming: Callable[..., Generator[str, None, Answer]] | None = None,
    ) -> None:
        self.model = model
        self._decode_stream = streaming or partial(decode_stream, model)
        self.template = self._own = get_template(model.template if template is None else template)
        self.reset()

    def reset(self) -> None:
        """Forget everything that was said and shown."""
        self._turns: list[tuple[Message, list[str]]] = []  # each message with the names of its images
        #: Of each answer: where its tokens start and end in what the LLM has read, and how many images it had seen.
        self._answers: list[tuple[int, int, int]] = []
        self._ids: list[int] = []  # all that the LLM has read and written, up to the end of the last answer
        self._known: dict[bytes, Tensor] = {}  # features of the images shown, by content
        self._features = encode_images(self.model, [[]])[0]  # of every image so far: (images, q, d_qformer)
        self._cache = DynamicCache()  # keys and values of the first of `_ids`: seldom of the very last

    def set_system(self, text: str | None) -> None:
        """Use `text` as the system text in place of the template's own (None: the template's), and start again."""
        told = text and plain_message(self.model.tokenizer, self._own, Message("system", text)).text
        self.template = replace(self._own, system=self._own.system if told is None else without_marks(told))
        self.reset()

    @property
    def history(self) -> list[Message]:
        """All messages so far, oldest first."""
        return [message for message, _ in self._turns]

    def rewind(self, turns: int) -> None:
        """Forget all but the first `turns` questions and answers, as if the others had not been."""
        if not 0 <= turns <= len(self._answers):
            raise UserError(f"the chat has {len(self._answers)} turns; it cannot go back to turn {turns}")
        del self._turns[2 * turns :], self._answers[turns:]
        _, end, images = self._answers[-1] if self._answers else (0, 0, 0)
        self._ids, self._features = self._ids[:end], self._features[:images]
        self._shorten_cache(end)

    def reading(self, turn: int) -> tuple[list[int], int, Tensor]:
        """What the LLM had read and written by the end of an answer (for the heat map of the page).

        Returns the token ids with the answer's own at their end, where the answer starts in them, and the features of
        the images among them (images, q, d_qformer).
        """
        start, end, images = self._answers[turn]
        return self._ids[:end], start, self._features[:images]

    def ask(self, text: str, image: Any = None, cancelled: threading.Event | None = None, **settings: Any) -> str:
        """The answer to `text`, about `image` (a path, bytes, Pillow image, or a list of them) and all shown before.

        `settings`: the fields of `decoding.Decoding`, such as `max_new_tokens`, `do_sample`, `num_beams`, `seed`.
        Setting `cancelled` ends the answer after the current token; the text up to then is the answer.
        Raises UserError for an image that cannot be read, or a conversation longer than the LLM can read.
        """
        decoding = Decoding.from_settings(settings)
        # Beams each need a cache of their own, so they start from the tokens and leave the chat's cache as it is.
        cache = self._cache if decoding.num_beams == 1 else None
        with self._turn(text, image) as turn:
            [turn.answer] = decode(
                self.model, [turn.ids], [turn.features], decoding, self.template.stop, cache=cache, cancelled=cancelled
            )
        return turn.answer.text

    def stream(
        self, text: str, image: Any = None, cancelled: threading.Event | None = None, **settings: Any
    ) -> Iterator[str]:
        """The same in pieces, as they come. Closing the iterator early stops the LLM and undoes the turn."""
        decoding = Decoding.from_settings(settings)
        with self._turn(text, image) as turn:
            turn.answer = yield from self._decode_stream(
                turn.ids, turn.features, decoding, self.template.stop,
                cache=self._cache, cancelled=cancelled or threading.Event(),
            )  # fmt: skip

    def recall(self, text: str, image: Any, answer: str) -> None:
        """Take up a question (as in `ask`) and its `answer` from a conversation that was kept elsewhere."""
        said = without_marks(plain_message(self.model.tokenizer, self.template, Message("assistant", answer)).text)
        ids = encode(self.model.tokenizer, said, 0, self.model.image_token_id, bos=False)
        with self._turn(text, image) as turn:
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
            lines = (
                [f"**{speaker[m.role]}:**", *(f"![]({name})" for name in names), m.text] for m, names in self._turns
            )
            content = "\n\n".join(map(" ".join, lines))
        write_atomically(path, f"{content}\n".encode())
        return path

    @contextmanager
    def _turn(self, text: str, image: Any) -> Iterator[_Turn]:
        """A turn, kept with the answer that it is given; if that fails, the chat is as it was before."""
        model, images = self.model, as_list(image)
        message = Message("user", text, len(images))
        [features] = encode_images(model, [images], self._known)
        if self._turns:
            new = self.template.continuation(plain_message(model.tokenizer, self.template, message))
            ids = encode(model.tokenizer, new, model.num_query_tokens, model.image_token_id, bos=False)
        else:
            ids = encode_chat(model.tokenizer, self.template, [message], model.num_query_tokens, model.image_token_id)
        names = [str(given) if isinstance(given, (str, Path)) else "image" for given in images]
        turn = _Turn(self._ids + ids, torch.cat([self._features, features]))
        length = self._cache.get_seq_length()
        try:
            yield turn
        except BaseException:
            self._shorten_cache(length)
            raise
        self._turns += [(message, names), (Message("assistant", turn.answer.text), [])]
        self._ids = turn.ids + list(turn.answer.tokens)
        self._answers.append((len(turn.ids), len(self._ids), len(turn.features)))
        self._features = turn.features
        self._shorten_cache(len(self._ids) - turn.answer.respelled)

    def _shorten_cache(self, length: int) -> None:
        # Layer by layer, for a turn that was broken off in the middle of a step leaves some longer than others.
        for layer in self._cache.layers:
            surplus = layer.get_seq_length() - length
            if surplus > 0:
                layer.crop(-surplus)


@dataclass
class _Turn:
    """Token ids of the whole conversation up to a question, features of all its images, and the answer when it came."""

    ids: list[int]
    features: Tensor
    answer: Answer = field(init=False)
