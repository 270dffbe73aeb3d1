"""Pages in a process of their own, as people start them."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

#: How it is started: as root in a container, and without the drawing of pages by an emulated GPU, which takes a core.
PLAIN = ("--no-sandbox", "--disable-gpu-rasterization", "--disable-gpu-compositing")

START = "from minigpt4.cli import main; main()"


@contextlib.contextmanager
def served(*arguments: object) -> Iterator[str]:
    """The address of the page that `minigpt4 ARGUMENTS` serves; it must end on Ctrl-C, without a traceback."""
    with subprocess.Popen(
        [sys.executable, "-c", START, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, process.stderr and process.stderr.read()
        try:
            yield found.group()
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert process.returncode == 130


def ask(url: str, path: str, body: bytes | None = None, **headers: str) -> int:
    """The status of a request, with a header `Sec_Fetch_Site` written as Sec-Fetch-Site."""
    more = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=30)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, more)
        return connection.getresponse().status


#: Bodies that no request of our pages has, and what they are answered.
ODD = [
    (b"[" * 30_000, 400), (b'{"a":' * 10_000, 400), (b'{"index": 1e400}', 400), (b'{"index": NaN}', 400),
    (b'{"index": %s}' % (b"1" * 5000), 400), (b'{"text": "\\ud800"}', 400), (b"\xff", 400), (b"", 400), (b"null", 422),
    (b'{"text": "%s"}' % (b"a" * 70_000), 413),
]  # fmt: skip


def assert_guarded(url: str, routes: dict[str, bytes | None]) -> None:
    """Of these requests (path: JSON, or None for GET) each is answered to our own page, and to no other."""
    here = url.rstrip("/")
    for path, body in routes.items():
        assert ask(url, path, body, Origin=here, Sec_Fetch_Site="same-origin") == 200, path
        for foreign in (
            {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Origin": "http://evil.example"},
            {"Origin": "null"}, {"Content_Type": "text/plain", "Origin": "http://evil.example"},
        ):  # fmt: skip
            assert ask(url, path, body, **foreign) == 403, (path, foreign)
        for host in ("evil.example", "127.0.0.1.evil.example", "", "localhost@evil.example"):
            assert ask(url, path, body, Host=host) == 400, (path, host)
        for odd, status in ODD if body is not None else ():
            assert ask(url, path, odd) == status, (path, odd[:30])
            assert ask(url, path, odd, Origin="http://evil.example") == 403
    for path in ("/docs", "/openapi.json", "/pictures/-1", "/pictures/999999", f"/pictures/{'9' * 400}"):
        assert ask(url, path) == 404, path
    for path in ("/pictures/x", "/pictures/1.5", f"/pictures/{'9' * 5000}"):
        assert ask(url, path) == 422, path


def routes_of(app: Any) -> set[tuple[str, str]]:
    """(method, path) of all that an app answers."""
    return {(method, route.path) for route in app.routes for method in route.methods}
