"""Strangers' images: the same pixels as from `open_image`, but bombs die alone, and soon, and leave nothing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from api_server import encoded, png, serving, shown, slow_jpeg, user, wait_until
from PIL import Image

from minigpt4.app import decoder as limits
from minigpt4.app.decoder import Decoder
from minigpt4.app.page.session import opened
from minigpt4.errors import UserError
from minigpt4.images import SENT_FORMATS, fit, open_image, size_of, to_pixels

if TYPE_CHECKING:
    from pathlib import Path

    from minigpt4 import MiniGPT4


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((320, 240))


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 1.5)


def workers() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "minigpt4.app.decoder" in " ".join(p.cmdline())]


def test_pixel_for_pixel_what_open_image_gives(decoder: Decoder, photo: Image.Image, varied: MiniGPT4) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    glass = photo.convert("RGBA")
    glass.putalpha(Image.linear_gradient("L").resize(photo.size))
    sixteen = Image.fromarray(np.linspace(0, 65535, 320 * 240, dtype=np.uint16).reshape(240, 320))
    files = [encoded(photo, kind) for kind in SENT_FORMATS]
    files += [encoded(photo, "JPEG", exif=turned.tobytes(), progressive=True), encoded(photo.convert("CMYK"), "JPEG")]
    files += [encoded(each, "PNG") for each in (glass, glass.convert("LA"), glass.quantize(), photo.convert("1"))]
    files += [encoded(sixteen, "PNG"), encoded(glass, "WEBP", lossless=True), encoded(photo.resize((60, 2000)), "PNG")]
    files += [encoded(photo, kind, save_all=True, append_images=[glass.convert("RGB")]) for kind in ("GIF", "MPO")]
    processor = varied.image_processor
    for data in files:
        expected = open_image(data)
        np.testing.assert_array_equal(decoder.open(data, 10**6), expected)
        fitted = decoder.submit(data, 10**6, size_of(processor)).result()
        np.testing.assert_array_equal(fitted, fit(expected, *size_of(processor)))
        np.testing.assert_array_equal(to_pixels(processor, [fitted]), to_pixels(processor, [expected]))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_what_no_camera_sends_is_for_the_command_line(decoder: Decoder, photo: Image.Image, kind: str) -> None:
    open_image(encoded(photo, kind))
    with pytest.raises(UserError, match=r"not an image.*; give a file in one of the formats JPEG, PNG, WEBP"):
        decoder.open(encoded(photo, kind), 10**6)


def test_what_is_wrong_is_one_line(decoder: Decoder, photo: Image.Image) -> None:
    for data, limit, said in (
        (b"", 10**6, "is empty"),
        (encoded(photo, "PNG")[:500], 10**6, "broken or truncated"),
        (encoded(photo, "PNG"), 1000, "320 x 240 is more than the 1,000 pixels"),
        (encoded(Image.new("1", (40_000, 1)), "PNG"), 10**6, "a side may have 32,768"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            decoder.open(data, limit)
        assert "\n" not in str(caught.value)


def test_one_that_takes_too_long_is_ended_while_others_are_opened(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SECONDS", 6.0)  # longer than a slow machine takes to start decoders anew
    monkeypatch.setattr(limits, "CLOCK_SECONDS", 60.0)
    before, decoder, good = workers(), Decoder(), encoded(photo, "PNG")
    bombs = [decoder.submit(slow_jpeg(), 16_000_000) for _ in range(4)]
    time.sleep(0.2)
    began = time.monotonic()
    for _ in range(5):
        decoder.open(good, 10**6, 60.0)
    assert not any(bomb.done() for bomb in bombs), "it did not wait for the bombs"
    assert time.monotonic() - began < 60
    with pytest.raises(UserError, match=r"takes more than 6 s"):
        bombs[0].result(120)
    with pytest.raises(UserError, match="too many images are being opened"):
        decoder.open(slow_jpeg(), 16_000_000, 0.1)  # whoever waits has an end of his own
    decoder.close()
    assert all(bomb.done() for bomb in bombs), "nobody waits for ever"
    assert workers() == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not count what a process allocates")
def test_one_that_takes_too_much_memory_is_refused(photo: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: time has no limit here, so only that of memory can end it."""
    for name in ("QUICK_SECONDS", "SECONDS", "CLOCK_SECONDS"):
        monkeypatch.setattr(limits, name, 300.0)
    glass = encoded(Image.new("P", (10_000, 10_000)), "PNG", bits=1, transparency=0)
    before = psutil.Process().memory_info().rss
    with contextlib.closing(Decoder()) as decoder:
        with pytest.raises(UserError, match="takes more memory than there is"):
            decoder.open(glass, 200_000_000, 300.0)
        assert psutil.Process().memory_info().rss - before < 50e6
        assert all(worker.memory_info().rss < 300e6 for worker in workers())
        assert decoder.open(encoded(photo, "PNG"), 10**6).size == photo.size


def test_one_that_is_killed_is_replaced(decoder: Decoder, photo: Image.Image) -> None:
    good = encoded(photo, "PNG")
    decoder.open(good, 10**6)
    for worker in workers():
        worker.kill()
        worker.wait()
    assert [decoder.open(good, 10**6).size for _ in range(4)] == [photo.size] * 4
    working = decoder.submit(slow_jpeg(), 16_000_000)
    time.sleep(0.3)
    for worker in workers():
        worker.kill()
    with pytest.raises(UserError, match="the process that decoded it died"):
        working.result(30)
    assert decoder.open(good, 10**6).size == photo.size


def test_they_are_small_and_take_no_code_from_the_directory_of_the_start(tmp_path: Path) -> None:
    for name in ("json", "signal", "PIL", "minigpt4"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    script = (
        "import sys\nsys.path[:] = eval(sys.argv[1])\nimport psutil\n"
        "from minigpt4.app.decoder import Decoder\nfrom minigpt4.errors import UserError\nmade = Decoder()\n"
        "try: made.open(b'x', 1)\nexcept UserError as error: assert 'not an image' in str(error), error\n"
        "for p in psutil.Process().children():\n"
        "    assert not any('torch' in m.path for m in p.memory_maps())\n"
        "    assert p.memory_info().rss < 60e6\n"
        "made.close()"
    )
    subprocess.run([sys.executable, "-c", script, repr(sys.path)], cwd=tmp_path, check=True, timeout=60)
    assert not (tmp_path / "ran").exists()


def alive(process: int) -> bool:
    """False for a process that has ended, also before its new parent has asked how."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_they_end_when_the_server_is_killed() -> None:
    script = (
        "import sys, psutil, time\nfrom minigpt4.app import decoder\n"
        "decoder.QUICK_SECONDS = decoder.SECONDS = decoder.CLOCK_SECONDS = 300.0\nmade = decoder.Decoder()\n"
        "data = sys.stdin.buffer.read()\nwaiting = [made.submit(data, 16_000_000) for _ in range(3)]\n"
        "busy = lambda: sum(p.cpu_times().user > 3 for p in psutil.Process().children())\n"
        "while busy() < 2: time.sleep(0.1)\n"
        "print(*[p.pid for p in psutil.Process().children()], flush=True)\ntime.sleep(300)"
    )
    server = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(slow_jpeg())
    server.stdin.close()
    left = [int(pid) for pid in server.stdout.readline().split()]
    assert len(left) == 3
    server.kill()
    server.wait()
    server.stdout.close()
    wait_until(lambda: not any(map(alive, left)), 60)


def test_an_upload_of_the_page_is_told_by_its_name(photo: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encoded(photo, "PNG"))
    np.testing.assert_array_equal(opened(str(tmp_path / "good.png")), photo)
    (tmp_path / "slow.jpg").write_bytes(slow_jpeg())
    with pytest.raises(UserError, match=r"^slow\.jpg: decoding it takes more than 1\.5 s; save it simpler$"):
        opened(str(tmp_path / "slow.jpg"))
    with pytest.raises(UserError, match=r"^none\.png: cannot be read"):
        opened(str(tmp_path / "none.png"))


def test_the_api_answers_others_meanwhile_and_ends_in_time(
    varied: MiniGPT4, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt4.app.api.server.ENDING_SECONDS", 2)
    body = {"model": "toy", "messages": [user("What?", shown(slow_jpeg()))]}
    good = shown(png(photo))
    before = workers()
    with serving(varied) as server:
        server.ask(good, "What?")
        answers: list[Any] = []
        bombs = [threading.Thread(target=lambda: answers.append(server.post(body))) for _ in range(6)]
        for bomb in bombs:
            bomb.start()
        time.sleep(0.5)
        for number in range(4):
            began = time.monotonic()
            assert server.ask(good if number % 2 else shown(png(photo.rotate(number))), "What?").choices
            assert server.request("GET", "/health")[0] == 200
            assert time.monotonic() - began < 60
        wait_until(lambda: bool(answers), 120)
        assert answers[0][0] == 400
        assert answers[0][1]["error"]["message"].startswith("image 1: decoding it takes more than 1.5 s")
        began = time.monotonic()
    assert time.monotonic() - began < 30, "it ends, though bombs still wait"
    for bomb in bombs:
        bomb.join(60)
    assert {status for status, _, _ in answers} <= {400, 503}
    assert "the server ends" in {found["error"]["message"] for _, found, _ in answers}
    assert workers() == before


def test_an_answer_without_an_end_is_broken_off(
    endless: MiniGPT4, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minigpt4.app.api.server.ENDING_SECONDS", 1)
    body = {"model": "toy", "messages": [user("Hi")], "max_tokens": 90_000, "temperature": 0}
    waiting: list[Any] = []
    with serving(endless, batch=1) as server:
        begun = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        head = {"Content-Type": "application/json"}
        begun.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": True}), head)
        stream = begun.getresponse()
        assert stream.readline().startswith(b"data: {")
        behind = threading.Thread(target=lambda: waiting.append(server.post(body)))
        behind.start()
        wait_until(lambda: server.service.scheduler.waiting == 1)
        began = time.monotonic()
    assert time.monotonic() - began < 30
    behind.join(60)
    assert waiting[0][0] == 503
    assert waiting[0][1]["error"]["message"] == "the server ends"
    with pytest.raises(http.client.IncompleteRead):
        stream.read()
    begun.close()
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_waits_for_its_image_no_longer_than_it_may(varied: MiniGPT4) -> None:
    with serving(varied, seconds=1.0) as server:
        status, found, _ = server.post({"model": "toy", "messages": [user("What?", shown(slow_jpeg()))]})
        assert (status, found["error"]["code"]) == (408, "timeout")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_ends_all(sent: signal.Signals) -> None:
    """As Ctrl-C in a terminal does, and at any moment: no decoder prints a traceback or stays."""
    script = "import time, psutil\nfrom minigpt4.app.decoder import Decoder\nmade = Decoder()\n"
    script += "try:\n  print(1, flush=True)\n  time.sleep(60)\nexcept KeyboardInterrupt: made.close()"
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert server.stdout is not None
    server.stdout.readline()
    children = psutil.Process(server.pid).children()
    os.killpg(server.pid, sent)
    _, errors = server.communicate(timeout=20)
    assert errors == ""
    wait_until(lambda: not any(child.is_running() for child in children))
