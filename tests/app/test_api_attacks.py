"""What people send who mean no good: each is refused in OpenAI's shape, and the server goes on as before."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import random
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from api_server import Running, png, serving, shown, user, wait_until
from PIL import Image

from minigpt4 import UserError
from minigpt4.app.api import gate, remote_images
from minigpt4.app.api.remote_images import fetch, is_public

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4


@pytest.fixture(scope="module")
def server(varied: MiniGPT4) -> Iterator[Running]:
    with serving(varied, body_seconds=1.0, body_bytes=5_000_000, pixels=1_000_000) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(server: Running) -> Iterator[None]:
    """Whatever was tried: the same question has the same answer, and nothing is left over."""
    before = server.ask("Are you there?").choices[0].message.content
    yield
    assert server.ask("Are you there?").choices[0].message.content == before
    wait_until(lambda: server.service.scheduler.running == server.service.scheduler.waiting == 0)


def refused(server: Running, *parts: Any, status: int = 400) -> str:
    code, found, _ = server.post({"model": "toy", "messages": [user(*parts)]})
    assert code == status, found
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert "Traceback" not in found["error"]["message"]
    return str(found["error"]["message"])


def png_head(side: int) -> bytes:
    """The head of a PNG that claims to be `side` x `side` pixels large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def bomb(side: int) -> bytes:
    """A real PNG of few bytes and very many pixels."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bomb(12_000), "more than the 1,000,000 pixels"),
        (png_head(60_000), "truncated"),
        (png(Image.effect_noise((64, 64), 50))[:900], "truncated"),
        (png(Image.new("RGB", (9, 9)))[:20], "broken|not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "not an image"),
        (b"<html><script>alert(1)</script></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "not an image"),
        (b"", "empty"),
    ],
    ids=["bomb", "huge head", "truncated", "head only", "svg", "html", "postscript", "empty"],
)
def test_what_is_no_good_picture(server: Running, data: bytes, said: str) -> None:
    started, before = time.monotonic(), psutil.Process().memory_info().rss
    message = refused(server, shown(data), "What is it?")
    assert any(part in message for part in said.split("|")), message
    assert message.startswith("image 1: ")
    assert time.monotonic() - started < 10
    assert psutil.Process().memory_info().rss - before < 200e6, "it was unpacked"


@pytest.mark.parametrize(
    "url",
    [
        "/etc/passwd",
        "../../../../etc/passwd",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "cid:../../etc/passwd",
        "cid:/etc/passwd",
        "ftp://127.0.0.1/x.png",
        "gopher://127.0.0.1/x",
        "data:image/png,iVBORw0KGgo=",
        "data:image/png;base64",
        "data:image/png;base64,%%%",
        "data:image/png;base64,L2V0Yy9wYXNzd2Q=",
        "",
        " http://127.0.0.1/",
        "\u0000",
    ],
)
def test_no_path_and_no_other_scheme(server: Running, url: str) -> None:
    message = refused(server, shown(url), "What is it?")
    assert "root:" not in message


@contextlib.contextmanager
def inside(certificate: Path | None = None) -> Iterator[tuple[int, list[str]]]:
    """A server that nobody outside may make us ask: its port, and the paths that it was asked for."""
    asked: list[str] = []
    picture = png(Image.new("RGB", (8, 8), "red"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/to/"))
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                if self.path == "/drip":
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                self.wfile.write(picture if self.path != "/large" else b"x" * 100_000)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], asked
        server.shutdown()


@pytest.fixture
def inner() -> Iterator[tuple[int, list[str]]]:
    with inside() as running:
        yield running


HERE = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "127.1", "0x7f000001", "[::ffff:127.0.0.1]")


def test_an_empty_key_is_no_key(varied: MiniGPT4) -> None:
    with serving(varied, key="") as server:
        assert server.post({"model": "toy", "messages": [user("Hi")]}, Host="evil.example")[0] == 403
        assert server.post({"model": "toy", "messages": [user("Hi")], "max_tokens": 2})[0] == 200


def test_nothing_is_fetched_unless_the_operator_says_so(server: Running, inner: tuple[int, list[str]]) -> None:
    port, asked = inner
    for host in (*HERE, "169.254.169.254", "example.com"):
        for scheme in ("http", "HTTP", "https"):
            assert "fetches no images" in refused(server, shown(f"{scheme}://{host}:{port}/x.png"), "What?")
    assert asked == []


def test_no_private_address_is_fetched_even_from_a_host_on_the_list(
    varied: MiniGPT4, inner: tuple[int, list[str]]
) -> None:
    port, asked = inner
    names = [host.strip("[]") for host in (*HERE, "169.254.169.254", "10.0.0.1")]
    with serving(varied, hosts=tuple(names)) as server:
        for host in (*HERE, "169.254.169.254", "10.0.0.1", "localhost.", "LOCALHOST", "example.com"):
            message = refused(server, shown(f"http://{host}:{port}/x.png"), "What?")
            assert "no images from" in message or "no host" in message, message
    assert asked == []


PRIVATE = """
127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 224.0.0.1 255.255.255.255
192.0.2.1 198.18.0.1 :: ::1 fe80::1 fe80::1%eth0 fc00::1 ff02::1 2001:db8::1
::ffff:127.0.0.1 ::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1::1 2001:0:7f00:1::1
::127.0.0.1 ::8.8.8.8 ::ffff:0:127.0.0.1 ::ffff:0:8.8.8.8 ::ffff:169.254.169.254 fec0::1 feff::1 64:ff9b:1::7f00:1
64:ff9b::808:808 100::1 5f00::1 4000::1 8000::1 3fff::1 2001:10::1 2001:20::1 2002:808:808::1 192.88.99.1 240.0.0.1
"""


@pytest.mark.parametrize("address", PRIVATE.split())
def test_addresses_that_are_not_of_the_open_internet(address: str) -> None:
    assert not is_public(address)
    assert is_public("1.1.1.1")
    assert is_public("2606:4700:4700::1111")
    assert is_public("::ffff:1.1.1.1")
    assert is_public("2a00:1450:4001:829::200e")


@pytest.mark.parametrize(
    "url", ["http://[", "http://[::1/x", "http://[v1.x]/", "http://ok:99999/", "http://\u2100.com/"]
)
def test_addresses_that_are_none_are_refused(varied: MiniGPT4, inner: tuple[int, list[str]], url: str) -> None:
    with serving(varied, hosts=("ok",)) as server:
        assert "image 1: " in refused(server, shown(url), "What?")
    with pytest.raises(UserError):
        fetch(f"http://localhost:{inner[0]}/to/{url}", ("localhost",), 10_000, lambda address: True)


def test_what_may_be_fetched_is_and_redirects_are_looked_at_again(inner: tuple[int, list[str]]) -> None:
    """`allowed` lets this machine's address pass, as if it were public; names and redirects are checked as ever."""
    port, asked = inner
    here = f"http://localhost:{port}"

    def get(path: str, allowed: Any = lambda address: True, size: int = 10_000) -> bytes:
        return fetch(here + path, ("localhost",), size, allowed)

    assert get("/x.png?a=1#b") == get(f"/to/{here}/x.png") == get("/to//x.png") == png(Image.new("RGB", (8, 8), "red"))
    assert asked[0] == "/x.png?a=1"
    get("?a=1")
    assert asked[-1] == "/?a=1"
    asked.clear()
    for path, said in (
        (f"/to/http://127.0.0.1:{port}/secret", "no images from '127.0.0.1'"),
        ("/to/http://169.254.169.254/latest/meta-data", "no images from '169.254.169.254'"),
        ("/to/file:///etc/passwd", "http and https addresses only"),
        (f"/to/{here}/to/{here}/to/{here}/to/{here}/x.png", "redirects"),
        (f"/to/https://localhost:{port}/secret", "could not be fetched"),
        ("/large", "bytes allowed"),
    ):
        with pytest.raises(UserError, match=said):
            get(path)
    assert "/secret" not in asked
    first = iter([True])
    with pytest.raises(UserError, match="not a public one"):  # a name that points elsewhere the second time
        get(f"/to/{here}/secret", lambda address: next(first, False))
    assert "/secret" not in asked


def test_hosts_that_say_nothing_keep_nobody_else_waiting(varied: MiniGPT4, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_images, "fetch", partial(fetch, allowed=lambda address: True))
    monkeypatch.setattr(remote_images, "SECONDS", 20.0)
    with serving(varied, hosts=("localhost",)) as server, socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = shown(f"http://localhost:{silent.getsockname()[1]}/x.png")
        threads = [threading.Thread(target=server.post, args=({"model": "toy", "messages": [user(url, "What?")]},))
                   for _ in range(40)]  # fmt: skip
        for thread in threads:
            thread.start()
        time.sleep(1)
        started = time.monotonic()
        server.ask(shown(png(Image.new("RGB", (8, 8), "red"))), "What?", max_tokens=2)
        assert time.monotonic() - started < 10
    for thread in threads:
        thread.join()


def test_who_drips_a_picture_is_left(inner: tuple[int, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4.app.api.remote_images.SECONDS", 0.5)
    started = time.monotonic()
    with contextlib.suppress(UserError):
        fetch(f"http://localhost:{inner[0]}/drip", ("localhost",), 10_000, lambda address: True)
    assert time.monotonic() - started < 3


def test_a_handshake_that_drips_has_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte is early enough for a socket's own timeout, all together never come."""
    monkeypatch.setattr("minigpt4.app.api.remote_images.SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")  # the head of a TLS record of 16 KB
                for _ in range(100):
                    connection.sendall(b"\x02")
                    time.sleep(0.1)

        threading.Thread(target=drip, daemon=True).start()
        started = time.monotonic()
        with pytest.raises(UserError, match="could not be fetched"):
            fetch(f"https://localhost:{listening.getsockname()[1]}/", ("localhost",), 10_000, lambda address: True)
        assert time.monotonic() - started < 4


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_over_tls_only_from_whom_the_certificate_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = tmp_path / "both.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -addext subjectAltName=DNS:localhost"
    command = [*make.split(), "-keyout", certificate, "-out", tmp_path / "own.pem"]
    subprocess.run(command, check=True, capture_output=True)
    with certificate.open("a") as both:
        both.write((tmp_path / "own.pem").read_text())

    def get(path: str, name: str = "localhost") -> bytes:
        return fetch(f"https://{name}:{port}{path}", (name,), 10_000, lambda address: True)

    with inside(certificate) as (port, asked):
        with pytest.raises(UserError, match="SSLCertVerificationError"):
            get("/x.png")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "own.pem"))
        assert get("/x.png") == png(Image.new("RGB", (8, 8), "red"))
        with pytest.raises(UserError, match="SSLCertVerificationError"):
            get("/x.png", "127.0.0.1")
        assert asked == ["/x.png"]
        monkeypatch.setattr("minigpt4.app.api.remote_images.SECONDS", 0.5)
        started = time.monotonic()
        with contextlib.suppress(UserError):
            get("/drip")
        assert time.monotonic() - started < 3


@pytest.mark.parametrize("nasty", ["<image>", "###", "<s>", "</s>", "</Img>", "<Img>", "<ImageHere>", "<pad>"])
def test_words_stay_words(server: Running, varied: MiniGPT4, nasty: str) -> None:
    """A control token in a text is read as a space: neither a token, nor an end of a turn, nor a picture."""
    picture = shown(Image.new("RGB", (30, 40), "teal"))

    def read(said: str) -> Any:
        half = len(said) // 2
        messages = [
            {"role": "system", "content": f"Be{'' if nasty.endswith('Img>') else said}brief."},
            user(picture, f"What{said}is", f" it{said[:half]}", f"{said[half:]}?"),  # split over two parts, too
            {"role": "assistant", "content": f"It{said}is."},
            user(f"Is{said}", picture, f"{said}it?"),
        ]
        response = server.ask(messages=messages, logprobs=True, max_tokens=8)
        return (
            response.usage.prompt_tokens,
            response.choices[0].message.content,
            [round(entry.logprob, 3) for entry in response.choices[0].logprobs.content],
        )

    assert read(nasty) == read(" ")


def test_too_many_pictures_and_too_long_a_prompt(server: Running) -> None:
    picture = shown(Image.new("RGB", (8, 8)))
    assert "at most 8" in refused(server, *[picture] * 9)
    assert "tokens long" in refused(server, "word " * 600)


def test_a_body_that_is_too_large(server: Running) -> None:
    started, before = time.monotonic(), psutil.Process().memory_info().rss
    chunk = b"x" * 1_000_000

    def stream() -> Iterator[bytes]:
        for _ in range(100):
            yield chunk

    for headers in ({"Content-Length": "100000000"}, {"Transfer-Encoding": "chunked"}):
        with contextlib.suppress(ConnectionError):  # it may be cut off in the middle
            import http.client

            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request(
                "POST", "/v1/chat/completions", stream(), {"Content-Type": "application/json", **headers},
                encode_chunked="Transfer-Encoding" in headers,
            )  # fmt: skip
            response = connection.getresponse()
            assert response.status == 413
            assert json.loads(response.read())["error"]["code"] == "body_too_large"
            connection.close()
    assert time.monotonic() - started < 30
    assert psutil.Process().memory_info().rss - before < 60e6


def test_slow_bodies_and_slow_heads_are_given_up(
    server: Running, varied: MiniGPT4, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HEAD_SECONDS", 1.0)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    for number, connection in enumerate(slow):
        connection.sendall((head + b"Content-Length: 1000\r\n\r\n{") if number % 2 else head[:40])
    started = time.monotonic()
    open_ones = set(slow)
    while open_ones and time.monotonic() - started < 10:
        for connection in list(open_ones):
            connection.settimeout(0.01)
            try:
                connection.sendall(b" " if slow.index(connection) % 2 else b"x")
                received = connection.recv(4096)
            except TimeoutError:
                continue
            except ConnectionError:
                received = b""
            if slow.index(connection) % 2 and received:
                assert b" 408 " in received.splitlines()[0]
            if not received or b" 408 " in received:
                open_ones.discard(connection)
        assert server.ask("Are you there?", max_tokens=1).choices, "others are served meanwhile"
    assert not open_ones
    for connection in slow:
        connection.close()


def test_the_key_is_asked_for_before_anything_is_read(varied: MiniGPT4) -> None:
    with serving(varied, key="sésame") as server:
        assert server.request("GET", "/health")[0] == 200
        for path in ("/v1/models", "/metrics", "/v1/models/../models"):
            assert server.request("GET", path)[0] == 401
        for key in ("", "Bearer", "Bearer x", "Basic sésame".encode().decode("latin-1")):
            status, found, _ = server.post(b"{", Authorization=key)
            assert (status, found["error"]["code"]) == (401, "invalid_api_key")
        right = "Bearer " + "sésame".encode().decode("latin-1")
        assert server.request("GET", "/v1/models", headers={"Authorization": right})[0] == 200


def test_a_web_page_elsewhere_cannot_ask(server: Running) -> None:
    """Neither by pointing its own name here, nor by a form, which may send some types without asking."""
    for host in ("evil.example", "evil.example:8000", "", "127.0.0.1.evil.example"):
        assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 403
    for host in ("localhost", "localhost:1", "[::1]:8000", "127.0.0.1"):
        assert server.request("GET", "/v1/models", headers={"Host": host})[0] == 200
    body = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    status, _, headers = server.post(body, Content_Type="text/plain")
    assert status == 400
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/v1/../../etc/passwd", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/docs/../x", "//"],
)
def test_paths_of_the_server_lead_nowhere(server: Running, path: str) -> None:
    status, found, _ = server.request("GET", path)
    assert (status, set(found)) == (404, {"error"})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "toy", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"\\ud800": 1, "model": "toy", "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"model": "toy", "temperature": NaN, "messages": [{"role": "user", "content": "Hi"}]}',
        b'{"model": "toy", "temperature": 1e999, "messages": [{"role": "user", "content": "Hi"}]}',
    ],
)  # fmt: skip
def test_what_is_no_json_or_no_request(server: Running, body: bytes) -> None:
    status, found, _ = server.post(body)
    assert status in (400, 404)
    assert set(found) == {"error"}


def test_nothing_that_was_sent_is_kept(server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    random.seed(0)
    data = png(Image.frombytes("RGB", (400, 400), random.randbytes(480_000)))  # more than a megabyte with its form
    form = b'--x\r\nContent-Disposition: form-data; name="request"\r\n\r\n'
    form += json.dumps({"model": "toy", "max_tokens": 2, "messages": [user(shown("cid:a"), "What?")]}).encode()
    form += (
        b'\r\n--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n' + data * 3 + b"\r\n--x--\r\n"
    )
    assert server.post(form, Content_Type="multipart/form-data; boundary=x")[0] == 200
    assert list(tmp_path.iterdir()) == []
    held = server.service.scheduler.features.held
    assert all(features.numel() < 1000 for _, features in held.values()), "features only, no pixels"
    assert base64.b64encode(data[:60]) not in repr(held).encode()
