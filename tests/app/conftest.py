"""Toy models behind real servers on loopback; the page in a process of its own, as people start it, in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from pages import CHROMIUM, PLAIN, served
from speaking import endless_llm, make_it_say, talking_llm

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

    from minigpt4 import MiniGPT4

#: What a model must not be able to do to the page, said before and inside of a web page. TRAP is another server.
HOSTILE = (
    "See <img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script> "
    "![](http://TRAP/a) ${document.title='hacked'}",
    "<html><body onload=\"parent.document.title='hacked'\"><h1>Mine</h1><script>top.document.title='hacked'</script>",
    '<img src="http://TRAP/b.png"><form action="http://TRAP/"><button>Go</button></form>',
    "```\n# Out\n</body></html>",
)


@pytest.fixture(scope="session")
def trap() -> Iterator[tuple[str, list[str]]]:
    """A server that nothing may ask for anything: its host and port, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


@pytest.fixture(scope="session")
def hostile_model(
    tiny_vision: Path, tiny_llm: Path, trap: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model that answers everything with `HOSTILE`, as a directory called hostile."""
    from minigpt4 import MiniGPT4

    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")
    make_it_say(
        model.blip2.language_model, model.tokenizer, [*(part.replace("TRAP", trap[0]) for part in HOSTILE), "###"]
    )
    directory = tmp_path_factory.mktemp("models") / "hostile"
    model.export(directory)
    return directory


@pytest.fixture(scope="session")
def talker(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers without an end, as a directory called talker."""
    from minigpt4 import MiniGPT4

    llm = talking_llm(tiny_llm, tmp_path_factory.mktemp("talking"))
    model = MiniGPT4.assemble(tiny_vision, llm, template="pocket", dtype="float32", device="cpu")
    directory = tmp_path_factory.mktemp("models") / "talker"
    model.export(directory)
    return directory


@pytest.fixture(scope="package")
def page_url(hostile_model: Path, talker: Path) -> Iterator[str]:
    """The address of a page about the pocket model, with stage 1, the hostile model and the talker beside it."""
    beside = [part for model in ("pocket-stage1", hostile_model, talker) for part in ("--beside", model)]
    with served("web", "pocket", "--port", 0, *beside) as url:
        yield url


@pytest.fixture(scope="module")  # it keeps a core half busy for as long as it is open
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The camera is Chromium's own, which shows a test picture.
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=[*PLAIN, *camera])


@pytest.fixture
def visit(browser: Browser, page_url: str) -> Iterator[Callable[..., Tab]]:
    """Opens the page as another visitor; whatever goes wrong in the browser fails the test."""
    contexts, faults = [], []

    def open_page(width: int = 1280, height: int = 900, **more: Any) -> Tab:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(60_000)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.goto(page_url)
        tab.wait_for_selector("#composer textarea")
        tab.wait_for_selector("#sketch [aria-label='Brush Size']", state="attached")  # from here on it takes clicks
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="session")
def varied(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    """Random weights: every picture and every question gets another answer, of another length."""
    from minigpt4 import MiniGPT4

    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def endless(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> MiniGPT4:
    """Answers "Yes" and then falls silent without an end, up to the token limit, which may be far away."""
    from minigpt4 import MiniGPT4

    llm = endless_llm(tiny_llm, tmp_path_factory.mktemp("endless"))
    return MiniGPT4.assemble(tiny_vision, llm, template="pocket", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), (i * 30, 100, 200 - i * 20)) for i in range(8)]
