"""Conversations in real headless Chromium: in view as they grow, kept in the browser, limits told where they apply."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from minigpt4.app.page.session import MAX_IMAGES, MAX_QUESTION

pytest.importorskip("playwright.sync_api")
from on_the_page import ask, done, expect, greedy, photo, show

#: How far the end of the chat lies below the place where the question hides it, and the page's scrolls that have room.
_VIEW = """() => {
    const [chat, dock] = ["#chat", "#dock"].map(name => document.querySelector(name).getBoundingClientRect());
    const scrolls = [...document.querySelectorAll("#rooms *")].filter(e => e.checkVisibility() && e.clientHeight > 60
        && e.scrollHeight > e.clientHeight + 20 && /auto|scroll/.test(getComputedStyle(e).overflowY));
    return {hidden: chat.bottom - dock.top, below: dock.bottom - innerHeight, scrolls: scrolls.map(e => e.className)};
}"""


def test_the_newest_answer_is_in_view_unless_its_reader_scrolled_up(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.locator("#model").get_by_label("talker").check()
    greedy(tab, Temperature=0, Longest_answer=160)
    show(tab, "photo.png", photo())
    for number, (width, height) in enumerate([(390, 844), (1280, 900), (1920, 1080)], start=1):
        tab.set_viewport_size({"width": width, "height": height})
        ask(tab, "Tell me a story.")
        expect(tab.locator("#chat .bot")).to_have_count(number)
        for _ in range(4):  # as it grows
            tab.wait_for_timeout(400)
            tab.wait_for_function(f"({_VIEW})().hidden < 30")
            view = tab.evaluate(_VIEW)
            assert view["below"] < 2, view
            assert view["scrolls"] == [], "the page has one scroll"
        done(tab)
        tab.wait_for_function(f"({_VIEW})().hidden < 30")
        expect(tab.locator("#chat [aria-label=Retry]")).to_be_in_viewport()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("scrollY") > 300, "there is more than fits"
    ask(tab, "And then?")
    expect(tab.locator("#chat .bot").nth(3)).to_contain_text(re.compile(r"(\w+\s+){5}"))
    tab.evaluate("scrollBy(0, -600)")
    tab.wait_for_timeout(100)
    place = tab.evaluate("scrollY")
    done(tab)
    assert abs(tab.evaluate("scrollY") - place) < 5, "who reads further up is left there"


def _chats(tab: Any) -> Any:
    tab.get_by_role("button", name="My chats").click()
    return tab.locator("#chats li")


def test_chats_come_back_and_are_named_listed_and_deleted(visit: Callable[..., Any]) -> None:
    tab = visit()
    greedy(tab)
    show(tab, "photo.png", photo())
    ask(tab, "Describe this image in detail.")
    first = done(tab)
    tab.reload()
    expect(tab.locator("#chat .bot")).to_have_text(first)
    greedy(tab)
    ask(tab, "How many objects are there?")
    expect(tab.locator("#chat .bot")).to_have_count(2)
    assert "four" in done(tab).lower(), "the model has the image and what was said before"
    tab.locator("#model").get_by_label("pocket-stage1").check()
    expect(tab.locator("#chat .bot")).to_have_count(0)
    tab.get_by_role("button", name="What is funny?").click()
    expect(tab.locator("#chat .bot")).to_contain_text("penguin")
    done(tab)
    rows = _chats(tab)
    expect(rows).to_have_count(2)
    expect(rows.nth(1)).to_contain_text("pocket · 2 questions")
    rows.nth(1).get_by_label("Name").fill("<b>Drums</b>")
    rows.nth(1).get_by_label("Name").press("Tab")
    rows.nth(1).get_by_role("button", name="Open").click()
    expect(tab.locator("#chat .bot")).to_have_count(2)
    expect(tab.locator("#chat .bot").first).to_have_text(first)
    expect(tab.locator("#model").get_by_label("pocket", exact=True)).to_be_checked()
    expect(tab.locator("#examples")).to_be_hidden()
    tab.get_by_role("button", name="New chat").click()
    expect(tab.locator("#chat .bot")).to_have_count(0)
    tab.reload()
    tab.wait_for_selector("#composer textarea")
    tab.wait_for_timeout(1500)
    assert tab.locator("#chat .bot").count() == 0, "a new chat was begun"
    rows = _chats(tab)
    expect(rows.nth(1).get_by_label("Name")).to_have_value("<b>Drums</b>")
    tab.on("dialog", lambda dialog: dialog.accept())
    rows.nth(1).get_by_role("button", name="Delete").click()
    expect(tab.locator("#chats li")).to_have_count(1)
    left = """async () => { const opened = indexedDB.open("minigpt4");
        await new Promise(then => opened.onsuccess = then);
        const all = name => new Promise(then => {
            const asked = opened.result.transaction(name).objectStore(name).getAll();
            asked.onsuccess = () => then(asked.result.length); });
        return [await all("chats"), await all("images")]; }"""
    assert tab.evaluate(left) == [1, 1], "its images are gone too"


def test_a_chat_that_goes_on_in_two_tabs_becomes_two(visit: Callable[..., Any]) -> None:
    tab = visit()
    show(tab, "photo.png", photo())
    ask(tab, "Describe this image in detail.")
    done(tab)
    other = tab.context.new_page()
    other.set_default_timeout(60_000)
    other.goto(tab.url)
    other.wait_for_selector("#sketch [aria-label='Brush Size']", state="attached")  # from here on it takes clicks
    _chats(other).first.get_by_role("button", name="Open").click()
    expect(other.locator("#chat .bot")).to_have_count(1)
    kept = """async wanted => {
        const asked = request => new Promise(then => { request.onsuccess = () => then(request.result); });
        const opened = await asked(indexedDB.open("minigpt4"));
        const chats = await asked(opened.transaction("chats").objectStore("chats").getAll());
        opened.close();
        return chats.filter(chat => chat.turns.length === 2 && chat.turns[1].ended).length === wanted; }"""
    for number, each, question in ((1, other, "How many objects are there?"), (2, tab, "What colour is the ball?")):
        ask(each, question)
        each.wait_for_function(kept, arg=number, timeout=60_000)
    rows = _chats(tab)
    expect(rows).to_have_count(2)
    for row, question in ((0, "What colour is the ball?"), (1, "How many objects are there?")):
        expect(rows.nth(row)).to_contain_text("2 questions")
        rows.nth(row).get_by_role("button", name="Open").click()
        expect(tab.locator("#chat .user").last).to_contain_text(question)
        expect(tab.locator("#chat .user img")).to_have_count(1)
        rows = _chats(tab)


def test_an_answer_that_is_cut_by_a_reload_says_so(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.locator("#model").get_by_label("talker").check()
    greedy(tab, Temperature=0, Longest_answer=1000)
    show(tab, "photo.png", photo())
    # A slow line: the page is closed before the browser has read the image that it is to keep.
    slow = re.compile(r"gradio_api/file=[0-9a-f]+\.png")
    held: list[Any] = []
    tab.route(slow, lambda route: held.append(route) if route.request.resource_type == "fetch" else route.continue_())
    ask(tab, "Tell me a story.")
    expect(tab.locator("#chat .bot")).to_contain_text(re.compile(r"(\w+\s+){20}"))
    for _ in range(20):
        if not held:
            tab.wait_for_timeout(500)
    assert held, "the image was asked for"
    tab.unroute(slow)
    tab.reload()
    expect(tab.locator("#chat .bot")).to_contain_text("cut off")
    assert len(tab.locator("#chat .bot").inner_text().split()) > 10
    expect(tab.locator("#model").get_by_label("talker")).to_be_checked()
    expect(tab.locator("#chat .user img")).to_have_count(1)
    tab.locator("#chat [aria-label=Retry]").click()
    expect(tab.locator("#chat .bot")).not_to_contain_text("cut off")


def test_a_chat_that_is_deleted_while_it_is_answered_stays_deleted(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.locator("#model").get_by_label("talker").check()
    greedy(tab, Temperature=0, Longest_answer=1000)
    show(tab, "photo.png", photo())
    ask(tab, "Tell me a story.")
    expect(tab.locator("#chat .bot")).to_contain_text(re.compile(r"(\w+\s+){20}"))
    rows = _chats(tab)
    tab.on("dialog", lambda dialog: dialog.accept())
    rows.first.get_by_role("button", name="Delete").click()
    expect(rows).to_have_count(0)
    expect(tab.locator("#chat .bot")).to_have_count(0)  # a new chat was begun, so the answer ends
    tab.wait_for_timeout(1000)
    tab.locator("#chats").get_by_role("button", name="Close").click()
    expect(_chats(tab)).to_have_count(0)


def test_limits_stand_where_they_apply_and_images_are_taken_out(visit: Callable[..., Any]) -> None:
    tab = visit()
    line = tab.locator("#limits p")
    expect(line).to_contain_text("20 MB")
    ask(tab, "How many objects are there?")
    expect(tab.locator("#status")).to_contain_text("Show an image first")
    expect(tab.locator("#composer textarea")).to_have_value("How many objects are there?")
    files = [{"name": f"{n}.png", "mimeType": "image/png", "buffer": photo(12_400_001 + n)} for n in range(9)]
    tab.set_input_files("#composer input[type=file]", files)
    expect(line).to_have_text(f"9 images; at most {MAX_IMAGES} can be sent")
    remove = tab.locator("#composer").get_by_label("Remove file")
    assert remove.first.evaluate("e => getComputedStyle(e).opacity") == "1", "seen without a mouse over it"
    remove.first.click()
    expect(line).to_contain_text(f"8 of {MAX_IMAGES} images")
    remove.first.click()
    held: list[Any] = []
    tab.route("**/gradio_api/upload*", lambda route: held.append(route))  # a network that is slow
    tab.set_input_files("#composer input[type=file]", files[8])
    expect(line).to_have_text("The image is being read \u2026")
    held[0].continue_()
    tab.unroute("**/gradio_api/upload*")
    expect(line).to_contain_text(f"8 of {MAX_IMAGES} images")
    tab.fill("#composer textarea", "x" * (MAX_QUESTION + 1))
    expect(line).to_contain_text(f"8,001 characters; at most {MAX_QUESTION:,} can be sent")
    tab.set_input_files("#composer input[type=file]", {"name": "a.png", "mimeType": "image/png", "buffer": b"none"})
    expect(line).to_contain_text("a.png")
    tab.get_by_role("button", name="New chat").click()
    expect(tab.locator("#composer textarea")).to_have_value("")
    expect(tab.locator("#composer .thumbnail-image")).to_have_count(0)


def test_a_system_prompt_is_told_to_the_model(visit: Callable[..., Any]) -> None:
    tab = visit()
    tab.get_by_role("tab", name="Settings").click()
    tab.locator("#system textarea").fill("Answer briefly.")
    tab.get_by_label("number input for Temperature").fill("0")
    tab.get_by_label("number input for Temperature").press("Enter")
    tab.get_by_role("button", name="Describe it").click()
    done(tab)
    tab.reload()
    expect(tab.locator("#chat .bot")).to_have_count(1)
    tab.get_by_role("tab", name="Settings").click()
    expect(tab.locator("#system textarea")).to_have_value("Answer briefly.")


def test_what_a_browser_kept_is_checked(visit: Callable[..., Any]) -> None:
    """Its owner can write there what they like: it is text, of their own images, or it is refused."""
    tab = visit()
    tab.get_by_role("button", name="Describe it").click()
    done(tab)
    change = """async ([key, value]) => { const opened = indexedDB.open("minigpt4");
        await new Promise(then => opened.onsuccess = then);
        const chats = opened.result.transaction("chats", "readwrite").objectStore("chats"), got = chats.getAll();
        await new Promise(then => got.onsuccess = then);
        const written = chats.put(Object.assign(got.result[0], {[key]: value}));
        await new Promise(then => written.onsuccess = then); }"""
    turn = {"question": "<img src=x onerror=alert(1)>", "answer": "<script>document.title=1</script>", "images": []}
    tab.evaluate(change, ["turns", [{**turn, "ended": True, "stopped": False}]])
    tab.reload()
    expect(tab.locator("#chat .bot")).to_contain_text("<script>")
    assert tab.title() == "MiniGPT-4"
    tab.evaluate(change, ["system", 5])
    tab.reload()
    expect(tab.locator("#status")).to_contain_text("could not be opened again")


#: Texts that are seen and have a contrast below 4.5 to what is behind them.
_WEAK = """() => {
    const rgb = text => { const m = text.match(/[\\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
    const light = colour => colour.map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const over = (below, [r, g, b, a]) => below.map((v, i) => v * (1 - a) + [r, g, b][i] * a);
    const behind = e => {
        const layers = [];
        for (; e && layers.at(-1)?.[3] !== 1; e = e.parentElement)
            layers.push(rgb(getComputedStyle(e).backgroundColor));
        return layers.reverse().reduce(over, [255, 255, 255]);
    };
    const hidden = "svg, [disabled], script, style, .sr-only, [aria-hidden=true]";
    const seen = e => e.checkVisibility({visibilityProperty: true, opacityProperty: true})
        && !e.closest(hidden) && e.getBoundingClientRect().width;
    return [...document.querySelectorAll("body *")].filter(seen).filter(e => {
        if (!e.placeholder && ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) return false;
        const back = behind(e), style = getComputedStyle(e, e.placeholder && !e.value ? "::placeholder" : null);
        const [dark, bright] = [back, over(back, rgb(style.color))].map(light).sort((a, b) => a - b);
        return (bright + .05) / (dark + .05) < 4.5;
    }).map(e => `${e.tagName} ${e.className} ${(e.textContent || e.placeholder).trim().slice(0, 40)}`);
}"""


@pytest.mark.parametrize("look", ["dark", "light"])
def test_all_text_can_be_read(visit: Callable[..., Any], look: str) -> None:
    tab = visit(color_scheme=look)
    tab.wait_for_selector("#sketch [aria-label='Brush Size']")
    weak = tab.evaluate(_WEAK)
    dimmed = tab.locator("#sketch canvas").first.evaluate("e => getComputedStyle(e).filter")
    assert dimmed == ("brightness(0.82)" if look == "dark" else "none"), "a white sheet would glare in the dark"
    tab.get_by_role("button", name="Draft to website").click()
    expect(tab.locator("#site iframe")).to_be_visible()
    done(tab)
    for name in ("Website", "Camera", "Looked at", "Settings", "Keep"):
        tab.get_by_role("tab", name=name).click()
        tab.wait_for_timeout(500)
        weak += tab.evaluate(_WEAK)
    tab.get_by_role("tab", name="Side by side").click()
    expect(tab.locator("#duel textarea")).to_be_visible()
    weak += tab.evaluate(_WEAK)
    tab.get_by_role("tab", name="Chat", exact=True).click()
    _chats(tab)
    assert weak + tab.evaluate(_WEAK) == []


def test_a_camera_that_is_not_there_is_told_where_it_is_asked_for(visit: Callable[..., Any]) -> None:
    tab = visit()
    none = "async () => { throw new DOMException('', 'NotFoundError'); }"
    tab.add_init_script(f"navigator.mediaDevices.getUserMedia = {none}")
    tab.reload()
    tab.get_by_role("tab", name="Camera").click()
    tab.locator("#camera").get_by_text(re.compile("webcam", re.I)).click()
    expect(tab.locator("#camera-note")).to_have_text("No camera was found.")
    tab.wait_for_timeout(300)  # in which an error that nothing handles would be told
