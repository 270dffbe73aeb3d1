"""From a request's JSON and files to what the scheduler is asked for: images, prompt, settings, all within limits."""

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
from minigpt4.app.api.errors import ApiError, late
from minigpt4.app.api.gate import Limits, ServerMetrics
from minigpt4.app.api.remote_images import read_image
from minigpt4.app.decoder import Decoder
from minigpt4.app.scheduler import AnswerRequest, Scheduler, SentImage
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
    """One model and its clients. `name` is what requests call the model, `card` what OpenAI's clients see of it."""

    def __init__(self, model: MiniGPT4, name: str, limits: Limits) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "minigpt4"}
        self.registry = CollectorRegistry()
        self.metrics = ServerMetrics(self.registry)
        self.scheduler = Scheduler(model, limits.batch, limits.queue)
        self.decoder = Decoder()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="minigpt4-prepare")
        self.metrics.running.set_function(lambda: self.scheduler.running)
        self.metrics.waiting.set_function(lambda: self.scheduler.waiting)
        self.metrics.images.labels("encoded").set_function(lambda: self.scheduler.encoded)
        self.metrics.images.labels("reused").set_function(lambda: self.scheduler.reused)

    def close(self) -> None:
        """End: nobody waits for an answer any more."""
        self.decoder.close()
        self.scheduler.close(finish=False)
        self._pool.shutdown()

    def check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"there is no model {name!r} here; there is {self.name!r}", "model_not_found", "model")

    async def requests(self, asked: schema.ChatRequest, uploads: Mapping[str, bytes]) -> list[AnswerRequest]:
        """The answers that are asked for, not yet submitted. Raises ApiError for what cannot be answered."""
        self.check_model(asked.model)
        deadline = time.monotonic() + self.limits.seconds
        prepare = partial(asyncio.get_running_loop().run_in_executor, self._pool)
        messages, urls = await prepare(read_messages, asked.messages)
        if len(urls) > self.limits.images:
            many = f"{len(urls)} pictures; this server takes at most {self.limits.images}"
            raise ApiError(400, many, param="messages")
        try:
            images = await asyncio.wait_for(self._images(urls, uploads), self.limits.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise late(self.limits.seconds) from None
        return await prepare(self._requests, asked, messages, images, deadline)

    def _requests(
        self, asked: schema.ChatRequest, messages: list[Message], images: list[SentImage], deadline: float
    ) -> list[AnswerRequest]:
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
        seeds = [None if asked.seed is None else (asked.seed + i) % 2**63 for i in range(asked.n or 1)]
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        return [
            AnswerRequest(ids, images, replace(decoding, seed=seed), (template.stop, *own), deadline, logprobs=logprobs)
            for seed in seeds
        ]

    async def _images(self, urls: Sequence[str], uploads: Mapping[str, bytes]) -> list[SentImage]:
        """Those at `urls`, one after the other, so that many in one request do not keep others waiting."""
        images = []
        for number, url in enumerate(urls, start=1):
            try:
                images.append(await self._image(url, uploads))
            except UserError as error:
                what = str(error).removeprefix("uploaded image: ")
                raise ApiError(400, f"picture {number}: {what}", param="messages") from None
        return images

    async def _image(self, url: str, uploads: Mapping[str, bytes]) -> SentImage:
        def read() -> tuple[bytes, bytes]:
            data = read_image(url, uploads, self.limits.hosts, self.limits.body_bytes)
            return data, hashlib.sha256(data).digest()

        data, key = await asyncio.to_thread(read)
        if (features := self.scheduler.features.recall(key)) is not None:
            return SentImage(key, features=features)
        processor = self.model.image_processor
        image = await asyncio.wrap_future(self.decoder.submit(data, self.limits.pixels, size_of(processor)))
        return SentImage(key, torch.from_numpy(to_pixels(processor, [image])))


def read_messages(asked: Sequence[schema.InMessage]) -> tuple[list[Message], list[str]]:
    """The conversation, and the URLs of all its images in order.

    An image stands where it was put: before the words, or among them. No text marks a place.
    """
    messages, urls, length = [], [], 0
    for message in asked:
        content = message.content
        parts = [schema.TextPart(type="text", text=content)] if isinstance(content, str) else content
        pieces = [""]  # the texts between the images
        for part in parts:
            if isinstance(part, schema.ImagePart):
                urls.append(part.image_url.url)
                pieces.append("")
            else:
                pieces[-1] += part.text
        length += sum(map(len, pieces))
        if length > schema.TEXT:
            raise ApiError(400, f"the messages have more than {schema.TEXT:,} characters", param="messages")
        *before, last = map(without_marks, pieces)
        text = IMAGE_MARK.join([*before, last]) if any(before) else last
        role: Any = "system" if message.role == "developer" else message.role
        messages.append(Message(role, text, len(before)))
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
