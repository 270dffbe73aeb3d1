"""A web page on which people judge one thing after another: what review and rating have in common."""

from __future__ import annotations

import json
import secrets
import statistics
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import validate_call

from minigpt4.errors import UserError
from minigpt4.images import encoded, open_image
from minigpt4.local_web import allowed_hosts, known_host, listen, same_site, url

try:
    import uvicorn
    from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.requests import ClientDisconnect
except ImportError:  # told when the page is asked for; people's judgements are read without it
    FastAPI = None

#: What a request may send, in bytes: the longest text that can be edited (20,000 letters) in UTF-8.
MAX_BODY = 65_536
PAUSE = 300.0  # seconds; a longer one is not time spent on a decision


class TakenError(ValueError):
    """Another person has this text, or has decided on it."""


class LabellingDesk(ABC):
    """Hands out `total` things to judge, by their index, and records decisions. Safe to use from several threads."""

    title: str
    html: tuple[str, str]  # package and file of what `labelling.html` shows of a thing
    thing: str  # what requests and answers call a thing
    judge: str  # and a person

    def __init__(self, total: int) -> None:
        self.total, self.lock = total, threading.RLock()

    @abstractmethod
    def image(self, index: int) -> Path | bytes:
        """The image of a thing. Raises UserError if it cannot be shown."""

    @abstractmethod
    def waits(self, person: str, index: int) -> bool:
        """Whether this person may and should judge the thing."""

    @abstractmethod
    def look(self, person: str, index: int) -> dict[str, Any]:
        """What the page shows of a thing."""

    @abstractmethod
    def decide(self, person: str, index: int, /, *args: Any, **decision: Any) -> None:
        """Record a decision, whose fields have their types. Raises TakenError, or ValueError for a wrong decision."""

    @abstractmethod
    def back(self, person: str, index: int | None) -> int | None:
        """The thing to show when this person goes back from one, or from the end; None if there is none."""

    @abstractmethod
    def times(self, person: str) -> list[str]:
        """When this person decided, as ISO times."""

    @abstractmethod
    def agreement(self) -> list[dict[str, Any]]:
        """How far people agree, as `statistics.agreement`."""

    def order(self, person: str) -> Sequence[int]:
        """The order in which this person judges."""
        return range(self.total)

    def next(self, person: str, after: int | None = None) -> int | None:
        """The first thing that waits for this person, in their order from the one after `after` on; or None."""
        with self.lock:
            order = list(self.order(person))
            first = order.index(after) + 1 if after in order else 0
            return next((index for index in order[first:] + order[:first] if self.waits(person, index)), None)

    def progress(self, person: str) -> dict[str, Any]:
        """Counts, the seconds that remain at this person's pace, and how far people agree."""
        with self.lock:
            waiting = sum(self.waits(person, index) for index in range(self.total))
            left = seconds_left(self.times(person), waiting)
            return {"total": self.total, "waiting": waiting, "seconds left": left, "agreement": self.agreement()}


def labelling_app(desk: LabellingDesk, host: str) -> FastAPI:
    """The page of a desk on `host`. Requests of other sites are refused, and bodies too long or not plain JSON."""
    if FastAPI is None:
        raise UserError("the page needs a web server: pip install fastapi uvicorn")
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    nonce = secrets.token_urlsafe(16)
    page = files("minigpt4").joinpath("labelling.html").read_text(encoding="utf-8")
    own = files(desk.html[0]).joinpath(desk.html[1]).read_text(encoding="utf-8")
    parts = {"DESK": own, "TITLE": desk.title, "THING": desk.thing, "JUDGE": desk.judge, "NONCE": nonce}
    for name, text in parts.items():
        page = page.replace(f"__{name}__", text)
    allowed = f"img-src 'self' data:; connect-src 'self'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'"
    headers = {
        "Content-Security-Policy": f"default-src 'none'; {allowed}", "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }  # fmt: skip
    hosts = allowed_hosts(host)
    for error, status in ((UserError, 507), (TakenError, 409), (ValueError, 400)):
        app.add_exception_handler(error, lambda _, raised, status=status: JSONResponse({"detail": str(raised)}, status))

    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if not known_host(request.headers, hosts):
            response: Response = JSONResponse({"detail": "asked by a name that is not this page's"}, 400)
        elif not same_site(request.headers, hosts):
            response = JSONResponse({"detail": "asked from another page"}, 403)
        else:
            response = await answer(request)
        response.headers.update(headers)
        return response

    app.add_middleware(BaseHTTPMiddleware, dispatch=guard)

    def shown(name: str, index: int | None) -> dict[str, Any]:
        found = None if index is None else desk.look(name, within(index))
        return {desk.thing: found, "progress": desk.progress(name)}

    @validate_call
    def within(index: int) -> int:
        if not 0 <= index < desk.total:
            raise HTTPException(404, f"there are {desk.total} to judge")
        return index

    @app.get("/", response_class=HTMLResponse)
    def root() -> str:
        return page

    @app.get("/api/next")
    def waiting(name: str = Query(alias=desk.judge), after: int | None = None) -> dict[str, Any]:
        return shown(person(name), desk.next(person(name), after))

    @app.get(f"/api/{desk.thing}s/{{index}}")
    def look(index: int, name: str = Query(alias=desk.judge)) -> dict[str, Any]:
        return shown(person(name), index)

    @app.post(f"/api/{desk.thing}s/{{index}}")
    def decide(index: int, decision: dict[str, Any] = Depends(sent)) -> dict[str, Any]:  # noqa: B008
        name = person(decision.pop(desk.judge, None))
        validate_call(desk.decide)(name, within(index), **decision)
        return shown(name, desk.next(name, index))

    @app.post("/api/back")
    def back(asked: dict[str, Any] = Depends(sent)) -> dict[str, Any]:  # noqa: B008
        name, index = person(asked.get(desk.judge)), asked.get("index")
        found = desk.back(name, None if index is None else within(index))
        if found is None:
            raise HTTPException(404, "there is nothing to go back to")
        return shown(name, found)

    @app.get("/pictures/{index}", response_class=Response)
    def image(index: int) -> Any:
        """The image, decoded and encoded again, so that nothing else is ever sent."""
        try:
            found = open_image(desk.image(within(index)))
        except UserError as error:
            raise HTTPException(404, f"this image cannot be shown ({str(error).rpartition(': ')[2]})") from None
        found.thumbnail((2048, 2048))
        return Response(encoded(found, "PNG", compress_level=1), media_type="image/png")

    return app


async def sent(request: Request) -> dict[str, Any]:
    """The JSON object that a request sends. Raises HTTPException for anything else."""
    body = bytearray()
    with suppress(ClientDisconnect):  # the rest is missing, and nobody reads the answer
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"a request holds at most {MAX_BODY:,} bytes", {"Connection": "close"})
    try:
        found = json.loads(body)
        json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):  # broken or deep, a lone surrogate, an infinite number
        raise HTTPException(400, "JSON of plain texts and numbers was expected") from None
    if not isinstance(found, dict):
        raise HTTPException(422, "a JSON object was expected")
    return found


def serve_app(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C; `ready` is given the address. Raises UserError if the port is taken."""
    with listen(host, port) as listening:
        ready(url(host, listening))
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def person(name: object) -> str:
    """A name as given, cleaned. Raises ValueError if it is no text, empty, too long or not printable."""
    name = " ".join(name.split()) if isinstance(name, str) else ""
    if not (1 <= len(name) <= 40 and name.isprintable()):
        raise ValueError("give a name of 1 to 40 letters")
    return name


def seconds_left(times: Iterable[str], waiting: int) -> int | None:
    """The time for `waiting` decisions at the pace of the last 20 (ISO times); None if there is no pace yet."""
    at = sorted(datetime.fromisoformat(time).timestamp() for time in times)[-21:]
    gaps = [later - earlier for earlier, later in zip(at, at[1:], strict=False) if later - earlier < PAUSE]
    return round(statistics.median(gaps) * waiting) if gaps else None
