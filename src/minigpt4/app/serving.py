"""Serves the page on an address: who may ask for it, what it may fetch, and what is left behind (nothing)."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt4.app.session import Models
from minigpt4.errors import UserError
from minigpt4.local_web import listen, names, url

MAX_UPLOAD = "20mb"
#: Gradio's own scripts are partly inline; nothing comes from another host, and no other site may frame the page.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Guard:
    """ASGI middleware: turns away what another site's page sends, and adds the headers above."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.requests import ClientDisconnect

        headers = dict(scope["headers"])
        visiting = headers.get(b"sec-fetch-mode") == b"navigate" and scope["method"] == "GET"
        if headers.get(b"sec-fetch-site", b"none") not in (b"none", b"same-origin") and not visiting:
            from starlette.responses import PlainTextResponse

            await PlainTextResponse("asked from another page", 403)(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        with contextlib.suppress(ClientDisconnect):  # in the middle of an upload: nobody is there to be told
            await self.app(scope, receive, with_headers)


def serve_page(models: Models, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `ready` is given its address. Raises UserError if the address cannot be had."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
        import uvicorn
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise UserError("the page needs Gradio: pip install 'minigpt4[web]'") from None
    with listen(host, port) as listening, tempfile.TemporaryDirectory(prefix="minigpt4-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "uploads"))  # gone when the page is
        from minigpt4.app.layout import ASSETS, theme
        from minigpt4.app.web import Page

        pictures = Path(folder, "pictures")
        pictures.mkdir()
        page = Page(models, pictures)
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names(host))
        app.add_middleware(Guard)
        style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
        # Not as Gradio's `css`, which it rewrites to hold for a part of the page only.
        head = f"<style>{style}</style><script>{script}</script>"
        app = gr.mount_gradio_app(
            app, page.blocks, "/", theme=theme(), head=head, footer_links=[], show_error=True,
            max_file_size=MAX_UPLOAD,
            allowed_paths=[str(pictures), str(ASSETS)], ssr_mode=False, run_history=False,
        )  # fmt: skip
        models.warm_up()
        ready(url(host, listening))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            page.visits.close()
            models.close()
