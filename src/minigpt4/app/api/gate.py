"""What every request of the API passes first: who may ask, how much a request may hold, how slowly it may come."""

import asyncio
import contextlib
import hmac
import resource
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from minigpt4.app.api.errors import ApiError, response
from minigpt4.app.bodies import Bodies, read_form, replayed
from minigpt4.app.scheduler import BusyError, Scheduler
from minigpt4.local_web import known_host, same_site

if TYPE_CHECKING:
    from minigpt4.app.api.service import Service

#: Seconds that the head of a request may take, and that a client may leave an answer unread.
HEAD_SECONDS = 20.0
LARGEST = 10  # bodies of the largest size for which there is room at the same time
MARKS, DEPTH = 30_000, 32  # brackets, colons and commas in a request's JSON, and how deep it may nest
ROUTES = ("/v1/chat/completions", "/v1/models", "/health", "/metrics")


@dataclass(frozen=True)
class Limits:
    """What one client may ask for at most, and all together. `hosts` may be asked for images; none by default."""

    body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    pixels: int = 16_000_000
    images: int = 8
    seconds: float = 120.0
    batch: int = 16
    queue: int = 128
    connections: int = 1000
    hosts: tuple[str, ...] = ()


class ServerMetrics:
    """What Prometheus may read."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry = registry = CollectorRegistry()
        seconds = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
        self.requests = Counter("minigpt4_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram("minigpt4_request_seconds", "Whole request", buckets=seconds, registry=registry)
        first = "minigpt4_first_token_seconds"
        self.first_token = Histogram(first, "Until its first token", buckets=seconds, registry=registry)
        self.prompt_tokens = Counter("minigpt4_prompt_tokens", "Tokens read", registry=registry)
        self.new_tokens = Counter("minigpt4_generated_tokens", "Tokens written", registry=registry)
        running = Gauge("minigpt4_running", "Answers being written", registry=registry)
        running.set_function(lambda: scheduler.running)
        waiting = Gauge("minigpt4_waiting", "Answers waiting for room in the batch", registry=registry)
        waiting.set_function(lambda: scheduler.waiting)
        images = Gauge("minigpt4_pictures", "Images so far", ["features"], registry=registry)
        images.labels("encoded").set_function(lambda: scheduler.encoded)
        images.labels("reused").set_function(lambda: scheduler.reused)


class Gate:
    """ASGI middleware: key and site, then the body, whole and within its limits, then room; counts what comes out."""

    def __init__(self, app: Any, service: "Service", key: str | None, hosts: Collection[str] | None) -> None:
        self.app, self.service, self.limits, self.hosts = app, service, service.limits, hosts
        self.key = key.encode() if key else None
        self.bodies = Bodies(LARGEST * self.limits.body_bytes, self.limits.connections // 2, self.limits.body_seconds)
        self.inside = 0  # requests with their bodies

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
        except (HTTPException, BusyError, asyncio.CancelledError) as error:
            if not status:
                await response(error)(scope, receive, counted)
        finally:
            path = next((route for route in ROUTES if scope["path"].startswith(route)), "other")
            self.service.metrics.requests.labels(path, status).inc()
            if path == ROUTES[0]:
                self.service.metrics.seconds.observe(time.monotonic() - started)

    async def _enter(self, scope: Any, receive: Any, send: Any) -> None:
        headers = Headers(scope=scope)
        self._admit(scope, headers)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, send)
            return
        async with self.bodies.read(headers, receive, self.limits.body_bytes) as body:
            if self.inside >= self.limits.batch + self.limits.queue:
                raise BusyError(self.service.scheduler.retry_after)
            self.inside += 1
            try:
                # However slowly it is read, an answer has its end.
                limit = self.limits.seconds + self.limits.body_seconds
                await asyncio.wait_for(self._answer(scope, headers, body, receive, send), limit)
            except (TimeoutError, asyncio.TimeoutError):
                raise ApiError(408, "the request took too long") from None
            finally:
                self.inside -= 1

    def _admit(self, scope: Any, headers: Headers) -> None:
        """Refuse requests without the right to ask. The right key may come from any site: no other page knows it."""
        if "content-length" in headers and "transfer-encoding" in headers:
            both = "a request has Content-Length or Transfer-Encoding, not both"  # a proxy may have read the other
            raise HTTPException(400, both, {"Connection": "close"})
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
            raise ApiError(401, "wrong or missing API key")

    async def _answer(self, scope: Any, headers: Headers, body: bytes, receive: Any, send: Any) -> None:
        """The request is the body's JSON; of a multipart body, that in the field `request`."""
        uploads: dict[str, bytes] = {}
        kept = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
        if headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
            parts = await read_form(headers, body, self.limits.images + 1, max_fields=1)
            uploads = {name: data for name, _, data in parts}
            if "request" not in uploads:
                needed = "a multipart request needs the field 'request' with the JSON in it"
                raise ApiError(400, needed, param="request")
            body = uploads.pop("request")
            kept = [*((name, value) for name, value in kept if name != b"content-type"), _JSON]
        await asyncio.to_thread(check_shape, body)
        with contextlib.ExitStack() as at_end:  # what is to be called when the connection has ended, however it ends
            scope = {**scope, "headers": kept, "uploads": uploads, "at_end": at_end}
            await self.app(scope, replayed(body, receive), send)


def check_shape(body: bytes) -> None:
    """Refuse JSON of too many parts, or too deep, before anything is built of it: 20 MB could become gigabytes."""
    if b"\0" in body:  # UTF-16 and 32, which Python's parser would take
        raise ApiError(400, "the body must be JSON in UTF-8")
    pieces = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"', 2 * MARKS)  # every second is a string
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


_JSON = (b"content-type", b"application/json")
_NO_MARKS = bytes(set(range(256)) - set(b"[]{}:,"))


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP with a clock for clients that dawdle; a new connection may take the longest idle one's place."""

    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()
        if len(self.connections) >= (self.limit_concurrency or len(self.connections) + 1):
            idle = [other for other in self.connections if other._alarm is not None]
            first = min(idle, key=lambda other: other._alarm.when())
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
