"""Continuous batching for many clients: requests wait in a bounded queue and join the batch when it has room.

One thread runs the model; requests come from other threads, and what becomes of them is reported to those.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from minigpt4.errors import UserError
from minigpt4.generation.batching import Chosen, ContinuousBatch, Row
from minigpt4.generation.decoding import Decoding, room_for_answer
from minigpt4.generation.engine import no_features
from minigpt4.generation.stopping import Answer, AnswerReader, end_tokens

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)


class BusyError(UserError):
    """The queue is full; `retry_after` is how many seconds it may take until it is not."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class LateError(Exception):
    """The request timed out."""


@dataclass(frozen=True)
class SentImage:
    """An image of a request: the key of its content, and its pixels (1, 3, h, w) unless its features are known."""

    key: bytes
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer: the token, and the text that can be shown by now (often empty)."""

    text: str
    chosen: Chosen


@dataclass(frozen=True)
class Done:
    """The end of an answer: all of it, and the text that had not been shown. `tokens` counts its end too.

    `past` holds keys and values of what the LLM has read, if the request came with some.
    """

    answer: Answer
    text: str
    tokens: int
    past: DynamicCache | None = None


@dataclass(eq=False)
class AnswerRequest:
    """One answer that somebody waits for: the prompt's ids and images, and how it is decoded.

    It waits, runs in the batch, and ends in one of four ways. The last that `report` gets is

    - Done, if an end token, one of `stops` or the token limit came, or `stop` was set (with the text so far);
    - LateError, if `deadline` (seconds of `time.monotonic`) has passed;
    - another exception, if the model failed or the server ends;
    - nothing, if `cancelled` was set.

    Before the end, `report` gets each Piece. It is called from the scheduler's thread. `images` may be their features
    too (images, q, d_qformer). `past`: of a conversation that goes on, keys and values of the first of `ids`.
    """

    ids: Sequence[int]
    images: Sequence[SentImage] | Tensor
    decoding: Decoding
    stops: Sequence[str]
    deadline: float
    report: Callable[[Piece | Done | Exception], None] = lambda event: None
    logprobs: int | None = None
    cancelled: bool = False
    stop: threading.Event | None = None
    past: DynamicCache | None = None

    @property
    def stop_requested(self) -> bool:
        return self.stop is not None and self.stop.is_set()


@dataclass(eq=False)
class _Running:
    asked: AnswerRequest
    row: Row
    reader: AnswerReader
    started: float = field(default_factory=time.monotonic)


class RecentFeatures:
    """Features (q, d_qformer) of the images last seen, by content: no image is kept, and these not for long."""

    def __init__(self, size: int = 256, seconds: float = 600.0) -> None:
        self.size, self.seconds = size, seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, tuple[float, Tensor]] = OrderedDict()  # the longest unused first

    def recall(self, key: bytes, new: Tensor | None = None) -> Tensor | None:
        """The features of the image with this key: `new` ones, which are kept, or those that are held."""
        now = time.monotonic()
        with self._lock:
            while self._held and next(iter(self._held.values()))[0] < now - self.seconds:
                self._held.popitem(last=False)
            _, held = self._held.pop(key, (now, None))
            features = held if new is None else new
            if features is not None:
                self._held[key] = (now, features)
            if len(self._held) > self.size:
                self._held.popitem(last=False)
            return features


class Scheduler:
    """Answers requests with `model`, up to `max_batch` at a time; `max_queue` more may wait.

    `encoded` and `reused` count images.
    """

    def __init__(self, model: MiniGPT4, max_batch: int = 16, max_queue: int = 128) -> None:
        self.model, self.max_batch, self.max_queue = model, max_batch, max_queue
        self.features = RecentFeatures()
        self.encoded = self.reused = 0
        self._batch = ContinuousBatch(model)
        self._ends = end_tokens(model.blip2.language_model, model.tokenizer)
        self._waiting: deque[AnswerRequest] = deque()
        self._running: list[_Running] = []
        self._seconds = 1.0  # of late, for one answer: a moving mean
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="minigpt4-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def retry_after(self) -> int:
        """Seconds after which half of those who wait now may have been answered; at least 1, at most 60."""
        return min(60, max(1, math.ceil(self._seconds * self.waiting / self.max_batch / 2)))

    def submit(self, requests: Sequence[AnswerRequest]) -> None:
        """Queue the requests, all or none. Raises BusyError if there is no room for all of them."""
        with self._changed:
            room = self.max_queue + max(0, self.max_batch - self.running)
            if self.waiting + len(requests) > room or self._closing:
                raise BusyError(self.retry_after)
            self._waiting += requests
            self._changed.notify()

    def stream(
        self,
        ids: Sequence[int],
        features: Tensor,
        decoding: Decoding,
        stop: str,
        *,
        cache: DynamicCache,
        cancelled: threading.Event,
    ) -> Generator[str, None, Answer]:
        """What `batching.decode_stream` does, in the batch of all who ask (`Chat` takes it in its place).

        Raises BusyError if there is no room, UserError for a conversation that is too long, and what the model raises.
        """
        decoding = replace(decoding, max_new_tokens=room_for_answer(self.model, len(ids), decoding))
        events: queue.SimpleQueue[Piece | Done | Exception] = queue.SimpleQueue()
        asked = AnswerRequest(ids, features, decoding, (stop,), math.inf, events.put, stop=cancelled, past=cache)
        self.submit([asked])
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                if event.text:
                    yield event.text
                if isinstance(event, Done):
                    if event.past is not None:
                        cache.layers[:] = event.past.layers
                    return event.answer
        finally:
            asked.cancelled = True

    def close(self, finish: bool = True) -> None:
        """Answer what was submitted (or break it off: not `finish`), take no more, and end the thread.

        What is broken off is not waited for longer than two seconds: a step of a large model may take more.
        """
        with self._changed:
            self._closing = True
            if not finish:
                error = UserError("The server ends")  # nobody may wait for ever
                self._fail([*self._waiting, *(each.asked for each in self._running)], error)
            self._changed.notify()
        self._thread.join(None if finish else 2.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._changed.wait()
                if not (self._waiting or self._running):
                    return
                self._waiting = deque(asked for asked in self._waiting if not self._ended_waiting(asked))
                new = [self._waiting.popleft() for _ in range(min(self.max_batch - self.running, self.waiting))]
            try:
                self._advance(new)
            except Exception as error:  # the model's own: no memory left, say
                logger.exception("a batch of answers failed")
                self._fail([*new, *(each.asked for each in self._running)], error)
                self._running, self._batch = [], ContinuousBatch(self.model)

    def _advance(self, new: Sequence[AnswerRequest]) -> None:
        """One step: those who have gone leave, new requests join, and everybody gets one more token."""
        self._drop([running for running in self._running if self._ended(running.asked)])
        if self._running:
            self._batch.step()
        if new:
            try:
                self._start(new)
            except Exception as error:  # what runs already can go on
                logger.exception("new requests failed")
                self._batch.leave(set(self._batch.rows) - {running.row for running in self._running})
                self._fail(new, error)
        self._drop([running for running in self._running if self._read(running)])

    def _start(self, requests: Sequence[AnswerRequest]) -> None:
        encoded = self._encode([i for asked in requests if not isinstance(asked.images, Tensor) for i in asked.images])
        started = []
        for asked in requests:
            if isinstance(asked.images, Tensor):
                features = asked.images
            elif asked.images:
                features = torch.stack([encoded[image.key] for image in asked.images])
            else:
                features = no_features(self.model)
            row = Row(asked.ids, features, asked.decoding, asked.logprobs, asked.past)
            started.append(_Running(asked, row, AnswerReader(self.model.tokenizer, asked.stops, self._ends)))
        self._batch.join([running.row for running in started])
        self._running += started

    def _encode(self, images: Sequence[SentImage]) -> dict[bytes, Tensor]:
        """Features of all images by key; each that is not known is encoded once."""
        known = {image.key: self.features.recall(image.key) if image.features is None else image.features
                 for image in images}  # fmt: skip
        new = {image.key: image.pixels for image in images if known[image.key] is None and image.pixels is not None}
        if new:
            encoded = self.model.encode_pixels(torch.cat(list(new.values())))
            for key, found in zip(new, encoded, strict=True):
                known[key] = found
                self.features.recall(key, found.clone())  # a view would keep the whole batch alive
        self.encoded += len(new)
        self.reused += len(images) - len(new)
        return {key: found for key, found in known.items() if found is not None}

    def _read(self, running: _Running) -> bool:
        """Report the newest token of a row; True if it was the last."""
        asked, row, reader = running.asked, running.row, running.reader
        if row.failed is not None:
            _report(asked, row.failed)
            return True
        if row.newest is None:
            return False
        newest, row.newest = row.newest, None
        _report(asked, Piece(reader.read(newest.token), newest))
        if not (reader.ended or len(row.tokens) >= asked.decoding.max_new_tokens or asked.stop_requested):
            return False
        answer, rest = reader.finish()
        past = None if asked.past is None else self._batch.read_by(row)
        _report(asked, Done(answer, rest, len(row.tokens), past))
        self._seconds += 0.1 * (time.monotonic() - running.started - self._seconds)
        return True

    def _ended_waiting(self, asked: AnswerRequest) -> bool:
        if asked.stop_requested:
            _report(asked, Done(Answer("", False, ()), "", 0))
            return True
        return self._ended(asked)

    def _ended(self, asked: AnswerRequest) -> bool:
        """Whether a request is cancelled, or late: then that is reported."""
        if not asked.cancelled and time.monotonic() > asked.deadline:
            self._fail([asked], LateError())
        return asked.cancelled

    def _fail(self, requests: Sequence[AnswerRequest], error: Exception) -> None:
        for asked in requests:
            _report(asked, error)
            asked.cancelled = True

    def _drop(self, gone: Sequence[_Running]) -> None:
        self._batch.leave({running.row for running in gone})
        self._running = [running for running in self._running if running not in gone]


def _report(asked: AnswerRequest, event: Piece | Done | Exception) -> None:
    if not asked.cancelled:
        with contextlib.suppress(RuntimeError):  # the loop of the one who asked has ended
            asked.report(event)
