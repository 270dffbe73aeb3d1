"""A small web page for people who judge things: guarded against other pages, served until Ctrl-C.

Knows nothing about what is judged.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.listening import listen, names, url

if TYPE_CHECKING:
    from fastapi import FastAPI


def page_app(title: str, package: str, file: str, hosts: list[str]) -> FastAPI:
    """An app that shows the page `file` of `package`, with `__NONCE__` in it replaced, and refuses other pages.

    `hosts` are the names under which it may be asked for; `["*"]` allows any. Raises UserError without FastAPI.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import HTMLResponse, JSONResponse
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    # Else a page from elsewhere could reach this one by a name that it points here.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    nonce = secrets.token_urlsafe(16)
    page = resources.files(package).joinpath(file).read_text(encoding="utf-8").replace("__NONCE__", nonce)
    policy = (
        f"default-src 'none'; img-src 'self' data:; connect-src 'self'; "
        f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    )

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return JSONResponse({"detail": "asked from another page"}, 403)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = policy
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.get("/", response_class=HTMLResponse)
    def root() -> str:
        return page

    return app


def person(name: str) -> str:
    """The name that somebody gives. Raises HTTPException for one that is empty or too long."""
    from fastapi import HTTPException

    name = " ".join(name.split())
    if not 1 <= len(name) <= 40:
        raise HTTPException(400, "give a name of 1 to 40 letters")
    return name


def media_type(data: bytes) -> str:
    """What sort of picture a file is, by its first bytes."""
    for start, kind in ((b"\xff\xd8", "jpeg"), (b"\x89PNG", "png"), (b"RIFF", "webp")):
        if data.startswith(start):
            return f"image/{kind}"
    return "application/octet-stream"


def allowed_hosts(host: str) -> list[str]:
    """The names under which a page on `host` may be asked for."""
    return names(host) or ["*"]


def serve_app(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `ready` is given the address. Raises UserError if the port is taken."""
    try:
        import uvicorn
    except ImportError:
        raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
    with listen(host, port) as listening:
        ready(url(host, listening))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
