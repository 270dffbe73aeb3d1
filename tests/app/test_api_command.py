"""`minigpt4 serve` as people start and stop it: a process of its own."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from api_server import Running, shown, slow_jpeg, user, wait_until
from openai import AuthenticationError, OpenAI

from commands import run
from minigpt4.vllm.server import command

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4

MINIGPT4 = str(Path(sys.executable).with_name("minigpt4"))


@pytest.fixture(scope="module")
def alignment(endless: MiniGPT4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("serve") / "toy"
    endless.save_pretrained(directory)
    return directory


@contextlib.contextmanager
def started(*arguments: object, **environment: str) -> Iterator[tuple[Any, OpenAI]]:
    process = subprocess.Popen(
        [MINIGPT4, "serve", *map(str, arguments), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert " at http://" in line, line + process.stderr.read()
        key = environment.get("MINIGPT4_API_KEY", "none")
        with OpenAI(base_url=line.split(" at ")[1].split()[0], api_key=key, max_retries=0, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def ask(client: OpenAI, **settings: Any) -> Any:
    messages: Any = [{"role": "user", "content": "Hi"}]
    return client.chat.completions.create(**{"model": "toy", "messages": messages, "temperature": 0, **settings})


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_it_finishes_what_is_running_when_it_is_told_to_end(alignment: Path, sent: signal.Signals) -> None:
    """And it takes the key from the environment."""
    with started(alignment, "--max-batch", 1, MINIGPT4_API_KEY="secret") as (process, client):
        with pytest.raises(AuthenticationError):
            ask(client.with_options(api_key="wrong"))
        stream = iter(ask(client, stream=True, max_tokens=100))
        assert next(stream).choices[0].delta.content == "Y"
        waiting: list[Any] = []
        queued = threading.Thread(target=lambda: waiting.append(ask(client, max_tokens=3)))
        queued.start()
        next(stream)
        process.send_signal(sent)
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        queued.join(60)
        assert waiting == [] or waiting[0].choices[0].message.content == "Yes"
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert process.returncode in (-sent, 130)


def test_it_ends_in_time_while_bombs_are_decoded_and_answers_have_no_end(alignment: Path) -> None:
    bomb = {"model": "toy", "messages": [user("What?", shown(slow_jpeg()))]}
    with started(alignment) as (process, client):
        stream = iter(ask(client, stream=True, max_tokens=90_000))
        next(stream)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            bombs = [pool.submit(lambda: Running(None, client.base_url.port, client).post(bomb)[0]) for _ in range(6)]  # type: ignore[arg-type]
            server = psutil.Process(process.pid)
            wait_until(lambda: any(each.cpu_times().user > 1 for each in server.children()), 120)
            children = server.children(recursive=True)
            assert not all(each.done() for each in bombs)
            began = time.monotonic()
            process.terminate()
            _, errors = process.communicate(timeout=60)
            assert time.monotonic() - began < 30, "not the 120 s that a request may take"
            assert {each.result() for each in bombs} <= {400, 503}
    assert "Traceback" not in errors
    assert not any(child.is_running() for child in children)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process")
def test_without_file_descriptors_the_log_stays_short(alignment: Path) -> None:
    """And the soft limit is raised to the hard one, as far as the connections need it."""
    with started(alignment) as (process, client):
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft >= min(3000, hard)
        assert ask(client, max_tokens=1).choices
        used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 20, used + 20))
        address = (client.base_url.host, client.base_url.port)
        opened = [socket.create_connection(address) for _ in range(60)]
        time.sleep(1.5)
        for connection in opened:
            connection.close()
        assert ask(client.with_options(max_retries=10), max_tokens=1).choices
        process.terminate()
        _, errors = process.communicate(timeout=60)
        assert errors.count("\n") <= 2, errors[-2000:]
        assert "no file descriptors are left" in errors


def refusal(*arguments: object) -> str:
    result = run("serve", *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_what_is_wrong_is_said_in_one_line(alignment: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}: cannot be listened on" in refusal(alignment, "--port", port)
    assert "choose local or vllm" in refusal(alignment, "--engine", "fast")
    assert "are for --engine local" in refusal(alignment, "--engine", "vllm", "--load-in", "4bit")


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_there_is_told_how_to_get(alignment: Path) -> None:
    assert "minigpt4-vlm[vllm]" in refusal(alignment, "--engine", "vllm")


def test_vllm_gets_the_same_limits_and_no_key_that_others_can_read() -> None:
    arguments = command("my-export", "toy", "127.0.0.1", 8000, max_images=3, hosts=[], dtype=None, eager=False)
    pairs = dict(zip(arguments, arguments[1:], strict=False))
    assert pairs["--model"] == "my-export"
    assert pairs["--host"] == "127.0.0.1"
    assert json.loads(pairs["--limit-mm-per-prompt"]) == {"image": 3}
    assert pairs["--allowed-media-domains"] == "none.invalid", "an empty list would let it fetch from anywhere"
    assert "--api-key" not in arguments
