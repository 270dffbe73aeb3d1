"""Serving on an address: the socket, its URL, and apps that refuse requests from other websites."""

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
    """A socket that listens on the address; port 0 picks a free one. Raises UserError if the port is taken."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot be listened on ({error.strerror}); give another --port") from None


def allowed_hosts(host: str) -> list[str] | None:
    """Allowed Host headers of a server on `host` (None: any), against DNS rebinding on loopback."""
    return [*LOOPBACK, "[::1]"] if host in LOOPBACK else None


def known_host(headers: Mapping[str, str], hosts: Collection[str] | None) -> bool:
    """Whether the Host header is well-formed and one of `hosts` (None: any); its port does not matter.

    `headers` has lower-case or case-insensitive keys, as those of Starlette and `http.server`.
    """
    match = _HOST.fullmatch((headers.get("host") or "").lower())
    return match is not None and (hosts is None or match[1] in hosts)


def same_site(headers: Mapping[str, str], hosts: Collection[str] | None) -> bool:
    """Whether a request comes from our own page, or from a program that is no browser; arguments as in `known_host`.

    Browsers send the site of the page in Sec-Fetch-Site, older ones only in Origin; a page cannot forge either.
    """
    if not known_host(headers, hosts):
        return False
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    if origin is not None:  # the scheme may be that of a proxy in front
        scheme, _, asked = origin.lower().partition("://")
        return scheme in ("http", "https") and asked == (headers.get("host") or "").lower()
    return True


def url(host: str, listening: socket.socket) -> str:
    """The URL of a listening socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"


class Guard:
    """ASGI middleware: refuses requests from other sites, and bodies that are too long or not plain JSON.

    Answers carry the content security policy `policy`.
    """

    def __init__(self, app: Any, hosts: Collection[str] | None, policy: str) -> None:
        self.app, self.hosts = app, hosts
        self.headers = {
            "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store",
        }  # fmt: skip

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.datastructures import MutableHeaders
        from starlette.exceptions import HTTPException
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        if scope["type"] != "http":  # only "lifespan": there are no web sockets
            await self.app(scope, receive, send)
            return

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        try:
            messages = [{"type": "http.request", "body": await self._checked_body(Request(scope, receive))}]
        except HTTPException as error:
            refusal = JSONResponse({"detail": error.detail}, error.status_code, {"Connection": "close"})
            await refusal(scope, receive, guarded)
            return

        async def read() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, read, guarded)

    async def _checked_body(self, request: Any) -> bytes:
        """The body of a request. Raises HTTPException if the request is refused."""
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect

        if not known_host(request.headers, self.hosts):
            raise HTTPException(400, "asked by a name that is not this page's")
        if not same_site(request.headers, self.hosts):
            raise HTTPException(403, "asked from another page")
        if request.method in ("GET", "HEAD"):
            return b""
        body = bytearray()
        with suppress(ClientDisconnect):  # the rest is missing, and nobody reads the answer
            async for piece in request.stream():
                body += piece
                if len(body) > MAX_BODY:
                    raise HTTPException(413, f"a request holds at most {MAX_BODY:,} bytes")
        try:
            json.dumps(json.loads(body), ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):  # broken or deep, a lone surrogate, an infinite number
            raise HTTPException(400, "JSON of plain texts and numbers was expected") from None
        return bytes(body)


def serve_app(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `ready` is given the address. Raises UserError if the port is taken."""
    try:
        import uvicorn
    except ImportError:
        raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
    with listen(host, port) as listening:
        ready(url(host, listening))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
