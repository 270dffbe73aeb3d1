"""Reviewing: who gets what, and the page itself in a real browser."""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from curating import TEXTS, assert_one_line, run
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.review import LEASE_SECONDS, ReviewDesk, differences
from minigpt4.errors import UserError
from minigpt4.labelling import TakenError, labelling_app
from pages import CHROMIUM, PLAIN, ask, assert_guarded, routes_of, served


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def decide(desk: ReviewDesk, reviewer: str, index: int | None, verdict: str, text: str | None = None) -> None:
    assert index is not None
    desk.decide(reviewer, index, desk.items[index].source.seq, verdict, text)


def test_nobody_gets_what_another_has(project: Path) -> None:
    clock = Clock()
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=0, clock=clock)
        assert (desk.next("Ann"), desk.next("Ben"), desk.next("Ann")) == (0, 1, 0)
        with pytest.raises(TakenError, match="Ann has"):
            decide(desk, "Ben", 0, "accept")
        clock.now += LEASE_SECONDS + 1
        assert desk.next("Cid") == 0  # Ann went away
        decide(desk, "Cid", 0, "accept")
        with pytest.raises(TakenError, match="Cid has"):
            decide(desk, "Ann", 0, "reject")
        seen = []
        while (index := desk.next("Ben")) is not None:
            seen.append(index)
            decide(desk, "Ben", index, "accept")
        assert seen == list(range(1, 12))
        assert desk.next("Ann") is None
    with Ledger(project) as ledger:  # after a restart
        assert ReviewDesk(ledger, shared=0).next("Ann") is None
        assert len(ledger.events("review")) == 12


def test_a_text_that_is_passed_over_waits_for_others_and_comes_again(project: Path) -> None:
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=0)
        assert desk.next("Ann") == 0
        assert desk.next("Ann", after=0) == 1
        assert desk.next("Ben") == 0
        assert desk.next("Ann", after=11) == 1


def test_everyone_decides_on_the_shared_sample_and_agreement_is_told(project: Path) -> None:
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=0.5)
        shared = [i for i, item in enumerate(desk.items) if desk.is_shared(item)]
        assert 2 < len(shared) < 10
        for reviewer, rejects in (("Ann", shared[:2]), ("Ben", shared[:1])):
            while (index := desk.next(reviewer)) is not None:
                decide(desk, reviewer, index, "reject" if index in rejects else "accept")
        [told] = desk.agreement()
        n = len(shared)
        chance = (2 / n) * (1 / n) + (1 - 2 / n) * (1 - 1 / n)
        assert told["judges"] == ["Ann", "Ben"]
        assert told["cases"] == n
        assert told["kappa"] == pytest.approx((1 - 1 / n - chance) / (1 - chance))
        assert desk.progress("Ann")["done"] == 12


def test_undo_edit_and_what_is_no_decision(project: Path) -> None:
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=0)
        assert desk.back("Ann") is None
        decide(desk, "Ann", 0, "edit", "  A better text. ")
        decide(desk, "Ann", 1, "edit", TEXTS[1])  # unchanged is accepted
        assert [item.final for item in ledger.items()[:2]] == ["A better text.", TEXTS[1]]
        assert ledger.items()[1].reviews["Ann"].data["verdict"] == "accept"
        assert desk.look("Ann", 0)["text"] == "A better text."
        assert (desk.back("Ann"), desk.back("Ann"), desk.back("Ann")) == (1, 0, None)
        assert ledger.items()[0].final == TEXTS[0]
        assert len(ledger.events("review")) == 4  # undone decisions stay in the history
        with pytest.raises(ValueError, match="empty"):
            decide(desk, "Ann", 0, "edit", "  ")
        with pytest.raises(ValueError, match="verdict"):
            decide(desk, "Ann", 0, "burn")
        with pytest.raises(ValueError, match="not the text"):
            desk.decide("Ann", 0, 999, "accept")


def test_differences_spell_both_texts() -> None:
    before, after = "A red ball ball is on on the left .", "A red ball is on the left."
    found = differences(before, after)
    assert "".join(text for kind, text in found if kind != "new") == before
    assert "".join(text for kind, text in found if kind != "gone") == after
    assert {kind for kind, _ in found} == {"same", "gone", "new"}


def page(project: Path, *more: object) -> AbstractContextManager[str]:
    """The address of a page that runs in a process of its own."""
    return served("curate", "review", project, "--port", 0, *more)


def status(url: str, **headers: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_answers_its_own_visitors_only(project: Path) -> None:
    with page(project) as url:
        assert status(url) == 200
        assert status(url, Host="evil.example") == 400
        assert status(f"{url}api/next?reviewer=A", **{"Sec-Fetch-Site": "cross-site"}) == 403
        assert status(f"{url}api/next?reviewer=") == 400
        assert status(f"{url}api/next?reviewer=A&after=99") == 200
        assert status(f"{url}api/items/999?reviewer=A") == 404
        assert status(f"{url}pictures/0") == 200
        assert_one_line(run("review", project, "--port", 0), "is at work on review")
    assert_one_line(run("review", project.parent / "none"), "describe or import")


def test_every_request_is_answered_to_our_own_page_alone(project: Path) -> None:
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=0)
        source = desk.items[0].source.seq
        assert routes_of(labelling_app(desk, "127.0.0.1")) == {
            ("GET", "/"), ("GET", "/api/next"), ("GET", "/api/items/{index}"), ("GET", "/pictures/{index}"),
            ("POST", "/api/items/{index}"), ("POST", "/api/back"),
        }  # fmt: skip
    accept = json.dumps({"reviewer": "Ann", "source": source, "verdict": "accept"}).encode()
    with page(project, "--shared", 0) as url:
        assert_guarded(url, {
            "/": None, "/api/next?reviewer=Ann": None, "/api/items/0?reviewer=Ann": None, "/pictures/0": None,
            "/api/items/0": accept, "/api/back": b'{"reviewer": "Ann"}',
        })  # fmt: skip
        longest = json.dumps({**json.loads(accept), "verdict": "edit", "text": "\u65e5" * 20_000}, ensure_ascii=False)
        assert ask(url, "/api/items/0", longest.encode()) == 200
        for odd in ({"reviewer": None}, {"source": "x"}, {"verdict": 1}, {"text": [1]}, {"self": 1}, {"index": 1}):
            assert ask(url, "/api/items/0", json.dumps({**json.loads(accept), **odd}).encode()) == 400, odd
        assert ask(url, "/api/next?reviewer=a%00b") == ask(url, "/api/next?reviewer=%1b[31m") == 400
    with Ledger(project) as ledger:
        assert {name for item in ledger.items() for name in item.reviews} == {"Ann"}


def test_another_sites_page_decides_nothing_on_a_page_for_the_network(project: Path) -> None:
    """Browsers send no Sec-Fetch-Site to plain http names; Origin tells them apart."""
    with page(project, "--host", "0.0.0.0", "--shared", 0) as url:
        port = url.rstrip("/").rpartition(":")[2]
        url = f"http://127.0.0.1:{port}/"
        undo = b'{"reviewer": "Ann"}'
        assert ask(url, "/api/back", undo, Host=f"lan.example:{port}", Origin="http://evil.example") == 403
        assert ask(url, "/api/back", undo, Host=f"lan.example:{port}", Origin=f"http://lan.example:{port}") == 404


def test_nothing_to_review(tmp_path: Path) -> None:
    with Ledger(tmp_path / "p", create=True) as ledger, pytest.raises(UserError, match="it holds no text yet"):
        ReviewDesk(ledger)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_two_people_review_in_a_browser(project: Path, tmp_path: Path) -> None:
    """By keys and on a phone: accept, edit, reject, undo, jump; sentences coloured, changes marked, nothing run."""
    from playwright.sync_api import expect, sync_playwright

    evil = "The picture shows a <img src=x onerror=document.title='hacked'> red ball. It is on the left."
    with Ledger(project) as ledger:
        items = ledger.items()
        settings = ledger.settings("refine", {})
        mended = {"text": evil, "accepted": True, "reason": None, "tokens": 9}
        ledger.add("refine", settings, [(items[0].key, items[0].raw.seq, mended)])
        [first] = ledger.items(["0"])
        cut = evil.index(" It is")
        scores = {"sentences": [[0, cut, 0.9], [cut + 1, len(evil), 0.05]], "lowest": 0.05, "whole": 0.5, "fluency": -1}
        ledger.add("ground", settings, [(first.key, first.source.seq, scores)])
    shots = Path(os.environ.get("REVIEW_SCREENSHOTS", tmp_path))
    with page(project, "--shared", 0) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=PLAIN)
        desktop = browser.new_page(viewport={"width": 1200, "height": 800})
        faults: list[str] = []
        desktop.on("pageerror", lambda error: faults.append(str(error)))
        desktop.on("console", lambda message: message.type == "error" and faults.append(message.text))
        desktop.goto(url)
        desktop.keyboard.type("Ann")
        desktop.keyboard.press("Enter")
        expect(desktop.locator("#text")).to_have_text(evil)
        expect(desktop.locator("#text .weak")).to_have_text("It is on the left.")
        expect(desktop.locator("#changes .new").first).to_be_visible()
        expect(desktop.locator("#changes .gone").first).to_be_visible()
        assert desktop.locator("#picture").evaluate("i => i.decode().then(() => i.naturalWidth)") == 32
        assert "hacked" not in desktop.title()
        assert not faults
        desktop.screenshot(path=str(shots / "review-desktop.png"))
        desktop.keyboard.press("a")
        expect(desktop.locator("#count")).to_have_text("1 of 12 decided, 11 wait for you")
        expect(desktop.locator("#text")).to_have_text(TEXTS[1])

        phone = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True)
        phone.goto(url)
        phone.fill("#name", "Ben")
        phone.tap("text=Start")
        expect(phone.locator("#text")).to_have_text(TEXTS[2])  # Ann has the one before
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
        phone.screenshot(path=str(shots / "review-phone.png"))
        phone.tap("#reject")
        expect(phone.locator("#text")).to_have_text(TEXTS[3])

        desktop.keyboard.press("e")
        desktop.locator("#edit").fill("An edited text.")
        desktop.screenshot(path=str(shots / "review-edit.png"))
        desktop.keyboard.press("Control+Enter")
        expect(desktop.locator("#text")).to_have_text(TEXTS[4])
        desktop.keyboard.press("r")
        expect(desktop.locator("#text")).to_have_text(TEXTS[5])
        desktop.keyboard.press("u")
        expect(desktop.locator("#text")).to_have_text(TEXTS[4])
        desktop.keyboard.press("n")
        expect(desktop.locator("#text")).to_have_text(TEXTS[5])
        desktop.keyboard.press("j")
        expect(desktop.locator("#jumping")).to_contain_text("1 to 12")
        expect(desktop.locator("#decided button")).to_have_text([re.compile("^1 .*accept$"), re.compile("^2 .*edit$")])
        desktop.keyboard.type("3")
        desktop.keyboard.press("Enter")
        expect(desktop.locator("#text")).to_have_text(TEXTS[2])
        desktop.keyboard.press("a")
        expect(desktop.locator("#message")).to_have_text("Ben has this text")
        assert phone.locator("#left").text_content() is not None
        browser.close()
    with Ledger(project) as ledger:
        finals = [item.final for item in ledger.items()]
        assert finals[:5] == [evil, "An edited text.", None, TEXTS[3], TEXTS[4]]
        assert {name for item in ledger.items() for name in item.reviews} == {"Ann", "Ben"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_page_tells_agreement_and_the_time_that_is_left(project: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    with page(project, "--shared", 1) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=PLAIN)
        for name, keys in (("Ann", "aar"), ("Ben", "arr")):  # on the same three texts
            visitor = browser.new_page()
            visitor.goto(url)
            visitor.keyboard.type(name)
            visitor.keyboard.press("Enter")
            for number, key in enumerate(keys):
                expect(visitor.locator("#text")).to_have_text(TEXTS[number])
                visitor.keyboard.press(key)
            expect(visitor.locator("#text")).to_have_text(TEXTS[3])
            expect(visitor.locator("#left")).to_have_text(re.compile(r"^about \d+ s left$"))
        # Two agree on 2 of 3 texts, where chance alone agrees on 4 of 9.
        expect(visitor.locator("#agreement")).to_have_text("Ann and Ben: κ 0.40 on 3")
        for text in TEXTS[3:]:
            expect(visitor.locator("#text")).to_have_text(text)
            visitor.keyboard.press("a")
        expect(visitor.locator("#empty")).to_contain_text("minigpt4 curate export")  # what comes next
        browser.close()
