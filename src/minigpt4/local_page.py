"""A small web page for people who judge things: guarded against other pages, served until Ctrl-C."""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.listening import known_host, listen, names, same_site, url

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

#: What a request may send, in bytes: the longest text that can be edited (20,000 letters) in UTF-8.
MAX_BODY = 65_536


def page_app(title: str, package: str, file: str, host: str) -> FastAPI:
    """An app that shows the page `file` of `package`, with `__NONCE__` in it replaced, and refuses other pages.

    `host` is the address that it is served on: on loopback it is asked for by loopback's names alone. Raises UserError
    without FastAPI.
    """
    try:
        from fastapi import FastAPI
        from fastapi.responses import HTMLResponse
    except ImportError:
        raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    nonce = secrets.token_urlsafe(16)
    page = resources.files(package).joinpath(file).read_text(encoding="utf-8").replace("__NONCE__", nonce)
    policy = (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; "
        f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    )
    app.add_middleware(_Guard, host_names=names(host), policy=policy)

    @app.get("/", response_class=HTMLResponse)
    def root() -> str:
        return page

    return app


class _Guard:
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


def person(name: str) -> str:
    """The name that somebody gives. Raises HTTPException for one that is empty, too long, or of no letters."""
    from fastapi import HTTPException

    name = " ".join(name.split())
    if not (1 <= len(name) <= 40 and name.isprintable()):
        raise HTTPException(400, "give a name of 1 to 40 letters")
    return name


def image_response(image: Path | bytes) -> Response:
    """The image, decoded and encoded anew, so that nothing but an image ever leaves. Raises HTTPException else."""
    from fastapi import HTTPException, Response

    from minigpt4.data.images import open_image

    try:
        shown = open_image(image)
    except UserError:
        raise HTTPException(404, "this image cannot be shown") from None
    shown.thumbnail((2048, 2048))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", compress_level=1)
    return Response(buffer.getvalue(), media_type="image/png")


def serve_app(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `ready` is given the address. Raises UserError if the port is taken."""
    try:
        import uvicorn
    except ImportError:
        raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
    with listen(host, port) as listening:
        ready(url(host, listening))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
