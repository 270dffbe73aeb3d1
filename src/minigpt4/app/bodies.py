"""Bodies of requests, read whole into memory within limits: the same rules for the API and the page."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

#: Seconds that a body may pause, and the bytes per second that it must come with on average after as many seconds.
PAUSE, RATE = 5.0, 10_000
SMALL = 64_000  # bytes of a body for which there is always room


class Bodies:
    """All bodies that a server holds: `room` bytes together; `at_once` may be on their way, `seconds` for each."""

    def __init__(self, room: int, at_once: int, seconds: float) -> None:
        self.room, self.at_once, self.seconds = room, at_once, seconds
        self.held = self.coming = 0

    @contextlib.asynccontextmanager
    async def read(self, headers: Mapping[str, str], receive: Any, limit: int) -> AsyncIterator[bytes]:
        """The body, which counts as held inside of the `with`. Raises HTTPException if it cannot be had."""
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)
        if self.coming >= self.at_once:
            raise _too_many()
        body, started, more = bytearray(), time.monotonic(), True
        self.coming += 1
        try:
            try:
                while more:
                    allowed = started + min(self.seconds, PAUSE + len(body) / RATE) - time.monotonic()
                    message = await asyncio.wait_for(receive(), min(PAUSE, allowed))
                    if message["type"] == "http.disconnect":
                        raise HTTPException(400, "the body did not come whole")
                    piece = message.get("body", b"")
                    if len(body) + len(piece) > limit:
                        raise _too_large(limit)
                    body += piece
                    self.held += len(piece)
                    if len(body) > SMALL and self.held > self.room:
                        raise _too_many()
                    more = message.get("more_body", False)
            except (TimeoutError, asyncio.TimeoutError):
                pace = f"it may take {self.seconds:g} s, pause {PAUSE:g} s, and must bring {RATE:,} bytes per second"
                raise HTTPException(408, f"the body came too slowly: {pace}", {"Connection": "close"}) from None
            finally:
                self.coming -= 1
            yield bytes(body)
        finally:
            self.held -= len(body)


def _too_large(limit: int) -> HTTPException:
    return HTTPException(413, f"the body is over the {limit:,} bytes allowed")


def _too_many() -> HTTPException:
    wait = f"{PAUSE:.0f}"
    return HTTPException(429, f"too much is being sent to this server; try again in {wait} s", {"Retry-After": wait})


def replayed(body: bytes, receive: Any) -> Any:
    """An ASGI `receive` that gives a body which was read already, and then goes on with `receive`."""
    messages = [{"type": "http.request", "body": body}]

    async def again() -> Any:
        return messages.pop() if messages else await receive()

    return again


async def read_form(
    headers: Headers, body: bytes, max_files: int, max_fields: int
) -> list[tuple[str, str | None, bytes]]:
    """The parts of a multipart body: name, file name (None: no file), content. Raises HTTPException if it is broken."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), SMALL):
            yield body[start : start + SMALL]
            await asyncio.sleep(0)  # parsing is slow for some bodies; others have their turn

    parser = MultiPartParser(headers, pieces(), max_files=max_files, max_fields=max_fields, max_part_size=len(body) + 1)
    parser.spool_max_size = len(body) + 1  # never to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise HTTPException(400, f"broken multipart body ({getattr(error, 'message', error)})") from None
    return [
        (name, part.filename or "", await part.read()) if isinstance(part, UploadFile) else (name, None, part.encode())
        for name, part in form.multi_items()
    ]
