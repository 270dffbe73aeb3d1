"""What stands before the page: a list of the requests that it needs, and who may send each. All others are 404.

Uploads and files are answered here. The body of an event is checked against the kinds of its inputs and built anew; a
file in it must be a token of the same visitor, which becomes a path here and nowhere else. If it is not so, the event
fails for the visitor. On the way back paths become tokens.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from minigpt4.app.bodies import Bodies, read_form, replayed
from minigpt4.app.page.layout import ASSETS, DRAWN, PHOTOS
from minigpt4.app.page.page import Page
from minigpt4.app.page.session import MAX_FILE
from minigpt4.app.page.uploads import PER_VISITOR
from minigpt4.documents import read_yaml
from minigpt4.errors import UserError
from minigpt4.local_web import known_host, same_site

COOKIE = "minigpt4_visitor"
MAX_POST, MAX_EVENT = 60_000_000, 256_000  # bytes of an upload and an event
MAX_FILES = 16  # in one upload
_HEADERS, _FILE_HEADERS = read_yaml(Path(__file__).with_name("headers.yaml")).values()
_NAME = r"[\w-]{1,64}"
#: What is raised where a value is not of the kind that it should be.
_NOT_OURS = (ValueError, KeyError, TypeError, ArithmeticError, AttributeError)


class Route(NamedTuple):
    """`who`: "anyone", "our page" (by `same_site`), or "its visitor", whose session or file it is, on our page."""

    method: str
    path: str
    who: str
    answer: str  # the method of `PageGate`


ROUTES = (
    Route("GET", r"/", "anyone", "_pass"),
    Route("GET", r"/config", "our page", "_pass"),
    Route("GET", r"/gradio_api/app_id", "our page", "_as_it_is"),  # whether the server is back
    Route("GET", r"/(theme\.css|favicon\.ico|manifest\.json|(assets|static)/[\w./-]+)", "our page", "_as_it_is"),
    Route("GET", rf"/gradio_api/heartbeat/(?P<session>{_NAME})", "its visitor", "_heartbeat"),
    Route("GET", r"/gradio_api/queue/data", "its visitor", "_answers"),
    Route("POST", r"/gradio_api/queue/join", "its visitor", "_event"),
    Route("POST", r"/gradio_api/upload", "our page", "_upload"),
    Route("GET", rf"/gradio_api/file=(?P<token>{_NAME}\.(png|jpg))", "its visitor", "_file"),
)


class PageGate:
    """ASGI middleware around `app`, in which Gradio serves `page`. `hosts` are the page's names (None: any)."""

    def __init__(self, app: Any, page: Page, hosts: Collection[str] | None) -> None:
        self.app, self.page, self.hosts, self.uploads = app, page, hosts, page.uploads
        self.events = page.events()
        # Gradio writes paths as they are, in addresses, and in scripts.
        folders = [str(self.uploads.folder), str(ASSETS)]
        places = {form for folder in folders for form in (folder, quote(folder), json.dumps(folder)[1:-1])}
        self._paths = re.compile(f"(?:{'|'.join(map(re.escape, places))})/(?:\\w+/)?({_NAME}\\.(?:png|jpg))".encode())
        self._bodies = Bodies(room=150_000_000, at_once=500, seconds=60.0)
        self._checking = asyncio.Semaphore(2)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":  # else "http": the server has no web sockets
            await self.app(scope, receive, send)
            return
        self.uploads.forget_old()
        request, started = Request(scope, receive), False
        # Without a cookie a visitor is known by the session that Gradio's front end makes up.
        known = re.fullmatch("[0-9a-f]{32}", request.cookies.get(COOKIE, ""))
        ours = same_site(request.headers, self.hosts)
        request.state.visitor = known.group() if known else ""
        request.state.new = secrets.token_hex(16) if ours and not known else None

        async def with_headers(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=[*message["headers"]])
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if request.state.new:
                    headers["set-cookie"] = f"{COOKIE}={request.state.new}; Path=/; HttpOnly; SameSite=Strict"
                message["headers"] = headers.raw
            await send(message)

        try:
            match, route = self._route(request, ours)
            answer = await getattr(self, route.answer)(request, match, with_headers)
        except HTTPException as error:
            answer = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        except asyncio.CancelledError:  # the page ends, and this would take too long
            answer = None if started else JSONResponse({"detail": "the page ends"}, 503)
        if answer is not None:
            await answer(scope, receive, with_headers)

    def _route(self, request: Request, ours: bool) -> tuple[re.Match[str], Route]:
        if not known_host(request.headers, self.hosts):
            raise HTTPException(400, "this page does not go by that name")
        path = request.scope["path"]
        found = [(match, route) for route in ROUTES if (match := re.fullmatch(route.path, path))]
        if not found or ".." in path:
            raise HTTPException(404, "not found")
        match, route = found[0]
        if request.method != route.method and (request.method, route.answer) != ("HEAD", "_pass"):
            raise HTTPException(405, "not allowed")
        if route.who != "anyone" and not ours:
            raise HTTPException(403, "asked from another page")
        return match, route

    async def _as_it_is(self, request: Request, match: Any, send: Any) -> None:
        await self.app({**request.scope, "query_string": b""}, request.receive, send)

    async def _heartbeat(self, request: Request, match: Any, send: Any) -> None:
        path = f"/gradio_api/heartbeat/{request.state.visitor}{match['session']}"
        await self._pass(request, match, send, path=path, raw_path=path.encode())

    async def _answers(self, request: Request, match: Any, send: Any) -> None:
        session = _session(request, request.query_params.get("session_hash"))
        if not self.page.awaits(session):  # Gradio would log a traceback
            raise HTTPException(404, "this session has asked nothing")
        await self._pass(request, match, send, query_string=f"session_hash={session}".encode())

    async def _event(self, request: Request, match: Any, send: Any) -> None:
        async with self._bodies.read(request.headers, request.receive, MAX_EVENT) as body:
            try:
                asked = json.loads(body, parse_constant=lambda name: 1 / 0)
                number, about = asked["fn_index"], asked.get("event_data")
                inputs, session = self.events[number], _session(request, asked["session_hash"])
            except (*_NOT_OURS, RecursionError):
                raise HTTPException(400, "not an event of this page; load it again") from None
            try:
                data = [self._taken(*each, request.state.visitor) for each in zip(inputs, asked["data"], strict=True)]
                about = _place(about) if isinstance(about, dict) and "index" in about else None
            except _NOT_OURS as error:
                other = "This is nothing that the page sends; load it again"
                told = str(error) if isinstance(error, UserError) else other
                number, data, about = self.page.refusal, [told], None
        event = {"fn_index": number, "session_hash": session, "data": data, "event_data": about}
        await self._pass(request, match, send, json.dumps(event).encode())

    def _taken(self, component: Any, value: Any, visitor: str) -> Any:
        """The value of an input, if it is one that this component can have; files as Gradio has them."""
        if isinstance(component, gr.MultimodalTextbox):
            if len(value["files"]) > PER_VISITOR[0]:
                raise UserError(f"These are more than {PER_VISITOR[0]} images; take some out")
            return {"text": _text(value["text"]), "files": [self._file_of(file, visitor) for file in value["files"]]}
        if isinstance(component, gr.Image):
            return value and self._file_of(value, visitor)
        if isinstance(component, gr.ImageEditor):  # its layers are of no use
            drawing = value and value["composite"]
            return drawing and {"composite": self._file_of(drawing, visitor)}
        if isinstance(component, gr.Slider):
            if not component.minimum <= value + 0 <= component.maximum:
                raise UserError(f"{component.label}: {value} is not allowed")
            return value
        if isinstance(component, gr.Number):
            return None if value is None else int(value)
        return _text(value)

    def _file_of(self, file: dict[str, Any], visitor: str) -> dict[str, Any]:
        token, url = file["path"], file.get("url")
        path = self.uploads.sent_by(visitor, token)
        if path is None or not path.exists() or not (url is None or url.endswith(f"/gradio_api/file={token}")):
            raise UserError("An image of the question is no longer here; take it out and add it again")
        return {"path": str(path), "meta": {"_type": "gradio.FileData"}}

    async def _pass(self, request: Request, match: Any, send: Any, body: bytes | None = None, **scope: Any) -> None:
        """Ask Gradio, and put tokens for the paths in its answer, of which each message is whole (an event, a page)."""
        # Without compression.
        kept = [each for each in request.scope["headers"] if each[0] not in (b"accept-encoding", b"content-length")]
        receive = request.receive if body is None else replayed(body, request.receive)

        async def without_paths(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [each for each in message["headers"] if each[0] != b"content-length"]
            else:
                message["body"] = self._paths.sub(rb"\1", message.get("body", b""))
            await send(message)

        await self.app({**request.scope, "headers": kept, "query_string": b"", **scope}, receive, without_paths)

    async def _upload(self, request: Request, match: Any, send: Any) -> Response:
        """Tokens for images; if one is refused, all are, and there is a message for each of those instead."""
        tokens, refused = [], []
        try:
            async with self._bodies.read(request.headers, request.receive, MAX_POST) as body:
                parts = await read_form(request.headers, body, MAX_FILES, max_fields=8)
                # A client's name of a file is only said: letters, and what commonly stands between them.
                files = [(re.sub(r"[^\w .()-]", "_", name or "the file")[:80], data)
                         for _, name, data in parts if name is not None]  # fmt: skip
                if not files:
                    raise HTTPException(400, "no file came")
                for name, data in files:
                    if len(data) > MAX_FILE:
                        raise HTTPException(413, f"{name}: more than the {MAX_FILE:,} bytes allowed")
                visitor = request.state.visitor or request.state.new
                for name, data in files:
                    try:
                        async with self._checking:
                            tokens.append(await run_in_threadpool(self.uploads.add, visitor, data))
                    except UserError as error:
                        refused.append(f"{name}: {error}")
        except HTTPException as error:  # the front end shows a list
            return JSONResponse([error.detail], error.status_code, error.headers)
        return JSONResponse(refused or tokens, 400 if refused else 200)

    async def _file(self, request: Request, match: Any, send: Any) -> Response:
        token = match["token"]
        example = token in {file for file, _, _ in (*DRAWN, *PHOTOS)}
        path = ASSETS / token if example else self.uploads.shown_to(request.state.visitor, token)
        if path is None or not path.exists():
            raise HTTPException(404, "not found")
        return FileResponse(path, headers=_FILE_HEADERS)


def _session(request: Request, name: Any) -> str:
    """Gradio's name for a session, after its visitor's."""
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        raise HTTPException(400, "not a session of this page; load it again")
    return str(request.state.visitor) + name


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
