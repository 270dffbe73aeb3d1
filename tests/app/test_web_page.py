"""The page in real headless Chromium: what people do on it, and what must not happen to them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest

from minigpt4.app.page import render
from minigpt4.app.page.session import Turn

pytest.importorskip("playwright.sync_api")
from on_the_page import ask, done, expect, greedy, photo, show

#: Keeps every text that the answer has had: the page is told of each change, however busy the machine is.
_WATCH = """() => {
    window.seen = new Set();
    const look = () => document.querySelectorAll("#chat .bot").forEach(answer => seen.add(answer.innerText));
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""


def _on_its_way(tab: Any, whole: str) -> list[str]:
    """What the last answer has shown before it was whole."""
    return [text for text in tab.evaluate("[...seen]") if text and text != whole]


def test_upload_ask_read_ask_again_and_keep(visit: Callable[..., Any]) -> None:
    tab = visit(permissions=["clipboard-read", "clipboard-write"])
    greedy(tab)
    show(tab, "photo.png", photo())
    ask(tab, "Describe this image in detail.")
    expect(tab.locator("#chat .bot")).to_have_count(1)
    first = done(tab)
    assert re.search(r"blue ball.*yellow lamp.*white drum.*white cup", first, re.S)
    assert tab.locator("#chat .user img").first.evaluate("i => i.decode().then(() => i.naturalWidth)") == 224
    ask(tab, "How many objects are there?")
    expect(tab.locator("#chat .bot")).to_have_count(2)
    assert "four" in done(tab).lower()
    tab.get_by_label("Copy message").last.click()
    copied = "navigator.clipboard.readText()"
    tab.wait_for_function(f"async () => (await {copied}).includes('four')")
    assert tab.evaluate(copied) == tab.locator("#chat [data-testid=bot]").last.inner_text().strip()

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
    tab.fill("#composer textarea", "And then?")  # what is being typed stays
    tab.locator("#chat [aria-label=Retry]").click()
    expect(tab.locator("#chat .bot")).not_to_contain_text("stopped")
    story = done(tab)
    expect(tab.locator("#composer textarea")).to_have_value("And then?")
    assert len(story) > len(stopped) - 12
    tab.locator("#chat [aria-label=Edit]").last.click()
    tab.locator("#chat textarea").fill("How many objects are there?")
    tab.locator("#chat [aria-label=Submit]").click()
    expect(tab.locator("#chat .bot")).to_contain_text(re.compile("four", re.I))
    assert tab.locator("#chat .bot").count() == 1
    assert "story" not in tab.locator("#chat").inner_text()


def test_hostile_html_in_an_answer_does_nothing(visit: Callable[..., Any], trap: tuple[str, list[str]]) -> None:
    tab = visit()
    tab.locator("#model").get_by_label("hostile").check()
    greedy(tab)
    show(tab, "photo.png", photo())
    ask(tab, "Hello <b onclick=alert(1)>you</b>")
    expect(tab.frame_locator("#site iframe").locator("h1")).to_have_text("Mine")
    done(tab)
    tab.wait_for_timeout(500)
    assert tab.title() == "MiniGPT-4"
    assert trap[1] == [], "nothing is fetched from the address that the answer names"
    assert "default-src 'none'" in (tab.locator("#site iframe").get_attribute("srcdoc") or "")
    assert tab.locator("#chat .bot img, #chat script, #chat .bot h1, #chat b[onclick]").count() == 0
    assert tab.locator("#chat a").count() == 0, "no address in it is a link"
    assert "onerror" in tab.locator("#chat .bot").inner_text(), "it is shown as text"
    inside = next(frame for frame in tab.frames if frame != tab.main_frame)
    assert inside.evaluate("1 + 1") == 2  # devtools may; the page's own scripts may not:
    assert "hacked" not in inside.evaluate("document.title")
    assert inside.evaluate("origin") == "null", "of no origin, so it can read nothing of the page"


#: All that a page may try to fetch by itself, and what its visitor may click on.
REACHING = """<html><head><link rel="stylesheet" href="http://TRAP/css"><link rel="prefetch" href="http://TRAP/prefetch">
<style>@import "http://TRAP/import"; body { background: url(http://TRAP/background) }
@font-face { font-family: f; src: url(http://TRAP/font) } h1 { font-family: f }</style>
<script src="http://TRAP/script"></script></head><body><h1>Mine</h1><img src="http://TRAP/img">
<object data="http://TRAP/object"></object><iframe src="http://TRAP/frame"></iframe><video src="http://TRAP/video"></video>
<a href="http://TRAP/link">A link</a><form action="http://TRAP/form"><button>Send</button></form></body></html>"""


def test_a_website_in_its_frame_fetches_nothing(visit: Callable[..., Any], trap: tuple[str, list[str]]) -> None:
    """Neither by the frame's own policy alone, nor in a shared file, whose visitor may click what there is."""
    tab, page = visit(), REACHING.replace("TRAP", trap[0])
    asked = trap[1]

    def opened(html: str) -> None:
        # From the same machine, as Chromium keeps pages from elsewhere from asking it; and of another origin.
        tab.goto(f"http://localhost:{trap[0].partition(':')[2]}/favicon.ico")
        tab.wait_for_timeout(200)
        asked.clear()
        tab.set_content(html)
        expect(tab.frame_locator("iframe").first.locator("h1")).to_have_text("Mine")
        tab.wait_for_timeout(500)

    opened(f'<iframe srcdoc="{escape(page)}"></iframe>')
    reached = {"/css", "/img", "/script", "/frame"}
    for _ in range(20):
        if not reached <= set(asked):
            tab.wait_for_timeout(1000)
    assert reached <= set(asked), "without the policy it does"
    opened(render.website(page, None))
    assert asked == []
    for name in ("A link", "Send"):
        opened(render.conversation_page([Turn("A page?", [], page)], "toy"))
        tab.frame_locator("iframe").get_by_text(name).click()
        tab.wait_for_timeout(500)
        assert asked == [], name
    asked.clear()


@pytest.mark.parametrize(
    ("name", "data"),
    [("cut.png", photo()[:2000]), ("page.png", b"<html><script>alert(1)</script></html>")],
)
def test_a_broken_picture_is_told_and_the_page_lives(visit: Callable[..., Any], name: str, data: bytes) -> None:
    """At once, and not when it is asked about: what is no image is not kept."""
    tab = visit()
    greedy(tab)
    tab.fill("#composer textarea", "How many objects are there?")
    tab.set_input_files("#composer input[type=file]", {"name": name, "mimeType": "image/png", "buffer": data})
    told = tab.locator(".toast-body")
    expect(told).to_contain_text(name)
    assert "/" not in told.inner_text().partition(name)[0], "where the server keeps it is nobody's business"
    assert tab.locator("#composer .thumbnail-image").count() == 0
    assert tab.locator("#composer textarea").input_value() == "How many objects are there?"
    tab.get_by_role("button", name="What is wrong?").click()
    expect(tab.locator("#chat .bot")).to_contain_text(re.compile("penguin.*guitar.*no fingers", re.S))


def test_two_visitors_ask_at_once_and_answers_come_in_pieces(visit: Callable[..., Any]) -> None:
    """That they are answered together, and not in turn, `test_together.py` shows without a browser's delays."""
    ann, ben = visit(), visit()
    for tab in (ann, ben):
        tab.locator("#model").get_by_label("talker").check()
        greedy(tab, Temperature=0, Longest_answer=250)
        tab.evaluate(_WATCH)
    for tab in (ann, ben):
        show(tab, "photo.png", photo())
    ask(ann, "Tell me a story.")
    ask(ben, "Tell me a story.")
    for tab in (ann, ben):
        expect(tab.locator("#chat .bot")).to_have_count(1)
        told = done(tab)
        assert len(told.split()) > 200
        assert any(told.startswith(text) for text in _on_its_way(tab, told)), "it comes in pieces"


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
    done(ann)
    ask(ann, "How many objects are there?")
    expect(ann.locator("#chat .bot").last).to_contain_text(re.compile("four", re.I))
    assert "camera" not in ann.locator("#chat").inner_text()
    assert "lamp" not in ben.locator("#chat").inner_text()
    done(ben)
    ben.reload()
    expect(ben.locator("#chat .bot")).to_contain_text("camera")  # from this browser's own storage
    assert "lamp" not in ben.locator("#chat").inner_text()


def test_on_a_phone_by_touch_and_by_keys(visit: Callable[..., Any]) -> None:
    phone = visit(360, 740, has_touch=True, color_scheme="light")
    fits = "document.documentElement.scrollWidth <= innerWidth"
    assert phone.evaluate(fits)
    assert phone.locator("#composer").bounding_box()["y"] < 740, "the question is on the first screen"
    phone.locator("#to-tools a").tap()
    expect(phone.get_by_role("tab", name="Draw")).to_be_in_viewport()
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
    greedy(tab, Temperature=0, Longest_answer=1000)
    tab.get_by_role("button", name="What is funny?").click()
    expect(tab.locator("#chat .bot")).to_contain_text("penguin")
    done(tab)
    tab.get_by_role("button", name="Ask all models").click()
    expect(tab.locator("#duel textarea")).to_have_value("Why is this funny?")
    answers = tab.locator("#columns .block.model-answer")
    expect(tab.locator("#duel .stop-button")).to_be_visible()
    expect(answers.nth(0)).to_contain_text("penguin")
    expect(answers.nth(1)).to_contain_text("penguin")
    expect(answers.nth(2).locator("iframe")).to_be_visible()
    assert tab.title() == "MiniGPT-4"
    assert answers.nth(2).locator("img").count() == 0, "what the hostile model said is text"
    expect(tab.locator("#duel .stop-button")).to_be_visible()  # the talker's answer is long
    tab.locator("#duel .stop-button").click()
    expect(tab.locator("#duel-limits p")).to_contain_text("1 of 8 images")
    broken = {"name": "a.png", "mimeType": "image/png", "buffer": b"none"}
    tab.set_input_files("#duel input[type=file]", broken)
    expect(tab.locator("#duel-limits p")).to_contain_text("a.png")  # refused where it was chosen
    tab.get_by_role("tab", name="Chat", exact=True).click()
    tab.locator("#composer textarea").press_sequentially("How many objects are there?", delay=20)  # as a person types
    tab.get_by_role("button", name="Ask all models").click()
    expect(tab.locator("#duel textarea")).to_have_value("How many objects are there?")  # what is typed goes first
    expect(answers.nth(0)).not_to_contain_text("penguin on")
    expect(tab.locator("#duel .stop-button")).to_be_visible()  # this one can be stopped too


def test_the_first_paint_comes_within_two_seconds(visit: Callable[..., Any]) -> None:
    """It says what the page is, and waits for no script. The best of some, as other work slows each down."""
    paints, tab = [], visit()
    while len(paints) < 10 and min(paints, default=2000) >= 2000:
        page = tab.context.new_page()
        page.goto(tab.url, wait_until="commit")
        first = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
        paints.append(page.wait_for_function(first, timeout=60_000).json_value())
        page.close()
    assert min(paints) < 2000, paints
