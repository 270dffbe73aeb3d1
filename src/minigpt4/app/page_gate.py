"""What stands before the page: a list of the requests that it needs, and who may send each. All others are 404.

Gradio stays, behind this list, and no front end of our own was written: what is new in a release of Gradio is closed
until it is listed here, its front end works as it is, and none of its code that takes a path or an address from a
client is reached. Uploads and files are answered here. The body of an event is checked against the kinds of its inputs
and built anew; a file in it must be a token of the same visitor, which becomes a path here and nowhere else. If it is
not so, the visitor is told as by an event that failed. On the way back paths become tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from minigpt4.app.layout import ASSETS, EXAMPLES
from minigpt4.app.web import Page
from minigpt4.errors import UserError
from minigpt4.local_web import known_host, same_site

COOKIE = "minigpt4_visitor"
MAX_FILE, MAX_POST, MAX_EVENT = 20_000_000, 60_000_000, 256_000  # bytes of a picture, an upload and an event
MAX_HELD = 150_000_000  # bytes of bodies in memory, of all visitors
MAX_FILES = 16  # in one upload
BODY_SECONDS = 60.0
#: Gradio's own scripts are partly inline; nothing comes from another host, and no other site may frame the page.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
_FILE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Content-Disposition": 'inline; filename="picture.png"',
    "Cache-Control": "private, max-age=3600",
}
_NAME = r"[\w-]{1,64}"


class Route(NamedTuple):
    """`who`: "anyone", "our page" (by `same_site`), or "its visitor", whose session or file it is, on our page."""

    method: str
    path: str
    who: str
    answer: str  # the method of `PageGate`


ROUTES = (
    Route("GET", r"/", "anyone", "_page"),
    Route("GET", r"/config", "our page", "_page"),
    Route("GET", r"/(theme\.css|favicon\.ico|manifest\.json|(assets|static)/[\w./-]+)", "our page", "_as_it_is"),
    Route("GET", rf"/gradio_api/heartbeat/(?P<session>{_NAME})", "its visitor", "_heartbeat"),
    Route("GET", r"/gradio_api/queue/data", "its visitor", "_answers"),
    Route("POST", r"/gradio_api/queue/join", "its visitor", "_event"),
    Route("POST", r"/gradio_api/upload", "our page", "_upload"),
    Route("GET", rf"/gradio_api/file=(?P<token>{_NAME}\.png)", "its visitor", "_file"),
)


class PageGate:
    """ASGI middleware around `app`, in which Gradio serves `page`. `hosts` are the page's names (None: any).

    A visitor is known by a cookie. Without one there is the session that Gradio's front end makes up, which is kept
    apart from those of all visitors.
    """

    def __init__(self, app: Any, page: Page, hosts: Collection[str] | None) -> None:
        self.app, self.page, self.hosts, self.uploads = app, page, hosts, page.uploads
        self.events = page.events()
        # Gradio writes paths as they are, in addresses, and in scripts.
        folders = [str(self.uploads.folder), str(ASSETS)]
        places = {form for folder in folders for form in (folder, quote(folder), json.dumps(folder)[1:-1])}
        self._paths = re.compile(f"(?:{'|'.join(map(re.escape, places))})/(?:\\w+/)?({_NAME}\\.png)".encode())
        self._held = 0
        self._checking = asyncio.Semaphore(2)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            with contextlib.suppress(ClientDisconnect):  # in the middle of an upload: nobody is there to be told
                await self._enter(scope, receive, send)
        else:
            await send({"type": "websocket.close"})

    async def _enter(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        ours = same_site(request.headers, self.hosts)
        visitor = request.cookies.get(COOKIE, "")
        visitor = visitor if re.fullmatch("[0-9a-f]{32}", visitor) else ""
        scope["held"] = 0
        scope["new_visitor"] = None if visitor or not ours else secrets.token_hex(16)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                held = {name.lower() for name, _ in message["headers"]}
                more = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff",
                        "referrer-policy": "no-referrer", "cross-origin-resource-policy": "same-origin"}  # fmt: skip
                if scope["new_visitor"]:
                    more["set-cookie"] = f"{COOKIE}={scope['new_visitor']}; Path=/; HttpOnly; SameSite=Strict"
                new = [(name.encode(), value.encode()) for name, value in more.items() if name.encode() not in held]
                message["headers"] = [*message["headers"], *new]
            await send(message)

        try:
            if not known_host(request.headers, self.hosts):
                raise HTTPException(400, "this page does not go by that name")
            found = [(match, route) for route in ROUTES if (match := re.fullmatch(route.path, scope["path"]))]
            if not found or ".." in scope["path"]:
                raise HTTPException(404, "not found")
            match, route = found[0]
            if request.method != route.method and (request.method, route.answer) != ("HEAD", "_page"):
                raise HTTPException(405, "not allowed")
            if route.who != "anyone" and not ours:
                raise HTTPException(403, "asked from another page")
            answer = await getattr(self, route.answer)(request, visitor, match, with_headers)
        except HTTPException as error:
            answer = JSONResponse({"detail": error.detail}, error.status_code)
        finally:
            self._held -= scope["held"]
        if answer is not None:
            await answer(scope, receive, with_headers)

    # -- Gradio's

    async def _as_it_is(self, request: Request, visitor: str, match: Any, send: Any) -> None:
        await self.app({**request.scope, "query_string": b""}, request.receive, send)

    async def _page(self, request: Request, visitor: str, match: Any, send: Any) -> None:
        await self._pass(request, visitor, send, query_string=b"")

    async def _heartbeat(self, request: Request, visitor: str, match: Any, send: Any) -> None:
        path = f"/gradio_api/heartbeat/{visitor}{match['session']}"
        await self._pass(request, visitor, send, path=path, raw_path=path.encode(), query_string=b"")

    async def _answers(self, request: Request, visitor: str, match: Any, send: Any) -> None:
        session = visitor + _session(request.query_params.get("session_hash"))
        if not self.page.awaits(session):  # Gradio would log a traceback
            raise HTTPException(404, "this session has asked nothing")
        await self._pass(request, visitor, send, query_string=f"session_hash={session}".encode())

    async def _event(self, request: Request, visitor: str, match: Any, send: Any) -> None:
        body = await self._read(request, MAX_EVENT)
        try:
            asked = json.loads(body, parse_constant=lambda name: 1 / 0)
            number, about, session = (
                asked["fn_index"],
                asked.get("event_data"),
                visitor + _session(asked["session_hash"]),
            )
            inputs = self.events[number]
        except (ValueError, KeyError, TypeError, ArithmeticError, AttributeError, RecursionError):
            raise HTTPException(400, "not an event of this page; load it again") from None
        try:
            data = [self._taken(*each, visitor) for each in zip(inputs, asked["data"], strict=True)]
            about = _place(about) if isinstance(about, dict) and "index" in about else None
        except UserError as error:
            number, data, about = self.page.refusal, [str(error)], None
        except (ValueError, KeyError, TypeError, ArithmeticError, AttributeError):
            number, data, about = self.page.refusal, ["This is nothing that the page sends; load it again"], None
        event = {"fn_index": number, "session_hash": session, "data": data, "event_data": about}
        await self._pass(request, visitor, send, json.dumps(event).encode(), query_string=b"")

    def _taken(self, component: Any, value: Any, visitor: str) -> Any:
        """The value of an input, if it is one that this component can have; files as Gradio has them."""

        if isinstance(component, gr.MultimodalTextbox):
            return {"text": _text(value["text"]), "files": [self._file_of(file, visitor) for file in value["files"]]}
        if isinstance(component, gr.Image):
            return value and self._file_of(value, visitor)
        if isinstance(component, gr.ImageEditor):  # its layers are of no use
            drawing = value and value["composite"]
            return drawing and {"composite": self._file_of(drawing, visitor)}
        if isinstance(component, gr.Slider):
            value = value + 0
            if not component.minimum <= value <= component.maximum:
                raise UserError(f"{component.label}: {value} is not allowed")
            return value
        if isinstance(component, gr.Number):
            return None if value is None else int(value)
        return _text(value)

    def _file_of(self, file: dict[str, Any], visitor: str) -> dict[str, Any]:
        token, url = file["path"], file.get("url")
        path = self.uploads.sent_by(visitor, token)
        if path is None or not path.exists() or not (url is None or url.endswith(f"/gradio_api/file={token}")):
            raise UserError("A picture of the question is no longer here; take it out and add it again")
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}}

    async def _pass(self, request: Request, visitor: str, send: Any, body: bytes | None = None, **scope: Any) -> None:
        """Ask Gradio, and put tokens for the paths in its answer: event by event in a stream, else at once."""
        self.uploads.forget_old()
        # Without compression.
        kept = [each for each in request.scope["headers"] if each[0] not in (b"accept-encoding", b"content-length")]
        start: Any = None
        held = b""

        async def receive() -> Any:
            nonlocal body
            if body is None:
                return await request.receive()
            message, body = {"type": "http.request", "body": body}, None
            return message

        async def without_paths(message: Any) -> None:
            nonlocal start, held
            if message["type"] == "http.response.start":
                start = message
                streaming = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                start["headers"] = [each for each in message["headers"] if each[0] != b"content-length"]
                if streaming:
                    await send(start)
                    start = None
                return
            held += message.get("body", b"")
            more = message.get("more_body", False)
            if start is not None and more:
                return
            whole = len(held) if not more else held.rfind(b"\n\n") + 2 if b"\n\n" in held else 0
            ready, held = self._paths.sub(lambda found: self._given(found[1], visitor), held[:whole]), held[whole:]
            if start is not None:
                start["headers"].append((b"content-length", b"%d" % len(ready)))
                await send(start)
                start = None
            await send({**message, "body": ready})

        await self.app({**request.scope, "headers": kept, **scope}, receive, without_paths)

    def _given(self, name: bytes, visitor: str) -> bytes:
        self.uploads.give(visitor, name.decode())
        return name

    # -- ours

    async def _read(self, request: Request, limit: int) -> bytes:
        """The body. Raises HTTPException if it is too large, too slow, or one too many."""
        body = bytearray()

        async def read() -> None:
            async for chunk in request.stream():
                body.extend(chunk)
                self._held += len(chunk)
                request.scope["held"] += len(chunk)
                if len(body) > limit:
                    raise HTTPException(413, f"more than the {limit:,} bytes allowed at once")
                if self._held > MAX_HELD:
                    raise HTTPException(413, "many pictures are being sent to this page now; try again soon")

        try:
            await asyncio.wait_for(read(), BODY_SECONDS)
        except (TimeoutError, asyncio.TimeoutError):
            raise HTTPException(408, f"it did not come within {BODY_SECONDS:g} s") from None
        return bytes(body)

    async def _files(self, request: Request) -> list[tuple[str, bytes]]:
        """The files (name, bytes) of a form. Raises HTTPException for one that is too large or broken."""
        body = await self._read(request, MAX_POST)

        async def whole() -> AsyncIterator[bytes]:
            yield body

        try:
            parser = MultiPartParser(request.headers, whole(), max_files=MAX_FILES, max_fields=8)
            parser.spool_max_size = MAX_POST  # never to the disk
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:
            raise HTTPException(400, f"a broken form ({getattr(error, 'message', error)})") from None
        parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
        if not parts:
            raise HTTPException(400, "no file came")
        return [(_shown_name(part.filename), await part.read()) for part in parts]

    async def _upload(self, request: Request, visitor: str, match: Any, send: Any) -> Response:
        """Tokens for pictures; if one is refused, all are, and there is a message for each of those instead."""
        visitor = visitor or request.scope["new_visitor"]
        try:
            files = await self._files(request)
        except HTTPException as error:
            return JSONResponse([error.detail], error.status_code)
        large = [f"{name}: more than the {MAX_FILE:,} bytes allowed" for name, data in files if len(data) > MAX_FILE]
        if large:
            return JSONResponse(large, 413)
        tokens, refused = [], []
        for name, data in files:
            try:
                async with self._checking:
                    tokens.append(await run_in_threadpool(self.uploads.add, visitor, data))
            except UserError as error:
                refused.append(f"{name}: {str(error).removeprefix('uploaded image: ')}")
        return JSONResponse(refused or tokens, 400 if refused else 200)

    async def _file(self, request: Request, visitor: str, match: Any, send: Any) -> Response:
        token = match["token"]
        example = token.removesuffix(".png") in {name for name, _, _ in EXAMPLES}
        path: Path | None = ASSETS / token if example else self.uploads.shown_to(visitor, token)
        if path is None or not path.exists():
            return PlainTextResponse("not found", 404)
        return FileResponse(path, media_type="image/png", headers=_FILE_HEADERS)


def _session(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise HTTPException(400, "not a session of this page; load it again")
    return name


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()  # Raises ValueError for half a character
    return value


def _place(about: dict[str, Any]) -> dict[str, Any]:
    """Which message of the chat is meant, and what it shall be."""
    index = about["index"][0] if isinstance(about["index"], list) else about["index"]
    value = about.get("value")
    return {"index": abs(int(index)), "value": value if isinstance(value, str) else None, "previous_value": None}


def _shown_name(name: str | None) -> str:
    """A client's name of a file, to be said in a message: letters and what commonly stands between them."""
    return re.sub(r"[^\w .()-]", "_", name or "the file")[:80]
