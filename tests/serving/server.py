"""A real vLLM server in a process of its own, and a client that asks it over HTTP.

The client shows pictures as data URLs, always takes the likeliest token, and reads token ids from the response.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

START_SECONDS = 600
#: Settings with which the server does what `do_sample=False` does here.
GREEDY: dict[str, Any] = {"temperature": 0, "extra_body": {"repetition_penalty": 1.0, "return_token_ids": True}}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def shown(data: bytes | Image.Image) -> dict[str, Any]:
    """A picture as a part of a message."""
    data = png(data) if isinstance(data, Image.Image) else data
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


class Client:
    """Asks the one model of a server."""

    def __init__(self, url: str, key: str = "none") -> None:
        self.openai = OpenAI(base_url=url, api_key=key, max_retries=0, timeout=300)
        [self.model] = [model.id for model in self.openai.models.list()]

    def ask(self, *messages: dict[str, Any], **settings: Any) -> Any:
        return self.openai.chat.completions.create(model=self.model, messages=list(messages), **{**GREEDY, **settings})


def serve(export: Path, log: Path) -> contextlib.AbstractContextManager[str]:
    """Serve an export with vLLM in float32; yields the base URL of its API."""
    return serve_with(
        log, "vllm", "serve", export, "--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager",
        TORCHDYNAMO_DISABLE="1",  # the first request for log probabilities would wait for a C++ compiler
    )  # fmt: skip


@contextlib.contextmanager
def serve_with(log: Path, program: str, *arguments: object, **environment: str) -> Iterator[str]:
    """Run `program arguments --port PORT`, a vLLM server on loopback; yields the base URL of its API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name(program)), *map(str, arguments), "--port", str(port)]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env={**os.environ, **settings, **environment}, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            _wait_until_up(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()  # it passes that on to what it has started
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(60)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _wait_until_up(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(START_SECONDS):
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(url, timeout=10).close()
            return
        if server.poll() is not None:
            break
        time.sleep(1)
    pytest.fail(f"the server did not start; its log ends:\n{log.read_text(errors='replace')[-4000:]}")
