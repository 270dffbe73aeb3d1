"""From a request's JSON and files to what the scheduler is asked for: images, prompt, settings, all within limits."""

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from minigpt4.app.api import schema
from minigpt4.app.api.errors import ApiError, late
from minigpt4.app.api.gate import Limits, ServerMetrics
from minigpt4.app.api.remote_images import read_sent_image
from minigpt4.app.decoder import Decoder
from minigpt4.app.scheduler import AnswerRequest, Scheduler, SentImage
from minigpt4.errors import UserError
from minigpt4.generation.decoding import Decoding, fitting
from minigpt4.images import size_of, to_pixels
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import IMAGE_MARK, Message, what_is_read, without_marks

COLD = 1e-3  # below this a temperature takes the likeliest token anyway, and dividing by it overflows


class Service:
    """One model and its clients. `name` is what requests call the model, `card` what OpenAI's clients see of it."""

    def __init__(self, model: MiniGPT4, name: str, limits: Limits) -> None:
        self.model, self.name, self.limits = model, name, limits
        self.card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "minigpt4"}
        self.scheduler = Scheduler(model, limits.batch, limits.queue)
        self.metrics = ServerMetrics(self.scheduler)
        self.decoder = Decoder()
        self.fetching = ThreadPoolExecutor(32)  # apart from asyncio's own few threads: a host may say nothing for long

    def close(self) -> None:
        """End: nobody waits for an answer any more."""
        self.decoder.close()
        self.fetching.shutdown(wait=False, cancel_futures=True)
        self.scheduler.close()

    def check_model(self, name: str) -> None:
        if name != self.name:
            raise ApiError(404, f"there is no model {name!r} here; there is {self.name!r}", "model_not_found", "model")

    async def requests(self, asked: schema.ChatRequest, uploads: Mapping[str, bytes]) -> list[AnswerRequest]:
        """The answers that are asked for, not yet submitted. Raises ApiError for what cannot be answered."""
        self.check_model(asked.model)
        deadline = time.monotonic() + self.limits.seconds
        messages, urls = await asyncio.to_thread(read_messages, asked.messages)
        if len(urls) > self.limits.images:
            raise ApiError(400, f"{len(urls)} images; this server takes at most {self.limits.images}", param="messages")
        try:
            images = await asyncio.wait_for(self._images(urls, uploads), self.limits.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            raise late(self.limits.seconds) from None
        return await asyncio.to_thread(self._requests, asked, messages, images, deadline)

    def _requests(
        self, asked: schema.ChatRequest, messages: list[Message], images: list[SentImage], deadline: float
    ) -> list[AnswerRequest]:
        model, template = self.model, self.model.template
        try:
            ids = encode_chat(model.tokenizer, template, messages, model.num_query_tokens, model.image_token_id)
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None
        decoding = read_decoding(asked, model.decoding)
        try:
            decoding = fitting(model, len(ids), decoding)
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
        images, processor, hosts, loop = [], self.model.image_processor, self.limits.hosts, asyncio.get_running_loop()
        for number, url in enumerate(urls, start=1):
            try:
                pool = self.fetching if url[:4].lower() == "http" else None
                data = await loop.run_in_executor(pool, read_sent_image, url, uploads, hosts, self.limits.body_bytes)
                key = (await asyncio.to_thread(hashlib.sha256, data)).digest()
                if (features := self.scheduler.features.use(key)) is not None:
                    images.append(SentImage(key, features=features))
                    continue
                image = await asyncio.wrap_future(self.decoder.submit(data, self.limits.pixels, size_of(processor)))
                images.append(SentImage(key, torch.from_numpy(to_pixels(processor, [image], fitted=True))))
            except UserError as error:
                raise ApiError(400, f"image {number}: {error}", param="messages") from None
        return images


def read_messages(asked: Sequence[schema.InMessage]) -> tuple[list[Message], list[str]]:
    """What is read of the conversation, with a mark where an image stands among words, and its images' URLs."""
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
        role: Any = "system" if message.role == "developer" else message.role
        messages.append(Message(role, IMAGE_MARK.join([*before, last]) if any(before) else last, len(before)))
    read = what_is_read(messages)
    return read, urls[len(urls) - sum(message.images for message in read) :]


def read_decoding(asked: schema.ChatRequest, suggested: dict[str, Any]) -> Decoding:
    """How the request wants its tokens chosen; where it does not say, as the model's record suggests."""
    settings = asked.model_dump(include={"temperature", "top_p", "repetition_penalty"}, exclude_none=True)
    if longest := asked.max_completion_tokens or asked.max_tokens:
        settings["max_new_tokens"] = longest
    if asked.temperature is not None:
        settings["do_sample"] = asked.temperature >= COLD
        if not settings["do_sample"]:
            del settings["temperature"]
    return Decoding.from_settings(settings, suggested)
