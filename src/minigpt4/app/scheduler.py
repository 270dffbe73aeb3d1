"""Continuous batching for many clients: requests wait in a bounded queue and join the batch when it has room."""

import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from minigpt4.app.recent import Recent
from minigpt4.errors import UserError
from minigpt4.generation.batching import Chosen, ContinuousBatch, Row
from minigpt4.generation.decoding import Decoding, fitting
from minigpt4.generation.engine import no_features
from minigpt4.generation.stopping import Answer, AnswerReader, end_tokens
from minigpt4.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)


class BusyError(UserError):
    """The queue is full; `retry_after` is how many seconds it may take until it is not."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after} s")
        self.retry_after = retry_after


class LateError(Exception):
    """The request timed out."""


@dataclass(eq=False)
class SentImage:
    """An image of a request: the key of its content, and its pixels (1, 3, h, w) or its features (q, d_qformer)."""

    key: bytes
    pixels: Tensor | None = None
    features: Tensor | None = None


@dataclass(frozen=True)
class AnswerStep:
    """What a step added to an answer: the token (None: it never began), and the text that can be shown by now."""

    text: str
    chosen: Chosen | None
    answer: Answer | None = None  # whole, with the last step
    past: DynamicCache | None = None  # of all that the LLM has read, if the request came with one


Event = AnswerStep | Exception


@dataclass(eq=False)
class AnswerRequest:
    """One answer that somebody waits for: the prompt's ids and images, and how it is decoded."""

    ids: Sequence[int]
    images: Sequence[SentImage]
    decoding: Decoding
    stops: Sequence[str]  # each of which ends the answer, as an end token does
    deadline: float = math.inf  # in seconds of `time.monotonic`; LateError is reported then
    #: Gets each step, from the scheduler's thread, and with the last the answer; or why there is none.
    report: Callable[[Event], None] = lambda event: None
    logprobs: int | None = None
    past: DynamicCache | None = None  # of a conversation that goes on: keys and values of the first of `ids`
    stop: threading.Event = field(default_factory=threading.Event)  # set: the text so far is the answer
    cancelled: bool = False  # nothing more is reported
    # While it runs:
    row: Row = field(init=False)
    reader: AnswerReader = field(init=False)
    started: float = field(init=False)

    def tell(self, event: Event) -> None:
        if not self.cancelled:
            with contextlib.suppress(RuntimeError):  # the loop of the one who asked has ended
                self.report(event)

    def end(self, event: Event) -> None:
        self.tell(event)
        self.cancelled = True

    def has_ended(self) -> bool:
        """Whether the request is cancelled, or late: then that is reported."""
        if time.monotonic() > self.deadline:
            self.end(LateError())
        return self.cancelled


class Scheduler:
    """Answers requests with `model`, up to `max_batch` at a time; `max_queue` more may wait."""

    def __init__(self, model: MiniGPT4, max_batch: int = 16, max_queue: int = 128) -> None:
        self.model, self.max_batch, self.max_queue = model, max_batch, max_queue
        self.features = Recent[Tensor](count=256, seconds=600.0)  # of images last seen, by content
        self.encoded = self.reused = 0  # images
        self._batch = ContinuousBatch(model)
        self._ends = end_tokens(model.blip2.language_model, model.tokenizer)
        self._waiting: deque[AnswerRequest] = deque()
        self._running: list[AnswerRequest] = []
        self._seconds = 1.0  # of late, for one answer: a moving mean
        self._closing = False
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="minigpt4-scheduler", daemon=True)
        self.thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

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
        self, ids: Sequence[int], features: Tensor, decoding: Decoding, stop: str, cache: DynamicCache,
        cancelled: threading.Event,
    ) -> Generator[str, None, Answer]:  # fmt: skip
        """`batching.decode_stream` in the batch of all who ask, for `Chat`. Raises BusyError too, without room."""
        decoding = fitting(self.model, len(ids), decoding)
        events = queue.SimpleQueue[Event]()
        images = [SentImage(b"", features=each) for each in features]
        asked = AnswerRequest(ids, images, decoding, (stop,), report=events.put, past=cache, stop=cancelled)
        self.submit([asked])
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                if event.text:
                    yield event.text
                if event.answer is not None:
                    if event.past is not None:
                        cache.layers[:] = event.past.layers
                    return event.answer
        finally:
            asked.cancelled = True

    def close(self) -> None:
        """Break off what was submitted, take no more, and end the thread."""
        with self._changed:
            self._closing = True
            _end([*self._waiting, *self._running], UserError("The server ends"))  # nobody may wait for ever
            self._changed.notify()
        self.thread.join(2.0)  # a step of a large model may take more

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._closing)
                if not (self._waiting or self._running):
                    return
                for asked in self._waiting:
                    if asked.stop.is_set():
                        asked.end(AnswerStep("", None, Answer("", False, ())))
                self._waiting = deque(asked for asked in self._waiting if not asked.has_ended())
                new = [self._waiting.popleft() for _ in range(min(self.max_batch - self.running, self.waiting))]
            try:
                self._advance(new)
            except Exception as error:  # the model's own: no memory left, say
                logger.exception("a batch of answers failed")
                _end([*new, *self._running], error)
                self._running, self._batch = [], ContinuousBatch(self.model)

    def _advance(self, new: Sequence[AnswerRequest]) -> None:
        """One step: those who have gone leave, new requests join, and everybody gets one more token."""
        self._keep([asked for asked in self._running if not asked.has_ended()])
        if self._running:
            self._batch.step()
        try:
            self._start(new)
        except Exception as error:  # what runs already can go on
            logger.exception("new requests failed")
            self._keep(self._running)
            _end(new, error)
        self._keep([asked for asked in self._running if not self._read(asked)])

    def _keep(self, running: list[AnswerRequest]) -> None:
        """Let all rows but these leave the batch."""
        self._running = running
        self._batch.leave(set(self._batch.rows) - {asked.row for asked in running})

    def _start(self, requests: Sequence[AnswerRequest]) -> None:
        self._encode([image for asked in requests for image in asked.images])
        for asked in requests:
            known = [image.features for image in asked.images if image.features is not None]
            features = torch.stack(known) if known else no_features(self.model)
            asked.row = Row(asked.ids, features, asked.decoding, asked.logprobs, asked.past)
            asked.reader = AnswerReader(self.model.tokenizer, asked.stops, self._ends)
            asked.started = time.monotonic()
        self._batch.join([asked.row for asked in requests])
        self._running += requests

    def _encode(self, images: Sequence[SentImage]) -> None:
        """Give all images their features; each that is not known is encoded once."""
        for image in images:
            if image.features is None:
                image.features = self.features.use(image.key)
        missing = [image for image in images if image.features is None]
        new = {image.key: image.pixels for image in missing if image.pixels is not None}
        self.encoded += len(new)
        self.reused += len(images) - len(new)
        if new:
            encoded = dict(zip(new, self.model.encode_pixels(torch.cat(list(new.values()))), strict=True))
            for image in missing:  # a view would keep the whole batch alive
                image.features = self.features.use(image.key, encoded[image.key].clone())

    def _read(self, asked: AnswerRequest) -> bool:
        """Report the newest token of an answer; True if it was the last."""
        try:
            newest = asked.row.chosen()
        except Exception as error:
            asked.end(error)
            return True
        text = asked.reader.read(newest.token)
        if not (asked.reader.ended or asked.row.is_full or asked.stop.is_set()):
            asked.tell(AnswerStep(text, newest))
            return False
        answer, rest = asked.reader.finish()
        past = None if asked.past is None else self._batch.read_by(asked.row)
        asked.end(AnswerStep(text + rest, newest, answer, past))
        self._seconds += 0.1 * (time.monotonic() - asked.started - self._seconds)
        return True


def _end(requests: Sequence[AnswerRequest], error: Exception) -> None:
    for asked in requests:
        asked.end(error)
