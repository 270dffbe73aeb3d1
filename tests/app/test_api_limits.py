"""What one may ask for, all may ask for together, and other websites may not: with little memory, and in time."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from api_server import Running, serving, shown, wait_until
from PIL import Image

from minigpt4.app import bodies
from minigpt4.app.api import gate
from minigpt4.app.api.server import create_app

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4

HEAD = '{"model": "toy", "messages": [{"role": "user", "content": "Hi"}], '
CONTENT = '{"model": "toy", "messages": [{"role": "user", "content": '
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
GOOD = (HEAD + '"max_tokens": 2}').encode()


@pytest.fixture(scope="module")
def server(varied: MiniGPT4) -> Iterator[Running]:
    with serving(varied) as running:
        yield running


@contextlib.contextmanager
def health(server: Running) -> Iterator[list[float]]:
    """Asks for /health all the time. Yields the seconds that each answer took."""
    took, over = [0.0], threading.Event()

    def ask() -> None:
        while not over.is_set():
            started = time.monotonic()
            assert server.request("GET", "/health")[0] == 200
            took.append(time.monotonic() - started)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def connected(server: Running, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Connections that each sent `data` and wait."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)))
            made[-1].sendall(data)
        yield made


def answer(connection: socket.socket) -> bytes:
    """What comes until the other side closes, if only by a reset."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(1 << 16):
            received += piece
    return received


MB = 1_000_000
BOMBS = {
    "stop": HEAD + '"stop": [' + "1," * 4 * MB + "1]}",
    "n": HEAD + '"n": [' + "[]," * 3 * MB + "1]}",
    "metadata": HEAD + '"metadata": {' + ",".join(f'"{i}":1' for i in range(MB)) + "}}",
    "messages": CONTENT + "[" + "{}," * 3 * MB + "1]}]}",
    "messages of pictures": CONTENT + "[" + '{"type":"image_url","image_url":{"url":"cid:a"}},' * 200_000 + "1]}]}",
    "response_format": HEAD + '"response_format": ' + '{"a":' * 2 * MB + "1",
    "user twice": HEAD + '"user": "a",' * MB + '"user": "a"}',
    "k": HEAD + '"k": ' + "[" * 5 * MB,
    "seed in quotes": HEAD + '"a\\\\\\"b": "' + '\\"' * 4 * MB + '", "seed": [' + '"",' * MB + "1]}",
    "": "[" * 5 * MB,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_name_before_it_goes_off(server: Running, name: str) -> None:
    body = BOMBS[name].encode()
    process = psutil.Process()
    before = process.memory_info().rss
    for _ in range(3):  # what holds others up does so every time
        with health(server) as took:
            started = time.monotonic()
            status, found, _ = server.post(body)
            assert time.monotonic() - started < 30
            grown = process.memory_info().rss - before
        if max(took) < 0.5:
            break
    assert status == 400
    assert found["error"]["code"] == "too_complex"
    assert (found["error"]["param"] or "") == name.partition(" ")[0]
    assert (
        f"at most {gate.MARKS:,}" in found["error"]["message"] or f"at most {gate.DEPTH}" in found["error"]["message"]
    )
    assert max(took) < 0.5
    assert grown < 10 * len(body)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (HEAD + ",".join(f'"k{i}":1' for i in range(14_000)) + "}", "k0"),
        (HEAD + '"metadata": {' + ",".join(f'"k{i}":1' for i in range(14_000)) + "}}", "metadata.k0"),
        (HEAD + '"metadata": {' + ",".join(f'"k{i}":"1"' for i in range(17)) + "}}", "metadata"),
        (CONTENT + "[" + "1," * 29_000 + "1]}]}", "messages.0.content.0"),
        (HEAD + '"stop": [' + '"a",' * 29_000 + '"a"]}', "stop"),
        (HEAD + '"' + "k" * 4 * MB + '": 1}', "k" * 200),
        (HEAD + '"model": "' + "m" * 4 * MB + '"}', "model"),
    ],
)
def test_below_the_limits_few_errors_are_collected(server: Running, body: str, param: str) -> None:
    for _ in range(3):
        with health(server) as took:
            status, found, _ = server.post(body.encode())
        if max(took) < 0.5:
            break
    assert (status, found["error"]["param"]) == (400, param)
    assert len(found["error"]["message"]) <= 1000
    assert max(took) < 0.5


def test_ordinary_requests_are_far_from_the_limits(server: Running) -> None:
    """Quotes, backslashes and brackets in texts are no structure, and a picture is one string."""
    picture = shown(Image.effect_noise((1200, 1200), 90))
    said = '[{"\\": "]' * 4000
    turn = {"role": "user", "content": [{"type": "text", "text": said}]}
    assert (
        server.post({"model": "toy", "max_tokens": 1, "messages": [{"role": "user", "content": [picture]}]})[0] == 200
    )
    assert server.post({"model": "toy", "messages": [turn]})[1]["error"]["code"] == "context_length_exceeded"
    many = [{"role": role, "content": [{"type": "text", "text": "x"}]} for role in ("user", "assistant")] * 500
    assert server.post({"model": "toy", "messages": many})[1]["error"]["code"] != "too_complex"


def test_a_conversation_has_a_length_before_it_is_tokenised(server: Running) -> None:
    turns = [{"role": role, "content": "word " * 30_000} for role in ("user", "assistant")]
    status, found, _ = server.post({"model": "toy", "messages": turns})
    assert status == 400
    assert "more than 200,000 characters" in found["error"]["message"]


def test_both_lengths_at_once_are_refused_and_the_connection_ends(server: Running) -> None:
    inner = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for method in (b"POST", b"GET", b"DELETE"):
        data = POST.replace(b"POST", method, 1) + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        with connected(server, 1, data + inner) as [connection]:
            received = answer(connection)
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1
        assert b"not both" in received


def test_bodies_that_have_not_come_take_no_places(varied: MiniGPT4) -> None:
    with serving(varied, batch=1, queue=1) as server, connected(server, 60, POST + b"Content-Length: 1000\r\n\r\n{"):
        assert server.post(GOOD)[0] == 200


def test_large_bodies_share_a_room_and_small_ones_get_in(varied: MiniGPT4) -> None:
    process = psutil.Process()
    large = POST + b"Content-Length: 1000000\r\n\r\n"
    with serving(varied, body_bytes=MB) as server:
        before = process.memory_info().rss
        with connected(server, 40, large + b" " * 900_000) as waiting:
            time.sleep(0.5)
            assert process.memory_info().rss - before < 40e6  # 10 are held, and what is on its way
            assert server.post(GOOD)[0] == 200
            status, found, headers = server.post(GOOD + b" " * 900_000)
            assert (status, found["error"]["code"]) == (429, "server_busy")
            assert int(headers["retry-after"]) > 0
            for connection in waiting:
                connection.close()
        wait_until(lambda: server.post(GOOD + b" " * 900_000)[0] == 200)


@pytest.mark.parametrize(("pace", "begun"), [(0.1, 1), (100, 1), (100, 90_000)])
def test_slow_bodies_are_cut_by_their_rate(
    varied: MiniGPT4, monkeypatch: pytest.MonkeyPatch, pace: float, begun: int
) -> None:
    """One that never pauses but brings too little, and some that pause."""
    monkeypatch.setattr(bodies, "PAUSE", 0.5)
    head = POST + b"Content-Length: 100000\r\n\r\n"
    with serving(varied) as server, connected(server, 1, head + b" " * begun) as [connection]:
        started = time.monotonic()
        connection.settimeout(pace)
        received = b""
        while not received and time.monotonic() - started < 10:
            with contextlib.suppress(TimeoutError):
                received = connection.recv(1000)
            if not received:
                connection.sendall(b" " * 50)
        assert received.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - started < 3


def test_connections_are_bounded_and_new_ones_take_the_place_of_idle_ones(varied: MiniGPT4) -> None:
    process = psutil.Process()
    with serving(varied, connections=20) as server:
        before = len(process.net_connections())
        with connected(server, 50, b"") as silent, connected(server, 20, b"GET /hea") as slow:
            assert server.request("GET", "/health")[0] == 200
            assert server.ask("Hi", max_tokens=2).choices
            assert len(process.net_connections()) - before <= 20 + 70 + 2, "70 ends are the clients' own"
            assert answer(silent[0]) == b""
            slow[-1].sendall(b"lth HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert answer(slow[-1]).startswith(b"HTTP/1.1 200 ")
        with connected(server, 18, POST + b"Content-Length: 1000\r\n\r\n{"):
            assert server.request("GET", "/health")[0] == 200
            assert server.post(GOOD)[0] == 429


def test_a_client_that_does_not_read_is_left(varied: MiniGPT4, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HEAD_SECONDS", 0.5)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with serving(varied) as server, socket.socket() as connection:
        connection.settimeout(20)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        with contextlib.suppress(ConnectionError):
            connection.sendall(ask * 2000)
        mine = connection.getsockname()[1]

        def is_open() -> bool:
            pairs = [(c.laddr.port, c.raddr and c.raddr.port, c.status) for c in psutil.Process().net_connections()]
            return (server.port, mine, psutil.CONN_ESTABLISHED) in pairs

        wait_until(lambda: not is_open(), 60)
        assert answer(connection).count(b"HTTP/1.1 200") < 2000


#: Every route, and who may use it: anyone, only with the key, and without a key only from no other website.
ROUTES = {
    ("POST", "/v1/chat/completions"): "works, key",
    ("GET", "/v1/models"): "key",
    ("GET", "/v1/models/{name:path}"): "key",
    ("GET", "/metrics"): "key",
    ("GET", "/health"): "anyone",
    ("GET", "/openapi.json"): "anyone",
}
ELSEWHERE: list[dict[str, str]] = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1"},
]


def test_these_are_all_routes_and_who_may_use_them(server: Running, varied: MiniGPT4) -> None:
    """Fails when we or FastAPI add one: say here who may call it."""
    app: Any = create_app(server.service)
    found = {(method, route.path) for route in app.routes for method in route.methods or () if method != "HEAD"}
    assert found == set(ROUTES)
    with serving(varied, key="k") as locked:
        for (method, route), who in ROUTES.items():
            path, body = route.replace("{name:path}", "toy"), GOOD if method == "POST" else None
            headers = {"Content-Type": "application/json"}

            def status(running: Running, more: dict[str, str]) -> int:
                return running.request(method, path, body, {**headers, **more})[0]  # noqa: B023

            assert status(server, {}) == 200
            assert status(locked, {}) == (200 if who == "anyone" else 401), route
            assert status(locked, {"Authorization": "Bearer k", "Host": "proxy.example", **ELSEWHERE[2]}) == 200
            for elsewhere in ELSEWHERE:
                assert status(server, elsewhere) == (403 if "works" in who else 200), (route, elsewhere)
                wrong = {"Authorization": "Bearer wrong", **elsewhere}
                assert status(server, wrong) == (403 if "works" in who else 200), "no key is asked for, this is no key"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_no_other_website_changes_anything(server: Running, method: str) -> None:
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    form = b'--B\r\nContent-Disposition: form-data; name="request"\r\n\r\n' + GOOD + b"\r\n--B--\r\n"
    for path in ("/v1/chat/completions", "/v1/models", "/health", "/metrics", "/nowhere"):
        for elsewhere in ELSEWHERE:
            headers = {"Content-Type": "multipart/form-data; boundary=B", **preflight, **elsewhere}
            status, found, answered = server.request(method, path, form, headers)
            assert (status, found["error"]["code"]) == (403, "other_site")
            assert not any(name.startswith("access-control") for name in answered)
