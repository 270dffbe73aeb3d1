"""A web app for people at this machine: guarded against other websites, served until Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.listening import known_host, listen, same_site, url

if TYPE_CHECKING:
    from fastapi import FastAPI

#: What a request may send, in bytes: the longest text that can be edited (20,000 letters) in UTF-8.
MAX_BODY = 65_536


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
