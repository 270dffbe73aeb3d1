"""Describing with a real model of toy size and with a real endpoint."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curating import assert_one_line, picture_file, run
from endpoint import Server
from minigpt4.curation import describe as module
from minigpt4.curation.describe import Describing, add_folder, describe
from minigpt4.curation.ledger import Ledger
from minigpt4.endpoint import Endpoint
from minigpt4.errors import UserError

HOW = Describing(min_tokens=16, max_new_tokens=12)


@pytest.fixture(scope="session")
def tiny_model(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from minigpt4.minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("model") / "alignment"
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", seed=1).save_pretrained(directory)
    return directory


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)


def texts(ledger: Ledger) -> dict[tuple[str, int], str]:
    return {item.key: item.text for item in ledger.items()}


def test_short_texts_are_continued_and_joined(tmp_path: Path, pictures: Path, tiny_model: Path) -> None:
    with Ledger(tmp_path / "p", create=True) as ledger:
        assert add_folder(ledger, pictures) == 12
        counts = describe(ledger, tiny_model, HOW)
        assert counts == {"described": 12, "continued": 12, "left out": 0, "done before": 0}
        for item in ledger.items():
            assert item.raw.data["continuations"] == 1
            assert 0 < item.raw.data["tokens"] <= 24  # a continuation may be empty
        assert describe(ledger, tiny_model, HOW)["done before"] == 12
        assert len(ledger.events("describe")) == 12
        [settings] = ledger.all_settings().values()
        assert settings[1]["model"] == str(tiny_model)
        assert settings[1]["continuation"] == "Continue"

        first = texts(ledger)
        longer = describe(ledger, tiny_model, HOW, samples=2, only=["0", "1"])
        assert (longer["described"], longer["done before"]) == (2, 2)
        assert texts(ledger)["0", 0] == first["0", 0] != texts(ledger)["0", 1]
        assert describe(ledger, tiny_model, HOW, only=["3"], redo=True)["described"] == 1
        assert len([event for event in ledger.events("describe") if event.image == "3"]) == 2
        with pytest.raises(UserError, match="'nobody'"):
            describe(ledger, tiny_model, HOW, only=["nobody"])


def test_samples_of_an_image_differ(tmp_path: Path, pictures: Path, tiny_model: Path) -> None:
    with Ledger(tmp_path / "p", create=True) as ledger:
        add_folder(ledger, pictures)
        how = Describing(min_tokens=1, max_new_tokens=12, temperature=1.0)
        assert describe(ledger, tiny_model, how, samples=2)["described"] == 24
        found = texts(ledger)
        assert not [name for name, sample in found if sample and found[name, 0] == found[name, 1]]


def test_enough_is_not_continued(tmp_path: Path, pictures: Path, tiny_model: Path) -> None:
    with Ledger(tmp_path / "p", create=True) as ledger:
        add_folder(ledger, pictures)
        assert describe(ledger, tiny_model, Describing(min_tokens=1, max_new_tokens=4))["continued"] == 0


@pytest.mark.parametrize(("stage", "continued"), [("1", 12), ("2", 0)])
def test_by_default_a_model_after_stage_2_is_not_asked_to_continue(
    tmp_path: Path, pictures: Path, tiny_model: Path, stage: str, continued: int
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    record = (model / "alignment.json").read_text()
    (model / "alignment.json").write_text(record.replace('"stage": null', f'"stage": {stage}'))
    done = run("describe", tmp_path / "p", "--images", pictures, "--model", model, "--max-new-tokens", 4)
    assert f"continued: {continued}\n" in done.stdout, done.stderr


def test_pictures_that_cannot_be_used_are_left_out(
    tmp_path: Path, pictures: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (pictures / "deep").mkdir()
    (pictures / "deep" / "0.png").write_bytes(picture_file(40))
    with Ledger(tmp_path / "p", create=True) as ledger:
        assert add_folder(ledger, pictures) == 13
        assert "broken" in caplog.text
        (pictures / "5.png").unlink()
        counts = describe(ledger, tiny_model, HOW)
        assert (counts["described"], counts["left out"]) == (12, 1)
        assert ("deep/0", 0) in texts(ledger)
        (pictures / "5.png").write_bytes(picture_file(5))
        assert describe(ledger, tiny_model, HOW)["described"] == 1  # it came back


KILLED = """
import sys
from minigpt4.curation import describe
from minigpt4.curation.ledger import Ledger
describe.BATCH = 2
with Ledger(sys.argv[1]) as ledger:
    describe.describe(ledger, sys.argv[2], describe.Describing(min_tokens=16, max_new_tokens=12))
"""


@pytest.mark.usefixtures("small_batches")
def test_killed_it_goes_on_with_the_texts_that_it_would_have_had(
    tmp_path: Path, pictures: Path, tiny_model: Path
) -> None:
    with Ledger(tmp_path / "undisturbed", create=True) as ledger:
        add_folder(ledger, pictures)
        describe(ledger, tiny_model, HOW)
        expected = texts(ledger)
    with Ledger(tmp_path / "killed", create=True) as ledger:
        add_folder(ledger, pictures)
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(ledger.project), str(tiny_model)])
        while not ledger.events("describe"):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = len(ledger.events("describe"))
        assert 0 < done < 12
        assert describe(ledger, tiny_model, HOW)["described"] == 12 - done
        assert len(ledger.events("describe")) == 12
        assert texts(ledger) == expected


def test_an_endpoint_describes_too(tmp_path: Path, pictures: Path, serve: Callable[..., Server]) -> None:
    server = serve("ok")  # 10 tokens for each answer
    with Ledger(tmp_path / "p", create=True) as ledger:
        add_folder(ledger, pictures)
        counts = describe(ledger, Endpoint(server.url, "vlm"), Describing(min_tokens=15))
        assert (counts["described"], counts["continued"]) == (12, 12)
    assert len(server.requests) == 24
    whole = next(r["body"]["messages"] for r in server.requests if len(r["body"]["messages"]) == 3)
    assert [message["role"] for message in whole] == ["user", "assistant", "user"]
    assert whole[2]["content"] == "Continue"
    assert whole[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    with Ledger(tmp_path / "p") as ledger:
        [text] = set(texts(ledger).values())
        assert text == "A red ball is on the left. Continue"  # what the server echoes, joined


def test_an_image_that_the_endpoint_refuses_costs_that_image(
    tmp_path: Path, pictures: Path, serve: Callable[..., Server], caplog: pytest.LogCaptureFixture
) -> None:
    thought = "say:<think>\nThey want a description.\n</think>\n\nA red wall."
    server = serve(thought, "error:400,You uploaded an unsupported image.", thought)
    with Ledger(tmp_path / "p", create=True) as ledger:
        add_folder(ledger, pictures)
        endpoint, how = Endpoint(server.url, "vlm"), Describing(min_tokens=4, max_continuations=1)
        counts = describe(ledger, endpoint, how, concurrency=1)
        # The thought does not count as a part of the text, so each text is continued.
        assert counts == {"described": 11, "continued": 11, "left out": 1, "done before": 0}
        assert set(texts(ledger).values()) == {"A red wall. A red wall."}
        [failure] = ledger.events("describe-failed")
        assert "HTTP 400: You uploaded an unsupported image." in failure.data["reason"]
        assert "1 of 12 not answered" in caplog.text
        assert describe(ledger, endpoint, how)["described"] == 1  # asked again


def test_mistakes_are_one_line(tmp_path: Path, pictures: Path) -> None:
    assert_one_line(run("describe", tmp_path / "p", "--images", tmp_path / "none"), "none", "no such directory")
    assert not (tmp_path / "p").exists()
    assert_one_line(run("describe", tmp_path / "p"), "describe or import")
    assert_one_line(
        run("describe", tmp_path / "p", "--images", pictures, "--model", tmp_path / "m"), "no such directory"
    )
    assert_one_line(run("describe", pictures / "0.png", "--images", pictures), "0.png", "cannot be made")
