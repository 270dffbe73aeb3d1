"""The HTTP API that OpenAI's clients speak: responses, streamed or whole, from what the scheduler reports."""

import asyncio
import functools
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from minigpt4.app.api import errors
from minigpt4.app.api.gate import Gate, Limits, PatientProtocol, room_for_connections
from minigpt4.app.api.schema import ChatRequest
from minigpt4.app.api.service import Service
from minigpt4.app.scheduler import AnswerRequest, AnswerStep, BusyError, Event, LateError
from minigpt4.generation.stopping import Answer
from minigpt4.local_web import allowed_hosts, listen, url
from minigpt4.minigpt4 import MiniGPT4

#: Of the 10 s that service managers grant between SIGTERM and SIGKILL, those for answers that are being written.
ENDING_SECONDS = 7
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": 'An error: {"error": {"message", "type", "param", "code"}}'}
    for status in (400, 401, 403, 404, 408, 413, 429, 500)
}


class Exchange:
    """The answers to one HTTP request: submits them to the scheduler, and makes responses of what it reports."""

    def __init__(self, service: Service, asked: ChatRequest, requests: list[AnswerRequest]) -> None:
        self.service, self.asked, self.requests = service, asked, requests
        name = f"chatcmpl-{secrets.token_hex(12)}"
        self.head: dict[str, Any] = {"id": name, "created": int(time.time()), "model": service.name}
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._started, self._written = time.monotonic(), 0
        loop = asyncio.get_running_loop()

        def report(index: int, event: Event) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        for index, request in enumerate(requests):
            request.report = functools.partial(report, index)
        service.scheduler.submit(requests)

    def cancel(self) -> None:
        """Drop the answers: nobody waits any more."""
        for request in self.requests:
            request.cancelled = True

    async def steps(self) -> AsyncIterator[tuple[int, AnswerStep]]:
        """What happens, as it happens, until all answers have ended. Raises ApiError if one fails."""
        metrics, running = self.service.metrics, len(self.requests)
        metrics.prompt_tokens.inc(len(self.requests[0].ids))
        while running:
            index, event = await self._events.get()
            if isinstance(event, LateError):
                raise errors.late(self.service.limits.seconds)
            if isinstance(event, Exception):
                raise errors.ApiError(500, "the model failed")
            if not self._written:
                metrics.first_token.observe(time.monotonic() - self._started)
            self._written += 1
            metrics.new_tokens.inc()
            running -= event.answer is not None
            yield index, event

    def _usage(self) -> dict[str, int]:
        read, written = len(self.requests[0].ids), self._written
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    async def whole(self) -> dict[str, Any]:
        """All answers when the last has ended."""
        steps: list[list[AnswerStep]] = [[] for _ in self.requests]
        choices: list[Any] = [None] * len(self.requests)
        async for index, step in self.steps():
            steps[index].append(step)
            if step.answer is not None:
                choices[index] = {
                    "index": index,
                    "message": {"role": "assistant", "content": step.answer.text, "refusal": None},
                    "logprobs": self._logprobs(steps[index][: _kept(step.answer)]),
                    "finish_reason": "stop" if step.answer.ended else "length",
                }
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answers in pieces. Log-probabilities come with the text that they belong to, or with the next."""
        pending: list[list[AnswerStep]] = [[] for _ in self.requests]
        sent: list[int | None] = [None] * len(self.requests)  # log-probabilities; None before the first chunk
        async for index, step in self.steps():
            pending[index].append(step)
            ready = pending[index] if step.text else []
            if step.answer is not None:
                ready = pending[index][: max(0, _kept(step.answer) - (sent[index] or 0))]
            if step.text or ready or sent[index] is None:
                role = {"role": "assistant"} if sent[index] is None else {}
                yield self._chunk(index, {**role, "content": step.text}, self._logprobs(ready))
                sent[index] = (sent[index] or 0) + len(ready)
                pending[index] = pending[index][len(ready) :]
            if step.answer is not None:
                yield self._chunk(index, {}, None, "stop" if step.answer.ended else "length")
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()}

    def _chunk(self, index: int, delta: dict[str, str], logprobs: Any, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, steps: Sequence[AnswerStep]) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None

        decode = functools.partial(self.service.model.tokenizer.decode, clean_up_tokenization_spaces=False)
        before = self.service.model.tokenizer("a", add_special_tokens=False)["input_ids"][-1:]

        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = decode([*before, token])[len(decode(before)) :]  # alone, sentencepiece's would lose its space
            whole = "\ufffd" not in text  # else a part of a character
            # No probability at all has no place in JSON; OpenAI writes -9999 too.
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if whole else None}

        content = [
            {**entry(each.token, each.logprob or 0.0), "top_logprobs": [entry(*pair) for pair in each.likeliest]}
            for each in (step.chosen for step in steps)
            if each is not None
        ]
        return {"content": content, "refusal": None}


def _kept(answer: Answer) -> int:
    """How many of the generated tokens stand in the answer whole."""
    return len(answer.tokens) - answer.respelled


async def _lines(first: dict[str, Any], rest: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    yield f"data: {json.dumps(first)}\n\n"
    try:
        async for chunk in rest:
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"
    except HTTPException as error:
        yield f"data: {bytes(errors.response(error).body).decode()}\n\n"


async def _unless_gone(request: Request, waited_for: Awaitable[Any]) -> Any:
    """The result. If the client hangs up before it is there, it is cancelled, and HTTPException is raised."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, hung_up = asyncio.ensure_future(waited_for), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answer, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise HTTPException(499, "the client has hung up")
        return answer.result()
    finally:
        answer.cancel()
        hung_up.cancel()


def create_app(service: Service, key: str | None = None, hosts: Sequence[str] | None = None) -> FastAPI:
    """The API for `service`. `key`: what clients must have; `hosts`: names by which they may call it (None: any)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_handle)
        yield
        await asyncio.to_thread(service.close)

    # FastAPI's own pages about the API load their scripts from another host.
    app = FastAPI(
        title="MiniGPT-4", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False,
        responses=_ERRORS,
    )  # fmt: skip
    app.add_middleware(Gate, service=service, key=key, hosts=hosts)

    async def refuse(request: Request, error: Exception) -> Response:
        return errors.response(error)

    for kind in (RequestValidationError, HTTPException, BusyError, Exception):
        app.add_exception_handler(kind, refuse)

    @app.post(
        "/v1/chat/completions",
        responses={200: errors.OPENAI["answers"]},
        openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": errors.OPENAI["multipart"]}}}},
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Any:
        """Answer a conversation about images: at once, or with `stream` as server-sent events."""
        requests = await _unless_gone(request, service.requests(body, request.scope["uploads"]))
        exchange = Exchange(service, body, requests)
        request.scope["at_end"].callback(exchange.cancel)
        if not body.stream:
            return JSONResponse(await _unless_gone(request, exchange.whole()))
        chunks = exchange.chunks()
        first = await _unless_gone(request, anext(chunks))  # until it is there, an error is a response
        head = {"Cache-Control": "no-cache"}
        return StreamingResponse(_lines(first, chunks), media_type="text/event-stream", headers=head)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        return {"object": "list", "data": [service.card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """The model of that name."""
        service.check_model(name)
        return service.card

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the model can answer."""
        if not service.scheduler.thread.is_alive():
            raise errors.ApiError(500, "the scheduler has died")
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Any:
        """Counts and times in Prometheus's format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio goes on a second after it had no file descriptor for a connection, but reports each such connection."""
    message = str(context.get("message"))
    if "socket.accept()" in message or "_start_serving" in message:  # the second if it has closed since
        _tell_full()
    else:
        loop.default_exception_handler(context)


@functools.cache  # once is enough
def _tell_full() -> None:
    logging.getLogger("uvicorn.error").warning("no file descriptors are left for more connections")


def make_server(service: Service, key: str | None = None, hosts: Sequence[str] | None = None) -> uvicorn.Server:
    """A server for `create_app`'s API. When it has to end, it finishes what it can in ENDING_SECONDS."""
    config = uvicorn.Config(
        create_app(service, key, hosts), http=PatientProtocol, ws="none", log_level="warning", server_header=False,
        limit_concurrency=service.limits.connections, backlog=100,  # as many may be accepted before one is looked at
        timeout_graceful_shutdown=ENDING_SECONDS,
    )  # fmt: skip
    return uvicorn.Server(config)


def serve(
    load_model: Callable[[], MiniGPT4], name: str, host: str, port: int, limits: Limits, key: str | None,
    ready: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM; `ready` gets the API's address. Raises UserError if the port is taken."""
    limits = replace(limits, connections=room_for_connections(limits.connections))
    with listen(host, port) as listening:
        server = make_server(Service(load_model(), name, limits), key, allowed_hosts(host))
        ready(f"{url(host, listening)}v1")
        server.run(sockets=[listening])
