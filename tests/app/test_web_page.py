"""The page in real headless Chromium: what people do on it, and what must not happen to them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt4.pocket import world
from minigpt4.pocket.draw import draw

sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=60_000)


def photo(seed: int = 12_400_001, kind: str = "scene") -> bytes:
    buffer = io.BytesIO()
    draw(world.sample(seed, kind), 224).save(buffer, "PNG")
    return buffer.getvalue()


def show(tab: Any, name: str, data: bytes, where: str = "#composer") -> None:
    tab.set_input_files(f"{where} input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})
    tab.wait_for_selector(f"{where} .thumbnail-image", state="attached")


def ask(tab: Any, question: str) -> None:
    tab.fill("#composer textarea", question)
    tab.press("#composer textarea", "Enter")


def done(tab: Any) -> str:
    """Waits for the end of the answer; the text of the last one."""
    expect(tab.locator("#composer .stop-button")).to_have_count(0)
    return tab.locator("#chat .bot").last.inner_text()


def greedy(tab: Any) -> None:
    tab.get_by_role("tab", name="Settings").click()
    tab.get_by_label("number input for Temperature").fill("0")
    tab.get_by_label("number input for Temperature").press("Enter")


def test_upload_ask_read_ask_again_and_keep(visit: Callable[..., Any]) -> None:
    tab = visit()
    greedy(tab)
    show(tab, "photo.png", photo())
    ask(tab, "Describe this image in detail.")
    seen = set()
    answer = tab.locator("#chat .bot")
    expect(answer).to_have_count(1)
    while tab.locator("#composer .stop-button").count():
        seen.add(answer.inner_text())
    first = done(tab)
    assert re.search(r"blue ball.*yellow lamp.*white drum.*white cup", first, re.S)
    assert len(seen) > 2, "the answer comes in pieces"
    assert tab.locator("#chat .user img").first.evaluate("i => i.decode().then(() => i.naturalWidth)") == 224
    ask(tab, "How many objects are there?")
    expect(answer).to_have_count(2)
    assert "four" in done(tab).lower()
    expect(tab.get_by_label("Copy message").last).to_be_visible()

    tab.get_by_role("tab", name="Looked at").click()
    expect(tab.locator("#words label").first).to_be_visible()
    tab.locator("#words label", has_text="four").click()
    expect(tab.locator("#heat img")).to_have_count(1)
    assert "“four" in (tab.locator("#heat img").get_attribute("alt") or "")
    tab.locator("#query input").fill("3")
    tab.locator("#query input").press("Enter")
    expect(tab.locator("#heat")).to_contain_text("query token 3")

    tab.get_by_role("tab", name="Keep").click()
    kept = {}
    for button in ("Markdown", "JSON", "HTML to share"):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=button).click()
        kept[button] = Path(download.value.path()).read_text(encoding="utf-8")
    messages = json.loads(kept["JSON"])["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["images"][0].startswith("data:image/")
    assert "**You:** How many objects are there?" in kept["Markdown"]
    assert "How many objects are there?" in kept["HTML to share"]


def test_stop_regenerate_and_edit(visit: Callable[..., Any]) -> None:
    tab = visit()
    greedy(tab)
    show(tab, "photo.png", photo())
    ask(tab, "Tell me a story about this picture.")
    expect(tab.locator("#chat .bot")).to_contain_text(re.compile(r"\w+ \w+"))
    tab.keyboard.press("Escape")
    stopped = done(tab)
    if "stopped" in stopped:  # a quick machine may have finished before
        assert len(stopped.split()) < 80
    tab.locator("#chat [aria-label=Retry]").click()
    expect(tab.locator("#chat .bot")).not_to_contain_text("stopped")
    story = done(tab)
    assert len(story) > len(stopped) - 12
    tab.locator("#chat [aria-label=Edit]").last.click()
    tab.locator("#chat textarea").fill("How many objects are there?")
    tab.locator("#chat [aria-label=Submit]").click()
    expect(tab.locator("#chat .bot")).to_contain_text(re.compile("four", re.I))
    assert tab.locator("#chat .bot").count() == 1
    assert "story" not in tab.locator("#chat").inner_text()


def test_a_draft_is_drawn_and_shown_as_a_website(visit: Callable[..., Any]) -> None:
    tab = visit()
    greedy(tab)
    tab.get_by_role("tab", name="Draw").click()
    tab.get_by_role("button", name="Make it a website").click()
    expect(tab.get_by_role("alert")).to_contain_text("The sheet is empty")
    expect(tab.locator("#sketch [aria-label='Brush Size']")).to_be_visible()  # the pen is in hand
    sheet = tab.locator("#sketch canvas").first.bounding_box()

    def line(*points: tuple[float, float]) -> None:
        for number, (x, y) in enumerate(points):
            tab.mouse.move(sheet["x"] + x * sheet["width"], sheet["y"] + y * sheet["height"], steps=5)
            if number == 0:
                tab.mouse.down()
        tab.mouse.up()

    line((0.3, 0.2), (0.6, 0.2), (0.3, 0.3), (0.6, 0.3))  # a Z for a title
    line((0.2, 0.45), (0.7, 0.45), (0.7, 0.65), (0.2, 0.65), (0.2, 0.45))  # a box with a cross: a picture
    line((0.2, 0.45), (0.7, 0.65))
    line((0.2, 0.65), (0.7, 0.45))
    tab.get_by_role("button", name="Make it a website").click()
    frame = tab.locator("#site iframe")
    expect(frame).to_be_visible()
    assert frame.get_attribute("sandbox") == ""
    expect(tab.frame_locator("#site iframe").locator("h1")).not_to_be_empty()
    assert tab.locator("#site img").evaluate("i => i.decode().then(() => i.naturalWidth)") > 100
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download the page").click()
    assert "<h1>" in Path(download.value.path()).read_text()


def test_hostile_html_in_an_answer_does_nothing(visit: Callable[..., Any], trap: tuple[str, list[str]]) -> None:
    tab = visit()
    tab.locator("#model").get_by_label("hostile").check()
    greedy(tab)
    ask(tab, "Hello <b onclick=alert(1)>you</b>")
    expect(tab.frame_locator("#site iframe").locator("h1")).to_have_text("Mine")
    done(tab)
    tab.wait_for_timeout(500)
    assert tab.title() == "MiniGPT-4"
    assert trap[1] == [], "nothing is fetched from the address that the answer names"
    assert "default-src 'none'" in (tab.locator("#site iframe").get_attribute("srcdoc") or "")
    assert tab.locator("#chat .bot img, #chat script, #chat .bot h1, #chat b[onclick]").count() == 0
    assert "onerror" in tab.locator("#chat .bot").inner_text(), "it is shown as text"
    inside = next(frame for frame in tab.frames if frame != tab.main_frame)
    assert inside.evaluate("1 + 1") == 2  # devtools may; the page's own scripts may not:
    assert "hacked" not in inside.evaluate("document.title")
    assert inside.evaluate("origin") == "null", "of no origin, so it can read nothing of the page"


@pytest.mark.parametrize(
    ("name", "data"),
    [("cut.png", photo()[:2000]), ("page.png", b"<html><script>alert(1)</script></html>")],
)
def test_a_broken_picture_is_told_and_the_page_lives(visit: Callable[..., Any], name: str, data: bytes) -> None:
    tab = visit()
    greedy(tab)
    show(tab, name, data)
    ask(tab, "How many objects are there?")
    told = tab.get_by_role("alert")
    expect(told).to_contain_text(name)
    assert "/" not in told.inner_text().partition(":")[0], "where the server keeps it is nobody's business"
    assert tab.locator("#composer textarea").input_value() == "How many objects are there?"
    tab.get_by_role("button", name="New chat").click()
    tab.get_by_role("button", name="Describe it").click()
    expect(tab.locator("#chat .bot")).to_contain_text("lamp")


def test_two_visitors_do_not_see_each_other(visit: Callable[..., Any]) -> None:
    ann, ben = visit(), visit()
    for tab in (ann, ben):
        greedy(tab)
    show(ann, "ann.png", photo())
    show(ben, "ben.png", photo(12_400_402, "product"))
    ask(ann, "Describe this image in detail.")
    ask(ben, "Write an advertisement for this product.")
    expect(ann.locator("#chat .bot")).to_contain_text("lamp")
    expect(ben.locator("#chat .bot")).to_contain_text("camera")
    ask(ann, "How many objects are there?")
    expect(ann.locator("#chat .bot").last).to_contain_text(re.compile("four", re.I))
    assert "camera" not in ann.locator("#chat").inner_text()
    assert "lamp" not in ben.locator("#chat").inner_text()
    ben.reload()
    ben.wait_for_selector("#composer textarea")
    assert ben.locator("#chat .bot").count() == 0


def test_on_a_phone_by_touch_and_by_keys(visit: Callable[..., Any]) -> None:
    phone = visit(360, 740, has_touch=True, color_scheme="light")
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert phone.evaluate(fits)
    assert phone.locator("#composer").bounding_box()["y"] < 740, "the question is on the first screen"
    phone.get_by_role("button", name="Draft to website").tap()
    expect(phone.locator("#site iframe")).to_be_visible()
    done(phone)
    assert phone.evaluate(fits)
    unnamed = phone.evaluate(
        """() => [...document.querySelectorAll("button, input:not([type=file]):not([type=hidden]), textarea")]
        .filter(e => e.checkVisibility() && !e.textContent.trim() && !e.labels?.length
          && !e.ariaLabel && !e.title && !e.placeholder && !e.querySelector("img[alt]")).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    phone.locator("#theme").tap()
    assert phone.evaluate("document.body.classList.contains('dark')")
    phone.reload()
    expect(phone.locator("body")).to_have_class(re.compile("dark"))
    phone.wait_for_selector("#composer textarea")
    phone.locator("body").click(position={"x": 5, "y": 5})
    phone.keyboard.press("/")
    expect(phone.locator("#composer textarea")).to_be_focused()


def test_the_same_question_for_all_models(visit: Callable[..., Any]) -> None:
    tab = visit()
    greedy(tab)
    tab.get_by_role("button", name="What is funny?").click()
    expect(tab.locator("#chat .bot")).to_contain_text("penguin")
    done(tab)
    tab.get_by_role("button", name="Ask all models").click()
    expect(tab.locator("#duel textarea")).to_have_value("Why is this funny?")
    tab.press("#duel textarea", "Enter")
    answers = tab.locator("#columns .block.model-answer")
    expect(answers.nth(0)).to_contain_text("penguin")
    expect(answers.nth(1)).to_contain_text("penguin")
    expect(answers.nth(2).locator("iframe")).to_be_visible()
    assert tab.title() == "MiniGPT-4"
    assert answers.nth(2).locator("img").count() == 0, "what the hostile model said is text"
