"""A server of the API in this process, on loopback, and what its tests say to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openai import OpenAI
from PIL import Image

from minigpt4.app.api.gate import Limits
from minigpt4.app.api.server import make_server
from minigpt4.app.api.service import Service
from minigpt4.local_web import allowed_hosts

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4


@dataclass(frozen=True)
class Running:
    """A server at work: OpenAI's client for it, and its address."""

    service: Service
    port: int
    openai: OpenAI

    def ask(self, *parts: Any, **settings: Any) -> Any:
        """The response to one question, made of texts and pictures; the likeliest answer unless told otherwise."""
        messages = settings.pop("messages", None) or [user(*parts)]
        return self.openai.chat.completions.create(
            **{"model": "toy", "messages": messages, "temperature": 0, "max_tokens": 40, **settings}
        )

    def post(self, body: bytes | dict[str, Any], **headers: str) -> tuple[int, Any, dict[str, str]]:
        """(status, JSON, headers) of a bare request."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json", **named})

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read().decode()
            found = json.loads(text) if "json" in response.getheader("Content-Type", "") else text
            return response.status, found, {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        _, text, _ = self.request("GET", "/metrics")
        [value] = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(value)


@contextlib.contextmanager
def serving(model: MiniGPT4, key: str | None = None, **limits: Any) -> Iterator[Running]:
    service = Service(model, "toy", Limits(**limits))
    server = make_server(service, key, allowed_hosts("127.0.0.1"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        port = listening.getsockname()[1]
        try:
            with OpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", api_key=key or "none", max_retries=0, timeout=60
            ) as client:
                yield Running(service, port, client)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive(), "the server does not end"


def png(picture: Image.Image) -> bytes:
    return encoded(picture, "PNG")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def slow_jpeg(side: int = 4000, scans: int = 20_000) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each costs a pass over all pixels."""
    data = encoded(Image.new("L", (side, side), 100), "JPEG", progressive=True)
    last = data[[found.start() for found in re.finditer(b"\xff\xda", data)][-1] : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def shown(data: bytes | Image.Image | str) -> dict[str, Any]:
    """A picture, or any URL, as a part of a message."""
    if isinstance(data, str):
        return {"type": "image_url", "image_url": {"url": data}}
    data = png(data) if isinstance(data, Image.Image) else data
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def user(*parts: Any) -> dict[str, Any]:
    """A user's message of texts and parts."""
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def wait_until(check: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)
