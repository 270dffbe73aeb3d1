"""What stands before the API and meets every request first: who may come in, how much they may bring, and how slowly.

A body is read here, whole and once, so that nothing behind this meets more than the limits. Errors have OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds that the head of a request may take.
HEAD_SECONDS = 20.0
ROUTES = ("/v1/chat/completions", "/v1/models", "/health", "/metrics")


@dataclass(frozen=True)
class Limits:
    """What one client may ask for at most, and all together. `hosts` may be asked for pictures; none by default."""

    body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    pixels: int = 16_000_000
    pictures: int = 8
    prompt_tokens: int | None = None
    seconds: float = 120.0
    batch: int = 16
    queue: int = 128
    hosts: tuple[str, ...] = ()


class ApiError(Exception):
    """An answer that is an error: OpenAI's `message`, `type`, `param` and `code`, with an HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        type: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code}}

    def response(self) -> Any:
        # What a client sent may be no Unicode at all, and comes back in messages.
        clean = json.dumps(self.body, ensure_ascii=False).encode("utf-8", "replace")
        return JSONResponse(json.loads(clean), self.status, self.headers)


def busy(retry_after: int) -> ApiError:
    message = f"too many requests are waiting; try again in {retry_after} s"
    return ApiError(429, message, "server_busy", type="rate_limit_error", headers={"Retry-After": str(retry_after)})


class Metrics:
    """What Prometheus may read. Kept in a registry of its own."""

    def __init__(self, registry: Any) -> None:
        seconds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
        self.requests = Counter("minigpt4_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram("minigpt4_request_seconds", "Whole request", buckets=seconds, registry=registry)
        self.first_token = Histogram(
            "minigpt4_first_token_seconds", "From the request to its first token", buckets=seconds, registry=registry
        )
        self.prompt_tokens = Counter("minigpt4_prompt_tokens", "Tokens read", registry=registry)
        self.new_tokens = Counter("minigpt4_generated_tokens", "Tokens written", registry=registry)
        self.running = Gauge("minigpt4_running", "Answers being written", registry=registry)
        self.waiting = Gauge("minigpt4_waiting", "Answers waiting for room in the batch", registry=registry)
        self.pictures = Gauge("minigpt4_pictures", "Pictures so far", ["features"], registry=registry)


class Gate:
    """ASGI middleware: host and key, then room, then the body within its limits; counts what comes out.

    `hosts` are the names by which the server may be called (None: any), `retry_after` says when to come again.
    """

    def __init__(
        self,
        app: Any,
        limits: Limits,
        key: str | None,
        hosts: Collection[str] | None,
        metrics: Metrics,
        retry_after: Callable[[], int],
    ) -> None:
        self.app, self.limits, self.hosts, self.metrics, self.retry_after = app, limits, hosts, metrics, retry_after
        self.key = None if key is None else key.encode()
        self.inside = 0  # requests with a body

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def counted(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._enter(scope, receive, counted)
        except ApiError as error:
            if not status:
                await error.response()(scope, receive, counted)
        except asyncio.CancelledError:  # the server ends, and this would take too long
            if not status:
                ends = ApiError(503, "the server ends", "server_ends", type="server_error")
                await ends.response()(scope, receive, counted)
        finally:
            path = next((route for route in ROUTES if scope["path"].startswith(route)), "other")
            self.metrics.requests.labels(path, status).inc()
            if path == ROUTES[0]:
                self.metrics.seconds.observe(time.monotonic() - started)

    async def _enter(self, scope: Any, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
        if self.hosts is not None and name not in self.hosts:  # a web page that had its own name point here
            raise ApiError(403, f"this server does not go by the name of {name!r}", "wrong_host")
        if self.key is not None and scope["path"].startswith(("/v1/", "/metrics")):
            given = headers.get("authorization", "").partition(" ")
            if given[0].lower() != "bearer" or not hmac.compare_digest(given[2].strip().encode("latin-1"), self.key):
                raise ApiError(401, "wrong or missing API key", "invalid_api_key", type="authentication_error")
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        if self.inside >= self.limits.batch + self.limits.queue:
            raise busy(self.retry_after())
        self.inside += 1
        try:
            body = await self._body(headers, receive)
            scope, body = await _without_files(scope, headers, body, self.limits)
            # However slowly it is read, an answer has its end.
            limit = self.limits.seconds + self.limits.body_seconds
            await asyncio.wait_for(self.app(scope, _replayed(body, receive), send), limit)
        except (TimeoutError, asyncio.TimeoutError):
            raise ApiError(408, "the request took too long", "timeout", type="timeout_error") from None
        finally:
            self.inside -= 1

    async def _body(self, headers: Any, receive: Any) -> bytes:
        too_large = ApiError(413, f"the body is over the {self.limits.body_bytes:,} bytes allowed", "body_too_large")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self.limits.body_bytes:
            raise too_large
        body, more = bytearray(), True
        end = time.monotonic() + self.limits.body_seconds
        while more:
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except (TimeoutError, asyncio.TimeoutError):
                late = f"the body did not come within {self.limits.body_seconds:g} s"
                raise ApiError(408, late, "timeout", type="timeout_error", headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise ApiError(400, "the body did not come whole")
            body += message.get("body", b"")
            if len(body) > self.limits.body_bytes:
                raise too_large
            more = message.get("more_body", False)
        return bytes(body)


def _replayed(body: bytes, receive: Any) -> Any:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return again


async def _without_files(scope: Any, headers: Any, body: bytes, limits: Limits) -> tuple[Any, bytes]:
    """Of a multipart request the field `request` as its body, the files as `uploads` in the scope; else as it is."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        return scope, body

    async def whole() -> AsyncIterator[bytes]:
        yield body

    parser = MultiPartParser(
        headers, whole(), max_files=limits.pictures + 1, max_fields=1, max_part_size=limits.body_bytes
    )
    parser.spool_max_size = limits.body_bytes  # never to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise ApiError(400, f"broken multipart body ({getattr(error, 'message', error)})") from None
    try:
        uploads = {name: await part.read() for name, part in form.multi_items() if isinstance(part, UploadFile)}
        asked = form.get("request")
    finally:
        await form.close()
    inner = uploads.pop("request", None) if not isinstance(asked, str) else asked.encode()
    if inner is None:
        raise ApiError(400, "a multipart request needs the field 'request' with the JSON in it", param="request")
    kept = [(k, v) for k, v in scope["headers"] if k not in (b"content-type", b"content-length")]
    return {**scope, "headers": [*kept, (b"content-type", b"application/json")], "uploads": uploads}, inner


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP, but patient only so long with a client that dawdles over the head of a request.

    The same clock runs while what is left of a refused request's body comes in.
    """

    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._alarm is not None:
            self._alarm.cancel()

    def _watch(self) -> None:
        between_requests = self.cycle is None or self.cycle.response_complete
        if between_requests and self._alarm is None:
            self._alarm = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not between_requests and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
