"""From a request's JSON and files to tasks for the scheduler: pictures, prompt, settings, all within the limits."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from prometheus_client import CollectorRegistry

from minigpt4.app.api import schema
from minigpt4.app.api.gate import ApiError, Limits, Metrics
from minigpt4.app.api.remote_images import read_picture
from minigpt4.app.decoder import Decoder
from minigpt4.app.scheduler import Picture, Scheduler, Task
from minigpt4.errors import UserError
from minigpt4.generation.decoding import Decoding, room_for_answer
from minigpt4.images import size_of, to_pixels
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import IMAGE_MARK, Message, without_marks

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

#: Below this a temperature takes the likeliest token anyway, and dividing by it overflows.
COLD = 1e-3


class Service:
    """One model and those who ask it: makes tasks of requests. `name` is what they call the model."""

    def __init__(self, model: MiniGPT4, name: str, limits: Limits) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.created = int(time.time())
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.scheduler = Scheduler(model, limits.batch, limits.queue)
        self.decoder = Decoder()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="minigpt4-prepare")
        running, waiting = self.metrics.running, self.metrics.waiting
        running.set_function(lambda: self.scheduler.running)
        waiting.set_function(lambda: self.scheduler.waiting)
        self.metrics.pictures.labels("encoded").set_function(lambda: self.scheduler.encoded)
        self.metrics.pictures.labels("reused").set_function(lambda: self.scheduler.reused)

    def close(self) -> None:
        """End: nobody waits for an answer any more."""
        self.decoder.close()
        self.scheduler.close(finish=False)
        self._pool.shutdown()

    def check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"there is no model {name!r} here; there is {self.name!r}", "model_not_found", "model")

    async def tasks(self, asked: schema.ChatRequest, uploads: Mapping[str, bytes]) -> list[Task]:
        """The request's answers-to-be, not yet submitted. Raises ApiError for what cannot be answered."""
        self.check_model(asked.model)
        deadline = time.monotonic() + self.limits.seconds
        prepare = partial(asyncio.get_running_loop().run_in_executor, self._pool)
        messages, urls = await prepare(read_messages, asked.messages)
        if len(urls) > self.limits.pictures:
            raise ApiError(
                400, f"{len(urls)} pictures; this server takes at most {self.limits.pictures}", param="messages"
            )
        try:
            pictures = await asyncio.wait_for(self._pictures(urls, uploads), self.limits.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            late = f"the request took more than the {self.limits.seconds:g} s allowed"
            raise ApiError(408, late, "timeout", type="timeout_error") from None
        return await prepare(self._tasks, asked, messages, pictures, deadline)

    def _tasks(
        self, asked: schema.ChatRequest, messages: list[Message], pictures: list[Picture], deadline: float
    ) -> list[Task]:
        model, template = self.model, self.model.template
        try:
            ids = encode_chat(model.tokenizer, template, messages, model.num_query_tokens, model.image_token_id)
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None
        if self.limits.prompt_tokens is not None and len(ids) > self.limits.prompt_tokens:
            too_long = f"the conversation is {len(ids)} tokens long; this server takes {self.limits.prompt_tokens}"
            raise ApiError(400, too_long, "context_length_exceeded", "messages")
        decoding = read_decoding(asked)
        try:
            decoding = replace(decoding, max_new_tokens=room_for_answer(model, len(ids), decoding))
        except UserError as error:
            raise ApiError(400, str(error), "context_length_exceeded", "messages") from None
        own = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        return [
            Task(
                ids,
                pictures,
                decoding if asked.seed is None else replace(decoding, seed=(asked.seed + i) % 2**63),
                (template.stop, *own),
                deadline,
                report=lambda event: None,
                logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            )
            for i in range(asked.n or 1)
        ]

    async def _pictures(self, urls: Sequence[str], uploads: Mapping[str, bytes]) -> list[Picture]:
        """Those at `urls`, one after the other, so that many in one request do not keep others waiting."""
        pictures = []
        for number, url in enumerate(urls, start=1):
            try:
                pictures.append(await self._picture(url, uploads))
            except UserError as error:
                what = str(error).removeprefix("uploaded image: ")
                raise ApiError(400, f"picture {number}: {what}", param="messages") from None
        return pictures

    async def _picture(self, url: str, uploads: Mapping[str, bytes]) -> Picture:
        def read() -> tuple[bytes, bytes]:
            data = read_picture(url, uploads, self.limits.hosts, self.limits.body_bytes)
            return data, hashlib.sha256(data).digest()

        data, key = await asyncio.to_thread(read)
        if (features := self.scheduler.features.get(key)) is not None:
            return Picture(key, features=features)
        processor = self.model.image_processor
        image = await asyncio.wrap_future(self.decoder.submit(data, self.limits.pixels, size_of(processor)))
        return Picture(key, torch.from_numpy(to_pixels(processor, [image])))


def read_messages(asked: Sequence[schema.InMessage]) -> tuple[list[Message], list[str]]:
    """The conversation, and the URLs of all its pictures in order.

    A picture stands where it was put: before the words, or among them. Nothing that somebody writes marks a place.
    """
    messages, urls, length = [], [], 0
    for message in asked:
        parts = (
            message.content
            if isinstance(message.content, list)
            else [schema.TextPart(type="text", text=message.content)]
        )
        pieces, images = [""], 0  # the texts between the pictures
        for part in parts:
            if isinstance(part, schema.ImagePart):
                urls.append(part.image_url.url)
                pieces.append("")
                images += 1
            else:
                pieces[-1] += part.text
        length += sum(map(len, pieces))
        if length > schema.TEXT:
            raise ApiError(400, f"the messages have more than {schema.TEXT:,} characters", param="messages")
        pieces = [without_marks(piece) for piece in pieces]
        first_words = next((i for i, piece in enumerate(pieces) if piece), images)
        text = pieces[-1] if first_words == images else IMAGE_MARK.join(pieces)
        role: Any = "system" if message.role == "developer" else message.role
        messages.append(Message(role, text, images))
    return messages, urls


def read_decoding(asked: schema.ChatRequest) -> Decoding:
    """How the request wants its tokens chosen."""
    settings: dict[str, Any] = {
        "max_new_tokens": asked.max_completion_tokens or asked.max_tokens,
        "top_p": asked.top_p,
        "repetition_penalty": asked.repetition_penalty,
        "temperature": asked.temperature,
        "do_sample": True,
    }
    if asked.temperature is not None and asked.temperature < COLD:
        settings |= {"temperature": None, "do_sample": False}
    return Decoding(**{key: value for key, value in settings.items() if value is not None})
