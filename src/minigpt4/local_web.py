"""Serving on an address: the socket, its URL, which requests come from another website, and apps guarded from those."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError

if TYPE_CHECKING:
    from fastapi import FastAPI

LOOPBACK = ("127.0.0.1", "localhost", "::1")
#: What a request may send, in bytes: the longest text that can be edited (20,000 letters) in UTF-8.
MAX_BODY = 65_536
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]+)?")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the address; port 0 takes a free one. Raises UserError if it cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); give another --port") from None


def names(host: str) -> list[str] | None:
    """What a request's Host header may say, None for anything.

    A page from elsewhere could otherwise reach a server on loopback by a name of its own that it points here.
    """
    return [*LOOPBACK, "[::1]"] if host in LOOPBACK else None


def known_host(headers: Mapping[str, str], host_names: Collection[str] | None) -> bool:
    """Whether the Host header is well formed and, unless `host_names` is None, one of them. The port does not matter.

    `headers` has lower-case keys, or does not care, as those of Starlette and `http.server`.
    """
    match = _HOST.fullmatch((headers.get("host") or "").lower())
    return match is not None and (host_names is None or match[1] in host_names)


def same_site(headers: Mapping[str, str], host_names: Collection[str] | None) -> bool:
    """Whether a request that changes something comes from our own page, or from no browser at all.

    Browsers say where a request comes from in Sec-Fetch-Site, older ones only in Origin; a page cannot forge either.
    `headers` and `host_names` as in `known_host`, which must hold too.
    """
    if not known_host(headers, host_names):
        return False
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:  # the scheme may be that of a proxy in front
        scheme, _, asked = origin.lower().partition("://")
        return scheme in ("http", "https") and asked == (headers.get("host") or "").lower()
    return True


def url(host: str, listening: socket.socket) -> str:
    """The address for people, with the port that was taken."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"


class Guard:
    """Lets in what our own page asks, with a body of a sane size and content; the answers run nothing but our page."""

    def __init__(self, app: Any, host_names: Collection[str] | None, policy: str) -> None:
        self.app, self.host_names = app, host_names
        self.headers = {
            "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
        }  # fmt: skip

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import MutableHeaders
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import JSONResponse

        if scope["type"] != "http":  # only "lifespan" and no web sockets
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        refused, body = self._refused(request), bytearray()
        if refused is None and request.method not in ("GET", "HEAD"):
            with suppress(ClientDisconnect):  # what came by then is judged, and the answer reaches nobody
                async for piece in request.stream():
                    body += piece
                    if len(body) > MAX_BODY:
                        break
            refused = _wrong(body)
        if refused is not None:
            status, detail = refused
            await JSONResponse({"detail": detail}, status, {"Connection": "close"})(scope, receive, guarded)
            return
        pieces = [{"type": "http.request", "body": bytes(body)}]

        async def read() -> Any:
            return pieces.pop() if pieces else await receive()

        await self.app(scope, read, guarded)

    def _refused(self, request: Any) -> tuple[int, str] | None:
        if not known_host(request.headers, self.host_names):
            return 400, "asked by a name that is not this page's"
        return None if same_site(request.headers, self.host_names) else (403, "asked from another page")


def _wrong(body: bytes | bytearray) -> tuple[int, str] | None:
    """The status and words for a body that is too long, or no JSON that can be written down again."""
    if len(body) > MAX_BODY:
        return 413, f"a request holds at most {MAX_BODY:,} bytes"
    try:
        json.dumps(json.loads(body), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # broken or deep, half a character, a number without an end
        return 400, "JSON of plain texts and numbers was expected"
    return None


def serve_app(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `ready` is given the address. Raises UserError if the port is taken."""
    try:
        import uvicorn
    except ImportError:
        raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
    with listen(host, port) as listening:
        ready(url(host, listening))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
