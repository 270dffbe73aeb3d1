"""Who is answered when: requests wait in a bounded queue and join the running batch as soon as it has room.

One thread runs the model; requests are put in and their answers reported from and to other threads. Knows nothing about
HTTP.
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
    """The request took longer than it may."""


@dataclass(frozen=True)
class Picture:
    """A picture of a request: the key of its content, and its pixels (1, 3, h, w) unless its features are known."""

    key: bytes
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer: the token, and the text that can be shown by now (often none)."""

    text: str
    chosen: Chosen


@dataclass(frozen=True)
class Done:
    """The end of an answer: all of it, and the text that had not been shown. `tokens` counts its end too.

    `past` holds keys and values of what the LLM has read, if the task came with some.
    """

    answer: Answer
    text: str
    tokens: int
    past: DynamicCache | None = None


@dataclass(eq=False)
class Task:
    """One answer that somebody waits for: the prompt's ids and pictures, and how it is to be decoded and ended.

    `pictures` may be their features too (pictures, q, d_qformer). `report` is called from the scheduler's thread with
    each Piece, and at last with a Done or an exception. Whoever sets `cancelled` gets nothing more; once `enough` is
    set, what was said by then is the answer. `deadline` is in seconds of `time.monotonic`. `past`: of a conversation
    that goes on, keys and values of the first of `ids`.
    """

    ids: Sequence[int]
    pictures: Sequence[Picture] | Tensor
    decoding: Decoding
    stops: Sequence[str]
    deadline: float
    report: Callable[[Piece | Done | Exception], None]
    logprobs: int | None = None
    cancelled: bool = False
    enough: threading.Event | None = None
    past: DynamicCache | None = None

    @property
    def sated(self) -> bool:
        return self.enough is not None and self.enough.is_set()


@dataclass(eq=False)
class _Running:
    task: Task
    row: Row
    reader: AnswerReader
    started: float = field(default_factory=time.monotonic)


class FeatureCache:
    """Features (q, d_qformer) of the pictures last seen, by content: no picture is kept, and these not for long."""

    def __init__(self, size: int = 256, seconds: float = 600.0) -> None:
        self.size, self.seconds = size, seconds
        self._lock = threading.Lock()
        self._held: OrderedDict[bytes, tuple[float, Tensor]] = OrderedDict()  # the longest unused first

    def get(self, key: bytes) -> Tensor | None:
        with self._lock:
            self._forget()
            if key not in self._held:
                return None
            _, features = self._held.pop(key)
            self._held[key] = (time.monotonic(), features)
            return features

    def put(self, key: bytes, features: Tensor) -> None:
        with self._lock:
            self._held[key] = (time.monotonic(), features)
            self._held.move_to_end(key)
            self._forget()

    def _forget(self) -> None:
        oldest = time.monotonic() - self.seconds
        while self._held and (len(self._held) > self.size or next(iter(self._held.values()))[0] < oldest):
            self._held.popitem(last=False)


class Scheduler:
    """Answers tasks with `model`, up to `max_batch` at a time; `max_queue` more may wait.

    `encoded` and `reused` count pictures, `done` counts answers.
    """

    def __init__(self, model: MiniGPT4, max_batch: int = 16, max_queue: int = 128) -> None:
        self.model, self.max_batch, self.max_queue = model, max_batch, max_queue
        self.features = FeatureCache()
        self.encoded = self.reused = self.done = 0
        self._batch = ContinuousBatch(model)
        self._ends = end_tokens(model.blip2.language_model, model.tokenizer)
        self._waiting: deque[Task] = deque()
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

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue the tasks, all or none. Raises BusyError if there is no room for all of them."""
        with self._changed:
            room = self.max_queue + max(0, self.max_batch - self.running)
            if self.waiting + len(tasks) > room or self._closing:
                raise BusyError(self.retry_after)
            self._waiting += tasks
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
        task = Task(ids, features, decoding, (stop,), math.inf, events.put, enough=cancelled, past=cache)
        self.submit([task])
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
            task.cancelled = True

    def close(self, finish: bool = True) -> None:
        """Answer what was submitted (or break it off: not `finish`), take no more, and end the thread.

        What is broken off is not waited for longer than two seconds: a step of a large model may take more.
        """
        with self._changed:
            self._closing = True
            if not finish:
                for task in [*self._waiting, *(running.task for running in self._running)]:
                    _report(task, UserError("The server ends"))  # nobody may wait for ever
                    task.cancelled = True
            self._changed.notify()
        self._thread.join(None if finish else 2.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._changed.wait()
                if not (self._waiting or self._running):
                    return
                self._waiting = deque(task for task in self._waiting if not self._settled(task))
                free = self.max_batch - self.running
                new = [self._waiting.popleft() for _ in range(min(free, self.waiting))]
            try:
                self._advance(new)
            except Exception as error:  # the model's own: no memory left, say
                logger.exception("a batch of answers failed")
                for task in [*new, *(running.task for running in self._running)]:
                    _report(task, error)
                self._running, self._batch = [], ContinuousBatch(self.model)

    def _advance(self, new: Sequence[Task]) -> None:
        """One step: those who have gone leave, new tasks join, and everybody gets one more token."""
        self._let_go([running for running in self._running if self._hopeless(running.task)])
        if self._running:
            self._batch.step()
        if new:
            try:
                self._start(new)
            except Exception as error:  # whoever runs already can go on
                logger.exception("new requests failed")
                self._batch.leave(set(self._batch.rows) - {running.row for running in self._running})
                for task in new:
                    _report(task, error)
        self._let_go([running for running in self._running if self._read(running)])

    def _start(self, tasks: Sequence[Task]) -> None:
        encoded = self._encode([p for task in tasks if not isinstance(task.pictures, Tensor) for p in task.pictures])
        none, started = no_features(self.model), []
        for task in tasks:
            if isinstance(task.pictures, Tensor):
                features = task.pictures
            else:
                shown = [encoded[picture.key] for picture in task.pictures]
                features = torch.stack(shown) if shown else none
            row = Row(task.ids, features, task.decoding, task.logprobs, task.past)
            started.append(_Running(task, row, AnswerReader(self.model.tokenizer, task.stops, self._ends)))
        self._batch.join([running.row for running in started])
        self._running += started

    def _encode(self, pictures: Sequence[Picture]) -> dict[bytes, Tensor]:
        """Features of all pictures by key; each that is not known is encoded once."""
        features = {picture.key: picture.features for picture in pictures}
        for key in features:
            if features[key] is None:
                features[key] = self.features.get(key)
        new = {p.key: p.pixels for p in pictures if features[p.key] is None and p.pixels is not None}
        if new:
            encoded = self.model.encode_pixels(torch.cat(list(new.values())))
            for key, found in zip(new, encoded, strict=True):
                features[key] = found
                self.features.put(key, found.clone())  # a view would keep the whole batch alive
        self.encoded += len(new)
        self.reused += len(pictures) - len(new)
        return {key: found for key, found in features.items() if found is not None}

    def _read(self, running: _Running) -> bool:
        """Report the newest token of a row; True if it was the last."""
        task, row, reader = running.task, running.row, running.reader
        if row.failed is not None:
            _report(task, row.failed)
            return True
        if row.newest is None:
            return False
        piece, row_newest, row.newest = reader.read(row.newest.token), row.newest, None
        _report(task, Piece(piece, row_newest))
        if not (reader.ended or len(row.tokens) >= task.decoding.max_new_tokens or task.sated):
            return False
        answer, rest = reader.finish()
        past = None if task.past is None else self._batch.read_by(row)
        _report(task, Done(answer, rest, len(row.tokens), past))
        self.done += 1
        self._seconds += 0.1 * (time.monotonic() - running.started - self._seconds)
        return True

    def _settled(self, task: Task) -> bool:
        """Whether a task that waits need not begin."""
        if task.sated:
            _report(task, Done(Answer("", False, ()), "", 0))
            return True
        return self._hopeless(task)

    def _hopeless(self, task: Task) -> bool:
        if not task.cancelled and time.monotonic() > task.deadline:
            _report(task, LateError())
            return True
        return task.cancelled

    def _let_go(self, gone: Sequence[_Running]) -> None:
        self._batch.leave({running.row for running in gone})
        self._running = [running for running in self._running if running not in gone]


def _report(task: Task, event: Piece | Done | Exception) -> None:
    if not task.cancelled:
        with contextlib.suppress(RuntimeError):  # the loop of the one who asked has ended
            task.report(event)
