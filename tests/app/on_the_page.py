"""What visitors do on the page in a browser, and what they draw on its sheet."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
from playwright.sync_api import TimeoutError, expect

from pocket.world import world
from pocket.world.brush import Point
from pocket.world.draw import draw
from pocket.world.handwriting import Pen

expect.set_options(timeout=60_000)
SHEET = 480  # pixels a side


def photo(seed: int = 12_400_001, kind: str = "scene") -> bytes:
    buffer = io.BytesIO()
    draw(world.sample(seed, kind), 224).save(buffer, "PNG")
    return buffer.getvalue()


def show(tab: Any, name: str, data: bytes, where: str = "#composer") -> None:
    tab.set_input_files(f"{where} input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})
    tab.wait_for_selector(f"{where} .thumbnail-image", state="attached")


def ask(tab: Any, question: str) -> None:
    """Types a question and sends it; returns when the page has taken it, or has said why not.

    Before that the answer of the last question is the newest, and no other is coming. While an answer comes the page
    takes no question, and Enter is pressed again, as people would.
    """
    tab.fill("#composer textarea", question)
    for patience in (10_000, 10_000, 60_000):
        expect(tab.locator("#composer .stop-button")).to_have_count(0)
        tab.press("#composer textarea", "Enter")
        with contextlib.nullcontext() if patience == 60_000 else contextlib.suppress(TimeoutError):
            taken = """() => !document.querySelector("#composer textarea").value
                || document.querySelector("#status")?.textContent.trim()"""
            tab.wait_for_function(taken, timeout=patience)
            break


#: Whether the browser has kept the end of the answer that the page was last told of.
_KEPT = """async () => {
    const news = JSON.parse(document.querySelector("#kept data")?.value || "{}"), opened = indexedDB.open("minigpt4");
    const asked = request => new Promise(then => { request.onsuccess = () => then(request.result); });
    const chats = (await asked(opened)).transaction("chats").objectStore("chats");
    const chat = news.turn?.ended && await asked(chats.get(news.id));
    opened.result.close();
    return !!(chat && chat.turns[news.at]?.ended);
}"""


def done(tab: Any) -> str:
    """Waits for the end of the answer, and until the browser has kept it; the text of the last one."""
    said = None
    while True:  # the button that stops it appears a moment after an answer is asked for again
        expect(tab.locator("#composer .stop-button")).to_have_count(0)
        tab.wait_for_function(_KEPT)
        now = tab.locator("#chat .bot").last.inner_text()
        if now and now == said:
            return now
        said = now
        tab.wait_for_timeout(300)


def greedy(tab: Any, **sliders: float) -> None:
    """Set temperature 0, or the settings that are given, by their labels."""
    tab.get_by_role("tab", name="Settings").click()
    wanted = {label.replace("_", " "): str(value) for label, value in (sliders or {"Temperature": 0}).items()}
    # An answer asked for before the page has taken them ignores them. What is typed in the moment in which Gradio
    # builds the tab is lost, sometimes after it was shown, so then it is typed again, as people would.
    looks = 0  # that found them as they are wanted, one after the other
    for _ in range(20):
        moved = {label: tab.get_by_label(f"range slider for {label}").input_value() for label in wanted}
        looks = looks + 1 if moved == wanted else 0
        if looks == 3:
            return
        for label, value in wanted.items() if not looks else ():
            number = tab.get_by_label(f"number input for {label}")
            number.fill(value)
            number.press("Enter")
        tab.wait_for_timeout(300)
    raise AssertionError(f"the settings are {moved}, not {wanted}")


def strokes(seed: int) -> list[list[Point]]:
    """The lines of the pen that drew the website draft of that seed, in fractions of the sheet."""
    found = []

    class Recording(Pen):
        def curve(self, points: Sequence[Point], weight: float = 1.0) -> None:
            found.append(list(points))
            super().curve(points, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pocket.world.draw.Pen", Recording)
        draw(world.sample(seed, "draft"), 64)
    return found


#: What the browser sends to the sheet as a hand draws a line there.
_DRAW = """(canvas, lines) => {
    const send = (kind, [clientX, clientY], buttons) => canvas.dispatchEvent(new PointerEvent(kind, {
        clientX, clientY, buttons, button: kind === "pointermove" ? -1 : 0, pointerType: "mouse", pointerId: 1,
        isPrimary: true, bubbles: true, cancelable: true, composed: true}));
    for (const line of lines) {
        send("pointermove", line[0], 0);
        send("pointerdown", line[0], 1);
        line.slice(1).forEach(point => send("pointermove", point, 1));
        send("pointerup", line.at(-1), 0);
    }
}"""


def draw_on_sheet(tab: Any, lines: Sequence[Sequence[Point]]) -> None:
    """Draw lines (in fractions of the sheet): the last with the mouse, the others by the same events.

    Without a GPU, Chromium draws the sheet anew for each movement of the mouse, which takes up to a second.
    """
    expect(tab.locator("#sketch [aria-label='Brush Size']")).to_be_visible()  # the pen is in hand
    canvas = tab.locator("#sketch canvas").first
    box = canvas.bounding_box()
    left, top = box["x"] + (box["width"] - SHEET) / 2, box["y"] + (box["height"] - SHEET) / 2
    *others, last = [[(left + x * SHEET, top + y * SHEET) for x, y in _corners(line, 1.5 / SHEET)] for line in lines]
    canvas.evaluate(_DRAW, others)
    tab.mouse.move(*last[0])
    tab.mouse.down()
    for point in last[1:]:
        tab.mouse.move(*point)
    tab.mouse.up()


def _corners(line: Sequence[Point], off: float) -> list[Point]:
    """The fewest points of a line from which it is nowhere further away than `off` (Douglas and Peucker's)."""
    (x0, y0), (x1, y1) = line[0], line[-1]
    length = math.hypot(x1 - x0, y1 - y0)
    away = [
        abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length if length else math.hypot(x - x0, y - y0)
        for x, y in line
    ]
    furthest = max(range(len(line)), key=away.__getitem__)
    if away[furthest] <= off:
        return [line[0], line[-1]]
    return [*_corners(line[: furthest + 1], off)[:-1], *_corners(line[furthest:], off)]


def the_example_becomes_its_website(tab: Any) -> None:
    """Draws the sheet's example, lets it be read, and compares the page with what was drawn."""
    tab.get_by_role("button", name="An example").click()
    expect(tab.locator("#signs p")).to_have_text("This is the example.")
    tab.get_by_role("button", name="Make it a website").click()
    page = tab.frame_locator("#site iframe")
    expect(page.locator("h1")).to_have_text("Pizza")
    done(tab)
    for tag, count in {"nav": 1, "img": 1, "p": 1, "ul": 0, "input": 1, "button": 1}.items():
        assert page.locator(f"body {tag}").count() == count, tag
