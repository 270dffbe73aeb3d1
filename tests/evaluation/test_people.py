"""People judge blindly: what the page tells, what becomes of judgements, and the page itself in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curating import assert_one_line
from endpoint import Server
from evaluating import figures, picture_folder, results, run, task, write_tasks
from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.abilities import Abilities
from minigpt4.evaluation.rating import RATINGS, PeopleJudge, RatingDesk, questions_to_rate
from minigpt4.evaluation.results import Journal
from minigpt4.evaluation.run import evaluate
from minigpt4.labelling import labelling_app
from pages import CHROMIUM, PLAIN, ask, assert_guarded, routes_of, served

PAGE = (
    "<html><body><h1>Shop</h1><p style='color:red'>Hi</p><script>parent.document.title='hacked'</script></body></html>"
)


@pytest.fixture
def answered(tmp_path: Path, serve: Callable[..., Server]) -> Callable[..., Path]:
    """Two models' answers to three questions, both the same to the last; call it for the table after judging."""
    picture_folder(tmp_path / "photos", 3)
    poem = task("photos/0.png", "photos/1.png", {"image": "photos/2.png", "prompt": "Write HTML."})
    data = write_tasks(tmp_path / "tasks.yaml", {"poem": poem})
    good, bad = (
        serve("say:A fine poem.", "say:A finer poem.", f"say:{PAGE}"),
        serve("say:Fish.", "say:Hm.", f"say:{PAGE}"),
    )
    models = [f"good=openai:{good.url}#secret-good", f"bad=openai:{bad.url}#secret-bad"]

    def measure(*more: str) -> Path:
        from minigpt4.evaluation.models import Answering

        directory = tmp_path / "out" / "abilities"
        suite = Abilities(data, judge=PeopleJudge(directory))
        evaluate(suite, [*models, *more], tmp_path / "out", settings=Answering(concurrency=1))
        return directory

    return measure


def judge(desk: RatingDesk, rater: str, say: Callable[[str], str], best: Callable[[list[str]], list[str]]) -> None:
    while (index := desk.next(rater)) is not None:
        shown = desk.look(rater, index)["answers"]
        texts = {row["key"]: row["text"] for row in shown}
        liked = best(list(texts.values()))
        desk.decide(rater, index, {k: say(t) for k, t in texts.items()}, [k for k, t in texts.items() if t in liked])


def test_the_majority_decides_a_split_is_undecided_and_agreement_is_told(answered: Callable[[], Path]) -> None:
    directory = answered()
    assert figures(directory, "good")["poem"] == (0, 3, 3), "nobody has judged yet"
    assert "minigpt4 eval rate" in (directory / "results.md").read_text()
    poems = lambda texts: [text for text in texts if "poem" in text]  # noqa: E731
    with Journal(directory / RATINGS) as journal:
        desk = RatingDesk(questions_to_rate(directory), journal, directory)
        judge(desk, "Ann", lambda text: "yes" if "poem" in text else "no", poems)
        judge(desk, "Ben", lambda text: "yes" if "fine " in text else "no", lambda texts: texts)
        assert desk.progress("Ann")["waiting"] == 0
        assert desk.progress("Cid")["waiting"] == 3
    answered()
    found = results(directory)
    assert found["judge"] == {"judge": "people", "raters": 2}
    # "A finer poem." divides them.
    assert figures(directory, "good")["poem"] == (1, 3, 1)
    assert figures(directory, "bad")["poem"] == (0, 3, 0)
    [pair] = found["agreement"]
    assert (pair["judges"], pair["cases"], pair["agreed"]) == (["Ann", "Ben"], 5, 0.8)
    assert pair["kappa"] == pytest.approx((0.8 - (2 * 1 + 3 * 4) / 25) / (1 - (2 * 1 + 3 * 4) / 25))
    # Ann prefers the good model twice; Ben calls all three ties, and the same answer is nobody's win.
    [between] = found["preferences"]
    assert (between["wins"], between["ties"], between["losses"]) == (2, 3, 0)
    with Journal(directory / RATINGS) as journal:
        judge(RatingDesk(questions_to_rate(directory), journal, directory), "Cid", lambda text: "yes", lambda texts: [])
    answered()
    assert figures(directory, "good")["poem"] == (2, 3, 0)
    assert figures(directory, "bad")["poem"] == (0, 3, 0)


def test_who_judges_again_beside_another_model_has_one_vote(
    answered: Callable[..., Path], serve: Callable[..., Server]
) -> None:
    directory, more = answered(), f"new=openai:{serve('say:A new poem.').url}#new"

    def all_judge(rater: str, verdict: str) -> None:
        with Journal(directory / RATINGS) as journal:
            judge(RatingDesk(questions_to_rate(directory), journal, directory), rater, lambda text: verdict, list)

    all_judge("Ann", "yes")
    answered(more)
    all_judge("Ann", "yes")
    all_judge("Ben", "no")
    answered(more)
    assert figures(directory, "good")["poem"] == (0, 3, 3), "one says yes, one says no"
    assert {pair["ties"] for pair in results(directory)["preferences"]} == {6}, "two raters, three questions"


def test_the_page_tells_nobody_whose_an_answer_is(answered: Callable[[], Path]) -> None:
    directory = answered()
    with Journal(directory / RATINGS) as journal:
        desk = RatingDesk(questions_to_rate(directory), journal, directory)
        told, first = "", set()
        for number in range(40):
            rater = f"rater {number}"
            shown = [desk.look(rater, index) for index in range(3)]
            told += json.dumps(shown) + json.dumps(desk.progress(rater))
            first.add((shown[0]["answers"][0]["text"], desk.next(rater)))
        assert sorted(len(question["answers"]) for question in shown) == [1, 2, 2], "equal answers are shown once"
        assert not re.search("good|bad|secret|openai", told)
        assert first == {(text, k) for text in ("A fine poem.", "Fish.") for k in range(3)}, "both orders are of chance"
        index = desk.next("Ann")
        assert index is not None
        keys = [row["key"] for row in desk.look("Ann", index)["answers"]]
        for verdicts, best in (
            ({}, []), (dict.fromkeys(keys, "perhaps"), []), (dict.fromkeys([*keys, "x"], "yes"), []),
            (dict.fromkeys(keys, "yes"), ["x"]),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="must be"):
                desk.decide("Ann", index, verdicts, best)
        desk.decide("Ann", index, dict.fromkeys(keys, "no"), [])
        desk.decide("Ann", index, dict.fromkeys(keys, "unsure"), [])  # thinks again
        assert {row["mine"] for row in desk.look("Ann", index)["answers"]} == {"unsure"}
        assert PeopleJudge(directory).ratings[0]["answers"] == dict.fromkeys(keys)


def test_a_directory_without_answers(tmp_path: Path) -> None:
    assert_one_line(run("rate", tmp_path), "holds no results.json", "minigpt4 eval abilities")
    (tmp_path / "results.json").write_text('{"answers": []}')
    with pytest.raises(UserError, match="what counts as success"):
        questions_to_rate(tmp_path)


def test_a_strangers_results_show_no_file_but_images_of_the_folder(
    answered: Callable[[], Path], tmp_path: Path
) -> None:
    """Nothing outside, wherever links lead, and nothing that is no image; what a file hides behind its image stays."""
    directory = answered()
    given = json.loads((directory / "results.json").read_text())
    inside, secret = directory / "images", tmp_path / "secret.png"
    picture_folder(inside, 1)
    shutil.copy(inside / "0.png", secret)
    with (inside / "0.png").open("ab") as file:
        file.write(b"root:x:0:0")
    (inside / "passwd.png").write_text("root:x:0:0")
    (inside / "link.png").symlink_to(secret)
    os.mkfifo(inside / "fifo.png")
    (inside / "circle.png").symlink_to(inside / "circle.png")
    shown = [inside / "0.png"]
    hidden = [
        secret, inside / "link.png", inside / ".." / ".." / ".." / "secret.png", inside / "fifo.png", "/etc/passwd",
        "/dev/zero", "/proc/self/environ", inside / "passwd.png", inside / "circle.png", inside, "", "a\0b", "x" * 5000,
    ]  # fmt: skip
    answer = given["answers"][0]
    given["answers"] = [{**answer, "sample": i, "image": str(image)} for i, image in enumerate([*shown, *hidden])]
    (directory / "results.json").write_text(json.dumps(given))
    with Journal(directory / RATINGS) as journal:
        desk = RatingDesk(questions_to_rate(directory), journal, directory)
        assert routes_of(labelling_app(desk, "127.0.0.1")) == {
            ("GET", "/"), ("GET", "/api/next"), ("GET", "/pictures/{index}"),
            ("GET", "/api/questions/{index}"), ("POST", "/api/questions/{index}"), ("POST", "/api/back"),
        }  # fmt: skip
        keys = [row["key"] for row in desk.look("Ann", 0)["answers"]]
    judgement = {"rater": "Ann", "answers": dict.fromkeys(keys, "yes"), "best": []}
    with served("eval", "rate", directory, "--port", 0) as url:
        assert b"root:" not in urllib.request.urlopen(f"{url}pictures/0", timeout=30).read()
        assert [ask(url, f"/pictures/{i + 1}") for i in range(len(hidden))] == [404] * len(hidden)
        assert_guarded(url, {
            "/": None, "/api/next?rater=Ann": None, "/pictures/0": None,
            "/api/questions/1?rater=Ann": None, "/api/back": b'{"rater": "Ann", "index": 1}',
            "/api/questions/0": json.dumps(judgement).encode(),
        })  # fmt: skip
    for wrong in ("x", [1], [{}], [{**answer, "prompt": 1}], None):
        (directory / "results.json").write_text(json.dumps({**given, "answers": wrong}))
        with pytest.raises(UserError, match="is not as minigpt4 writes it"):
            questions_to_rate(directory)


def status(url: str, body: Any = None, **headers: str) -> int:
    data = None if body is None else json.dumps(body).encode()
    try:
        more = {"Content-Type": "application/json", **headers}
        return urllib.request.urlopen(urllib.request.Request(url, data, more), timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_somebody_judges_in_a_browser(answered: Callable[[], Path], tmp_path: Path) -> None:
    """All by keys, on a phone too; a page that a model wrote is shown in a frame where nothing of it runs."""
    from playwright.sync_api import expect, sync_playwright

    directory = answered()
    shots = Path(os.environ.get("RATING_SCREENSHOTS", tmp_path))
    with served("eval", "rate", directory, "--images", tmp_path, "--port", 0) as url, sync_playwright() as playwright:
        assert status(url, Host="evil.example") == 400
        assert status(f"{url}api/next?rater=A", **{"Sec-Fetch-Site": "cross-site"}) == 403
        assert status(f"{url}api/questions/9", {"rater": "A", "answers": {}, "best": []}) == 404
        assert status(f"{url}api/questions/0", {"rater": "A", "answers": {}, "best": []}) == 400
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=PLAIN)
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(url)
        page.keyboard.type("Ann")
        page.keyboard.press("Enter")
        for number in range(3):
            expect(page.locator("#count")).to_have_text(f"{number} of 3 judged by you")
            assert page.locator("#picture").evaluate("i => i.decode().then(() => i.naturalWidth)") == 32
            page.locator("#save").click()  # the browser asks for what is missing, and nothing is sent
            expect(page.locator("#count")).to_have_text(f"{number} of 3 judged by you")
            if page.locator("summary").count():
                page.locator("summary").click()
                frame = page.frame_locator("iframe")
                expect(frame.locator("h1")).to_have_text("Shop")
                assert page.title() == "Judge answers"
                page.screenshot(path=str(shots / "rating-page.png"))
            for box in page.locator("#answers fieldset").all():
                word = "succeeds" if "poem" in box.locator("pre").inner_text() else "does not"
                box.get_by_label(word).focus()
                page.keyboard.press("Space")
            page.locator("#save").click()
        expect(page.locator("#empty")).to_be_visible()
        page.locator("#before").click()
        expect(page.locator("#answers input:checked")).not_to_have_count(0)
        phone = browser.new_page(viewport={"width": 360, "height": 740}, has_touch=True)
        phone.goto(url)
        phone.fill("#name", "Ben")
        phone.tap("text=Start")
        expect(phone.locator("#answers fieldset").first).to_be_visible()
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
        phone.screenshot(path=str(shots / "rating-phone.png"))
        assert not faults
        browser.close()
    answered()
    assert figures(directory, "good")["poem"] == (2, 3, 0)
    assert figures(directory, "bad")["poem"] == (0, 3, 0)
