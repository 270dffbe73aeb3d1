"""What stands before the API and meets every request first: who may come in, how much they may bring, and how slowly.

A body is read here, whole and once, so that nothing behind this meets more than the limits. Errors have OpenAI's shape.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import resource
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt4.local_web import known_host, same_site

#: Seconds that the head of a request may take, and that a client may leave an answer unread.
HEAD_SECONDS = 20.0
#: Seconds that a body may pause, and the bytes per second that it must come with on average after as many seconds.
PAUSE, RATE = 5.0, 10_000
#: Bytes of a body for which there is always room, and the largest bodies for which there is room at the same time.
SMALL, LARGEST = 64_000, 10
#: Brackets, colons and commas in a request's JSON, and how deep it may nest.
MARKS, DEPTH = 30_000, 32
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
    connections: int = 1000
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
        # Messages quote what was sent, which may be long.
        message, param = message[:1000], param and param[:200]
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
    """ASGI middleware: key and site, then the body within its limits, then room; counts what comes out.

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
        self.coming = 0  # bodies on their way
        self.inside = 0  # requests with their bodies
        self.held = 0  # bytes of all bodies

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
        self._admit(scope, headers)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            await self._read(body, headers, receive)
            if self.inside >= self.limits.batch + self.limits.queue:
                raise busy(self.retry_after())
            self.inside += 1
            try:
                # However slowly it is read, an answer has its end.
                limit = self.limits.seconds + self.limits.body_seconds
                await asyncio.wait_for(self._answer(scope, headers, body, receive, send), limit)
            except (TimeoutError, asyncio.TimeoutError):
                raise ApiError(408, "the request took too long", "timeout", type="timeout_error") from None
            finally:
                self.inside -= 1
        finally:
            self.held -= len(body)

    def _admit(self, scope: Any, headers: Headers) -> None:
        """Refuse who has no right to ask. A right key may come from anywhere: no other site's page knows it."""
        if "content-length" in headers and "transfer-encoding" in headers:
            both = "a request has Content-Length or Transfer-Encoding, not both"  # a proxy may have read the other
            raise ApiError(400, both, headers={"Connection": "close"})
        given = headers.get("authorization", "").partition(" ")
        token = given[2].strip().encode("latin-1") if given[0].lower() == "bearer" else b""
        if self.key is not None and hmac.compare_digest(token, self.key):
            return
        if not known_host(headers, self.hosts):  # a web page that had its own name point here
            name = headers.get("host", "")
            raise ApiError(403, f"this server does not go by the name of {name!r}", "wrong_host")
        if scope["method"] not in ("GET", "HEAD") and not same_site(headers, self.hosts):
            raise ApiError(403, "this request comes from another website; only one with a key may", "other_site")
        if self.key is not None and scope["path"].startswith(("/v1/", "/metrics")):
            raise ApiError(401, "wrong or missing API key", "invalid_api_key", type="authentication_error")

    async def _read(self, body: bytearray, headers: Headers, receive: Any) -> None:
        """Fill `body`, and count its bytes in `held`. Raises ApiError if it is too large, too slow, or one too many."""
        length = headers.get("content-length", "")
        too_large = ApiError(413, f"the body is over the {self.limits.body_bytes:,} bytes allowed", "body_too_large")
        if length.isdecimal() and int(length) > self.limits.body_bytes:
            raise too_large
        if self.coming >= self.limits.connections // 2:
            raise busy(self.retry_after())
        self.coming += 1
        started, more = time.monotonic(), True
        try:
            while more:
                allowed = min(self.limits.body_seconds, PAUSE + len(body) / RATE)
                message = await asyncio.wait_for(receive(), min(PAUSE, started + allowed - time.monotonic()))
                if message["type"] == "http.disconnect":
                    raise ApiError(400, "the body did not come whole")
                piece = message.get("body", b"")
                if len(body) + len(piece) > self.limits.body_bytes:
                    raise too_large
                body += piece
                self.held += len(piece)
                if len(body) > SMALL and self.held > LARGEST * self.limits.body_bytes:
                    raise busy(self.retry_after())
                more = message.get("more_body", False)
        except (TimeoutError, asyncio.TimeoutError):
            late = (
                f"the body came too slowly: it may take {self.limits.body_seconds:g} s, pause {PAUSE:g} s, "
                f"and must bring {RATE:,} bytes per second"
            )
            raise ApiError(408, late, "timeout", type="timeout_error", headers={"Connection": "close"}) from None
        finally:
            self.coming -= 1

    async def _answer(self, scope: Any, headers: Headers, body: bytearray, receive: Any, send: Any) -> None:
        scope, asked = await _without_files(scope, headers, bytes(body), self.limits)
        if len(asked) > SMALL:
            await asyncio.to_thread(check_shape, asked)
        else:
            check_shape(asked)
        await self.app(scope, _replayed(asked, receive), send)


def check_shape(body: bytes) -> None:
    """Refuse JSON of too many parts, or too deep, before anything is built of it: 20 MB could become gigabytes.

    It is cut at its strings, and only the brackets, colons and commas between them are looked at.
    """
    if b"\0" in body:  # UTF-16 and 32, which Python's parser would take
        raise ApiError(400, "the body must be JSON in UTF-8")
    pieces = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', 2 * MARKS)
    seen, depth, field = 0, 0, None
    for number in range(0, len(pieces), 2):
        for mark in pieces[number].translate(None, _NO_MARKS):
            seen += 1
            depth += (mark in b"[{") - (mark in b"]}")
            if mark in b":" and depth == 1:
                field = pieces[number - 1].decode("utf-8", "replace")
            if seen > MARKS or depth > DEPTH:
                limit = f"{MARKS:,} brackets, colons and commas" if seen > MARKS else f"{DEPTH} levels of nesting"
                where = f"{field[:200]}: " if field else ""
                raise ApiError(400, f"{where}a request may have at most {limit} in its JSON", "too_complex", field)


_NO_MARKS = bytes(set(range(256)) - set(b"[]{}:,"))


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
        for start in range(0, len(body), SMALL):
            yield body[start : start + SMALL]
            await asyncio.sleep(0)  # parsing is slow for some bodies; others have their turn

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

    The same clock runs while a client does not read, and while what is left of a refused body comes in. If there are
    as many connections as there may be, a new one takes the place of the one whose clock has run longest.
    """

    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()
        if len(self.connections) >= (self.limit_concurrency or len(self.connections) + 1):
            clocks = [(other._alarm.when(), other) for other in self.connections if other._alarm is not None]
            _, first = min(clocks, key=lambda pair: pair[0])
            self.connections.discard(first)
            first.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._alarm is not None:
            self._alarm.cancel()

    def _watch(self) -> None:
        idle = self.cycle is None or self.cycle.response_complete or self.flow.write_paused
        if idle and self._alarm is None:
            self._alarm = self.loop.call_later(HEAD_SECONDS, self.transport.abort)  # close() would wait for readers
        elif not idle and self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def room_for_connections(wanted: int) -> int:
    """How many connections may be open at once: `wanted`, or a third of the file descriptors if those are few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 3 * wanted:
        soft = 3 * wanted if hard == resource.RLIM_INFINITY else min(3 * wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft < 0 else min(wanted, soft // 3)
