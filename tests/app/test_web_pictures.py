"""Pictures on their way to the page, in real headless Chromium: dropped, pasted, from the camera, drawn, several."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minigpt4.telling import UNFAMILIAR
from pocket.measure.webpage import check_page
from pocket.world import world

pytest.importorskip("playwright.sync_api")
from on_the_page import (
    ask,
    done,
    draw_on_sheet,
    expect,
    greedy,
    photo,
    show,
    strokes,
    the_example_becomes_its_website,
)  # fmt: skip

#: Of the seeds that are measured: nothing was chosen or tuned by it.
DRAFT = 13_900_004


def test_a_draft_is_drawn_and_read_and_shown_as_the_website_that_it_is(visit: Callable[..., Any]) -> None:
    tab, truth = visit(), world.sample(DRAFT, "draft")
    greedy(tab)
    tab.get_by_role("tab", name="Draw").click()
    tab.get_by_role("button", name="Make it a website").click()
    expect(tab.get_by_role("alert")).to_contain_text("The sheet is empty")
    draw_on_sheet(tab, strokes(DRAFT))
    tab.get_by_role("button", name="Make it a website").click()
    frame = tab.locator("#site iframe")
    expect(frame).to_be_visible()
    assert frame.get_attribute("sandbox") == ""
    page = tab.frame_locator("#site iframe")
    expect(page.locator("h1")).to_have_text(truth.setting)
    tags = {"navigation": "nav", "image": "img", "text": "p", "list": "ul", "input": "input", "button": "button"}
    drafted = [tags[item.kind] for item in truth.items]
    for tag in tags.values():
        assert page.locator(f"body {tag}").count() == drafted.count(tag), tag
    expect(page.locator("button")).to_be_in_viewport()  # the whole page is seen
    assert tab.locator("#site img").evaluate("i => i.decode().then(() => i.naturalWidth)") > 100
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download the page").click()
    html = Path(download.value.path()).read_text(encoding="utf-8")
    assert check_page(html, truth.setting, [item.kind for item in truth.items]) is None


def test_signs_are_placed_by_a_click_each_and_the_example_is_read(visit: Callable[..., Any]) -> None:
    """At the settings that the page starts with."""
    tab = visit()
    expect(tab.locator("#sketch [aria-label='Brush Size']")).to_be_visible()
    expect(tab.locator("#signs button svg")).to_have_count(6)  # what each looks like
    sheet = "() => document.querySelector('#sketch [aria-label=Undo]').disabled"
    tab.locator("#signs input").fill("Pizza")
    tab.locator("#signs input").press("Enter")  # writes the title
    tab.wait_for_function(f"!({sheet})()")
    for number in range(6):
        tab.get_by_role("button", name="Clear canvas").click()
        tab.wait_for_function(sheet)
        tab.locator("#signs [data-sign]").nth(number).click()
        tab.wait_for_function(f"!({sheet})()")
    the_example_becomes_its_website(tab)


def test_the_sheet_out_of_sight_draws_nothing(visit: Callable[..., Any]) -> None:
    """It would draw itself some 280 times, which takes a machine without a GPU seconds of all its cores."""
    tab = visit()
    tab.wait_for_selector("#sketch canvas", state="attached")
    tab.evaluate(
        """() => { window.drawn = 0;
        for (const kind of [WebGLRenderingContext, WebGL2RenderingContext]) {
            const draw = kind.prototype.drawElements;
            kind.prototype.drawElements = function (...given) { drawn += 1; return draw.apply(this, given); };
        } }"""
    )
    before, looks = -1, 0
    while looks < 2:  # until it has been drawn for the first time
        tab.wait_for_timeout(2000)
        looks = looks + 1 if (now := tab.evaluate("drawn")) == before else 0
        before = now
    for name in ("Settings", "Keep", "Side by side", "Chat"):
        tab.get_by_role("tab", name=name, exact=True).click()
        expect(tab.locator("#sketch canvas").first).to_be_hidden()
        tab.wait_for_timeout(400)
    assert tab.evaluate("drawn") == before
    tab.get_by_role("tab", name="Draw").click()
    expect(tab.locator("#sketch canvas").first).to_be_visible()
    box = tab.locator("#sketch canvas").first.bounding_box()
    tab.mouse.move(box["x"] + 200, box["y"] + 200)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 300, box["y"] + 300, steps=5)
    tab.mouse.up()
    tab.wait_for_function("before => drawn > before", arg=before)


def test_pictures_are_dropped_pasted_and_several_at_once(visit: Callable[..., Any]) -> None:
    tab = visit(permissions=["clipboard-read", "clipboard-write"])
    greedy(tab)
    thumbnails = tab.locator("#composer .thumbnail-image")
    files = [base64.b64encode(photo(*which)).decode() for which in ((12_400_001,), (12_400_402, "product"))]
    blob = "const blob = await (await fetch('data:image/png;base64,' + data)).blob();"
    drop = tab.evaluate_handle(
        """async all => { const held = new DataTransfer();
        for (const [number, data] of all.entries()) { BLOB
          held.items.add(new File([blob], `${number}.png`, {type: "image/png"})); }
        return held; }""".replace("BLOB", blob),
        files[:1],
    )
    for event in ("dragenter", "dragover", "drop"):
        tab.dispatch_event("#composer textarea", event, {"dataTransfer": drop})
    expect(thumbnails).to_have_count(1)
    tab.evaluate(
        "async data => { BLOB await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]); }".replace(
            "BLOB", blob
        ),
        files[1],
    )
    tab.focus("#composer textarea")
    tab.keyboard.press("Control+V")
    expect(thumbnails).to_have_count(2)
    ask(tab, "What is in the first image?")
    expect(tab.locator("#chat .user img")).to_have_count(2)
    done(tab)
    tab.set_input_files(
        "#composer input[type=file]",
        [{"name": f"{i}.png", "mimeType": "image/png", "buffer": base64.b64decode(f)} for i, f in enumerate(files)],
    )
    expect(thumbnails).to_have_count(2)
    ask(tab, "Describe these images.")
    expect(tab.locator("#chat .user img")).to_have_count(4)
    assert done(tab)
    tab.get_by_role("tab", name="Looked at").click()
    tab.locator("#words label").first.click()
    expect(tab.locator("#heat img")).to_have_count(2)  # those of the last question: the model read from there on


def test_an_image_unlike_those_that_the_model_knows_has_a_note(visit: Callable[..., Any]) -> None:
    from minigpt4.app.page.layout import ASSETS

    tab = visit()
    greedy(tab)
    show(tab, "cat.jpg", (ASSETS / "cat.jpg").read_bytes())
    ask(tab, "Describe this image in detail.")
    assert done(tab).startswith(f"{UNFAMILIAR}.")
    show(tab, "drawn.png", photo())
    ask(tab, "Describe this image in detail.")
    assert UNFAMILIAR not in done(tab)
    tab.reload()
    expect(tab.locator("#chat .bot")).to_have_count(2)
    expect(tab.locator("#chat .bot").first).to_contain_text(UNFAMILIAR)
    tab.set_input_files("#composer input[type=file]", ASSETS / "cat.jpg")
    tab.wait_for_selector("#composer .thumbnail-image", state="attached")
    tab.fill("#composer textarea", "What is it?")
    tab.get_by_role("button", name="Ask all models").click()
    expect(tab.locator("#columns .quiet", has_text=UNFAMILIAR)).to_have_count(2)  # the pocket models


def test_the_camera_gives_a_picture_to_ask_about(visit: Callable[..., Any]) -> None:
    tab = visit(permissions=["camera"])
    greedy(tab)
    tab.get_by_role("tab", name="Camera").click()
    tab.locator("#camera").get_by_text(re.compile("webcam", re.I)).click()
    tab.wait_for_function("document.querySelector('#camera video')?.videoWidth > 0")
    tab.locator("#camera [aria-label='capture photo']").click()
    expect(tab.locator("#composer .thumbnail-image")).to_have_count(1)
    ask(tab, "Describe this image in detail.")
    shown = tab.locator("#chat .user img")
    expect(shown).to_have_count(1)
    assert shown.evaluate("i => i.decode().then(() => i.naturalWidth)") > 300, "Chromium's own test picture"
    assert done(tab)
