"""A web page on which people judge one thing after another: what review and rating have in common.

People give a name, get what waits for them, decide, and see how far all have come. The desk knows what is judged, and
records the decisions.
"""

from __future__ import annotations

import io
import secrets
import statistics
from collections.abc import Iterable
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minigpt4.errors import UserError
from minigpt4.local_web import Guard, names

if TYPE_CHECKING:
    from fastapi import FastAPI, Response

#: A longer pause than this, in seconds, is no time spent on a decision.
PAUSE = 300.0


class TakenError(ValueError):
    """Somebody else has this, or has decided on it."""


class Desk(Protocol):
    """Hands out what is to be judged, by its index. Safe to use from several threads."""

    def __len__(self) -> int: ...

    def next(self, person: str, /) -> int | None:
        """What waits for this person; None if there is nothing."""

    def look(self, person: str, index: int, /) -> dict[str, Any]:
        """What the page shows of it."""

    def progress(self, person: str, /) -> dict[str, Any]:
        """How far this person and all others have come."""

    def image(self, index: int, /) -> Path | bytes:
        """The image that belongs to it. Raises UserError if it cannot be shown."""


class Labelling:
    """The app of a page: `app` has the routes that all pages have, the methods help with a page's own.

    `html` names the package and the file of what the page holds beside the common `labelling.html`; `shows` and `asks`
    are the names of a thing that is judged and of a person who judges in requests and answers. `host` is the address
    that it is served on: on loopback it is asked for by loopback's names alone. Of errors, UserError (what cannot be
    written, say) is answered with 507, TakenError with 409, other ValueErrors with 400.

    Raises UserError without FastAPI.
    """

    def __init__(self, desk: Desk, title: str, html: tuple[str, str], shows: str, asks: str, host: str) -> None:
        try:
            from fastapi import FastAPI, Query
            from fastapi.responses import HTMLResponse, JSONResponse
        except ImportError:
            raise UserError("the page needs a web server: pip install fastapi uvicorn") from None
        self.desk, self.shows = desk, shows
        self.app: FastAPI = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        nonce = secrets.token_urlsafe(16)
        own = files(html[0]).joinpath(html[1]).read_text(encoding="utf-8")
        page = files("minigpt4").joinpath("labelling.html").read_text(encoding="utf-8")
        parts = {"DESK": own, "TITLE": title, "SHOWS": shows, "ASKS": asks}
        for name, text in (*parts.items(), ("NONCE", nonce)):
            page = page.replace(f"__{name}__", text)
        policy = (
            f"default-src 'none'; img-src 'self' data:; connect-src 'self'; "
            f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
        )
        self.app.add_middleware(Guard, host_names=names(host), policy=policy)
        for error, status in ((UserError, 507), (TakenError, 409), (ValueError, 400)):
            self.app.add_exception_handler(
                error, lambda _, told, status=status: JSONResponse({"detail": str(told)}, status)
            )

        @self.app.get("/", response_class=HTMLResponse)
        def root() -> str:
            return page

        @self.app.get("/api/next")
        def waiting(name: str = Query(alias=asks)) -> dict[str, Any]:
            return self.next(person(name))

        @self.app.get("/pictures/{index}")
        def image(index: int) -> Response:
            return _image_response(desk, self.within(index))

    def shown(self, name: str, index: int | None) -> dict[str, Any]:
        """What the page gets: a thing that is judged, or None, and the progress."""
        return {
            self.shows: None if index is None else self.desk.look(name, index),
            "progress": self.desk.progress(name),
        }

    def next(self, name: str) -> dict[str, Any]:
        """What the page gets after a decision."""
        return self.shown(name, self.desk.next(name))

    def within(self, index: int) -> int:
        """The index. Raises HTTPException if there is no such thing."""
        from fastapi import HTTPException

        if not 0 <= index < len(self.desk):
            raise HTTPException(404, f"there are {len(self.desk)} to judge")
        return index


def person(name: str) -> str:
    """The name that somebody gives. Raises ValueError for one that is empty, too long, or of no letters."""
    name = " ".join(name.split())
    if not (1 <= len(name) <= 40 and name.isprintable()):
        raise ValueError("give a name of 1 to 40 letters")
    return name


def _image_response(desk: Desk, index: int) -> Response:
    """The image, decoded and encoded anew, so that nothing but an image ever leaves. Raises HTTPException else."""
    from fastapi import HTTPException, Response

    from minigpt4.images import open_image

    try:
        shown = open_image(desk.image(index))
    except UserError as error:
        raise HTTPException(404, f"this image cannot be shown ({str(error).rpartition(': ')[2]})") from None
    shown.thumbnail((2048, 2048))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG", compress_level=1)
    return Response(buffer.getvalue(), media_type="image/png")


def seconds_left(times: Iterable[str], waiting: int) -> int | None:
    """How long what waits will take at the pace of the last 20 decisions (ISO times); None if there is no pace yet."""
    at = sorted(datetime.fromisoformat(time).timestamp() for time in times)[-21:]
    gaps = [later - earlier for earlier, later in zip(at, at[1:], strict=False) if later - earlier < PAUSE]
    return round(statistics.median(gaps) * waiting) if gaps else None
