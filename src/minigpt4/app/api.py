"""The HTTP API that OpenAI's clients speak: chat completions with pictures, streamed or whole, n at a time.

From what the scheduler reports to a response. Who may ask and how much is settled before (see `gate.py`), and what a
request means in `service.py`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from minigpt4.app import description, schema
from minigpt4.app.gate import ApiError, Gate, Limits, PatientProtocol, busy, room_for_connections
from minigpt4.app.scheduler import BusyError, Done, LateError, Piece, Task
from minigpt4.app.service import Service
from minigpt4.local_web import listen, names, url

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse} for status in (400, 401, 403, 404, 408, 413, 429, 500)
}
#: Of the 10 s that service managers grant between SIGTERM and SIGKILL, those for answers that are being written.
ENDING_SECONDS = 7
_MULTIPART = {
    "schema": {
        "type": "object",
        "required": ["request"],
        "properties": {"request": {"type": "string", "description": "The JSON; its pictures are cid:NAME."}},
        "additionalProperties": {"type": "string", "format": "binary"},
    }
}


class Exchange:
    """A request's tasks on their way: submits them, and collects what is reported of them."""

    def __init__(self, service: Service, asked: schema.ChatRequest, tasks: list[Task]) -> None:
        self.service, self.asked, self.tasks = service, asked, tasks
        key = secrets.token_hex(12)
        self.head: dict[str, Any] = {"id": f"chatcmpl-{key}", "created": int(time.time()), "model": service.name}
        self._events: asyncio.Queue[tuple[int, Piece | Done | Exception]] = asyncio.Queue()
        self._open = len(tasks)
        self._started = time.monotonic()
        self.written = 0
        loop = asyncio.get_running_loop()
        for index, task in enumerate(tasks):
            task.report = self._reporter(loop, index)
        try:
            service.scheduler.submit(tasks)
        except BusyError as error:
            raise busy(error.retry_after) from None

    def _reporter(self, loop: asyncio.AbstractEventLoop, index: int) -> Callable[[Piece | Done | Exception], None]:
        def report(event: Piece | Done | Exception) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

        return report

    def cancel(self) -> None:
        """Nobody waits any more: the tasks leave the batch."""
        for task in self.tasks:
            task.cancelled = True

    async def events(self) -> AsyncIterator[tuple[int, Piece | Done]]:
        """What happens, as it happens, until all answers have ended. Raises ApiError if one fails."""
        metrics = self.service.metrics
        metrics.prompt_tokens.inc(len(self.tasks[0].ids))
        first = True
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, LateError):
                message = f"the request took more than the {self.service.limits.seconds:g} s allowed"
                raise ApiError(408, message, "timeout", type="timeout_error")
            if isinstance(event, Exception):
                raise ApiError(500, "the model failed", "server_error", type="server_error")
            if first:
                metrics.first_token.observe(time.monotonic() - self._started)
                first = False
            if isinstance(event, Done):
                self._open -= 1
                self.written += event.tokens
                metrics.new_tokens.inc(event.tokens)
            yield index, event

    def usage(self) -> schema.Usage:
        read = len(self.tasks[0].ids)
        return schema.Usage(prompt_tokens=read, completion_tokens=self.written, total_tokens=read + self.written)

    async def whole(self) -> schema.ChatCompletion:
        """All answers when the last has ended."""
        chosen: list[list[schema.TokenLogprob]] = [[] for _ in self.tasks]
        choices: list[Any] = [None] * len(self.tasks)
        async for index, event in self.events():
            if isinstance(event, Piece):
                chosen[index] += self._logprobs([event])
                continue
            kept = chosen[index][: _answered(event)]
            choices[index] = schema.Choice(
                index=index,
                message=schema.OutMessage(content=event.answer.text),
                logprobs=schema.Logprobs(content=kept) if self.asked.logprobs else None,
                finish_reason="stop" if event.answer.ended else "length",
            )
        return schema.ChatCompletion(**self.head, choices=choices, usage=self.usage())

    async def chunks(self) -> AsyncIterator[schema.ChatCompletionChunk]:
        """The answers in pieces. Log-probabilities come with the text that they belong to, or with the next."""
        pending: list[list[Piece]] = [[] for _ in self.tasks]
        told: list[int | None] = [None] * len(self.tasks)
        async for index, event in self.events():
            if isinstance(event, Piece):
                pending[index].append(event)
                ready = pending[index] if event.text else []
            else:
                ready = pending[index][: max(0, _answered(event) - (told[index] or 0))]
            if event.text or ready or told[index] is None:
                delta = schema.Delta(content=event.text)
                if told[index] is None:
                    delta = schema.Delta(role="assistant", content=event.text)
                logprobs = schema.Logprobs(content=self._logprobs(ready)) if self.asked.logprobs else None
                yield self._chunk(index, delta, logprobs)
                told[index] = (told[index] or 0) + len(ready)
                pending[index] = pending[index][len(ready) :]
            if isinstance(event, Done):
                reason = "stop" if event.answer.ended else "length"
                yield self._chunk(index, schema.Delta(), None, reason)
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            yield schema.ChatCompletionChunk(**self.head, choices=[], usage=self.usage())

    def _chunk(
        self, index: int, delta: schema.Delta, logprobs: schema.Logprobs | None = None, reason: Any = None
    ) -> schema.ChatCompletionChunk:
        choice = schema.ChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=reason)
        return schema.ChatCompletionChunk(**self.head, choices=[choice])

    def _logprobs(self, pieces: Sequence[Piece]) -> list[schema.TokenLogprob]:
        if not self.asked.logprobs:
            return []

        def told(token: int, logprob: float) -> dict[str, Any]:
            text = self.service.model.tokenizer.decode([token], clean_up_tokenization_spaces=False)
            whole = "\ufffd" not in text  # else a part of a character
            # No probability at all has no place in JSON; OpenAI writes -9999 too.
            return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode()) if whole else None}

        return [
            schema.TokenLogprob(
                **told(piece.chosen.token, piece.chosen.logprob or 0.0),
                top_logprobs=[schema.TopLogprob(**told(*pair)) for pair in piece.chosen.likeliest],
            )
            for piece in pieces
        ]


def _answered(done: Done) -> int:
    """How many of the generated tokens stand in the answer whole."""
    return len(done.answer.tokens) - done.answer.respelled


class _Events(StreamingResponse):
    """Server-sent events; the tasks behind them end with the connection, however it ends."""

    def __init__(self, exchange: Exchange, first: schema.ChatCompletionChunk, rest: AsyncIterator[Any]) -> None:
        super().__init__(
            self._lines(first, rest), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )
        self.exchange = exchange

    async def _lines(self, first: schema.ChatCompletionChunk, rest: AsyncIterator[Any]) -> AsyncIterator[str]:
        yield _event(first)
        try:
            async for chunk in rest:
                yield _event(chunk)
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield f"data: {error.response().body.decode()}\n\n"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.exchange.cancel()


def _event(chunk: schema.ChatCompletionChunk) -> str:
    return f"data: {chunk.model_dump_json()}\n\n"


async def _unless_gone(request: Request, waited_for: Awaitable[Any]) -> Any:
    """The result; cancelled, and None, if the client hangs up before it is there."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answer, hung_up = asyncio.ensure_future(waited_for), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({answer, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        hung_up.cancel()


def create_app(service: Service, key: str | None = None, hosts: Sequence[str] | None = None) -> FastAPI:
    """The API for `service`. `key`: what clients must have; `hosts`: names by which they may call it (None: any)."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        asyncio.get_running_loop().set_exception_handler(_once_if_full())
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    # FastAPI's own pages about the API load their scripts from another host.
    app = FastAPI(
        title="MiniGPT-4", version="1", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.add_middleware(
        Gate, limits=service.limits, key=key, hosts=hosts, metrics=service.metrics,
        retry_after=lambda: service.scheduler.retry_after,
    )  # fmt: skip
    _add_error_shapes(app)

    @app.post(
        "/v1/chat/completions",
        response_model=None,
        responses={200: {"model": schema.ChatCompletion, "content": {"text/event-stream": {}}}, **_ERRORS},
        openapi_extra={"requestBody": {"content": {"multipart/form-data": _MULTIPART}}},
    )
    async def chat_completions(body: schema.ChatRequest, request: Request) -> Any:
        """Answer a conversation about pictures: at once, or with `stream` as server-sent events."""
        tasks = await _unless_gone(request, service.tasks(body, request.scope.get("uploads", {})))
        if tasks is None:
            return Response(status_code=499)
        exchange = Exchange(service, body, tasks)
        streaming = False
        try:
            if not body.stream:
                found = await _unless_gone(request, exchange.whole())
                return Response(status_code=499) if found is None else found
            chunks = exchange.chunks()
            first = await _unless_gone(request, anext(chunks))  # until it is there, an error is a response
            if first is None:
                return Response(status_code=499)
            streaming = True
            return _Events(exchange, first, chunks)
        finally:
            if not streaming:
                exchange.cancel()

    @app.get("/v1/models", responses=_ERRORS)
    async def models() -> schema.ModelList:
        """The one model that is served."""
        return schema.ModelList(data=[schema.Model(id=service.name, created=service.created, owned_by="minigpt4")])

    @app.get("/v1/models/{name:path}", responses=_ERRORS)
    async def model(name: str) -> schema.Model:
        """The model of that name."""
        service.check_model(name)
        return schema.Model(id=service.name, created=service.created, owned_by="minigpt4")

    @app.get("/health", responses=_ERRORS)
    async def health() -> schema.Health:
        """Whether the model can answer."""
        if not service.scheduler.alive:
            raise ApiError(500, "the scheduler has died", "server_error", type="server_error")
        return schema.Health()

    @app.get("/metrics", response_class=Response, responses=_ERRORS)
    async def metrics() -> Any:
        """Counts and times in Prometheus's format."""
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Any:
        """The API's description, for people."""
        return HTMLResponse(description.page(app.openapi()))

    return app


def _once_if_full() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """asyncio goes on a second after it had no file descriptor for a connection, but reports each such connection."""
    told = False

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal told
        message = str(context.get("message"))
        if "socket.accept()" not in message and "_start_serving" not in message:  # the second if it has closed since
            loop.default_exception_handler(context)
        elif not told:
            told = True
            logging.getLogger("uvicorn.error").warning("no file descriptors are left for more connections")

    return handle


def _mistake(errors: Sequence[Any], body: Any) -> tuple[str, str]:
    """Where in the client's JSON a mistake is, and which, in words; what is not supported comes first."""
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    steps, context = error["loc"][1:], error.get("ctx", {})
    missing = error["type"] in ("missing", "extra_forbidden")  # perhaps not in what the client sent
    place = []
    for step in steps[: len(steps) - missing]:  # without the names of the choices that pydantic made
        if step in body if isinstance(body, dict) else isinstance(body, list) and isinstance(step, int):
            body = body[step]
            place.append(str(step))
    place += map(str, steps[len(steps) - missing :])
    if kind := context.get("discriminator"):
        place.append(kind.strip("'"))
    if error["type"] == "extra_forbidden" or context.get("max_length") == 0:
        return ".".join(place), "this server does not do that, so leave it out"
    if "tag" in context:
        return ".".join(place), f"{context['tag']!r:.100} is not supported; {context['expected_tags']} are"
    if not steps and error["type"] != "value_error":
        return "", "the body must be a JSON object, sent with Content-Type: application/json"
    if kind or missing:
        return ".".join(place), "is missing"
    what = str(error["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    what = re.sub("Input should be a valid dictionary.*", "must be a JSON object", what)
    return ".".join(place), what.replace("Input should be", "must be")


def _add_error_shapes(app: FastAPI) -> None:
    """Errors of every sort in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Any:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def of_shape(request: Request, error: RequestValidationError) -> Any:
        where, what = _mistake(error.errors(), error.body)
        return ApiError(400, f"{where}: {what}" if where else what, param=where or None).response()

    @app.exception_handler(HTTPException)
    async def of_path(request: Request, error: HTTPException) -> Any:
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response()

    @app.exception_handler(Exception)
    async def of_nobodys(request: Request, error: Exception) -> Any:
        return ApiError(500, "the server failed", "server_error", type="server_error").response()


def make_server(service: Service, key: str | None = None, hosts: Sequence[str] | None = None) -> uvicorn.Server:
    """A server for `create_app`'s API. When it has to end, it finishes what it can in ENDING_SECONDS."""
    config = uvicorn.Config(
        create_app(service, key, hosts), http=PatientProtocol, ws="none", log_level="warning", server_header=False,
        limit_concurrency=service.limits.connections, backlog=100,  # as many may be accepted before one is looked at
        timeout_graceful_shutdown=ENDING_SECONDS,
    )  # fmt: skip
    return uvicorn.Server(config)


def serve(
    load_model: Callable[[], MiniGPT4],
    name: str,
    host: str,
    port: int,
    limits: Limits,
    key: str | None,
    ready: Callable[[str], None],
) -> None:
    """Serve the model until SIGINT or SIGTERM, then finish what is running. `ready` is given the API's address.

    Raises UserError if the port is taken.
    """
    limits = replace(limits, connections=room_for_connections(limits.connections))
    with listen(host, port) as listening:
        server = make_server(Service(load_model(), name, limits), key, names(host))
        ready(f"{url(host, listening)}v1")
        server.run(sockets=[listening])
