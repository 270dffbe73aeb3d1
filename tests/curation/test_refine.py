"""Refining by the command line, with a real server: what is taken, what it costs, and what a kill loses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curating import TEXTS, assert_one_line, command, run
from endpoint import Server
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.refine import rejection
from minigpt4.endpoint import Reply
from minigpt4.errors import UserError

KEY = "sk-never-written-down-777"


def refine(project: Path, server: Server, *more: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    return run("refine", project, "--endpoint", server.url, "--model", "editor", *more, env=environment)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("A red ball lies on the grass.", None),
        ("A red ball ball lies on the the grass.", None),
        ("I'm sorry, but I cannot help with that.", "refusal or apology"),
        ("Sure! A red ball lies on the grass.", "assistant talk"),
        ("As an AI language model, a red ball lies on the grass.", "assistant talk"),
        ("Two cats are playing chess beneath an old apple tree.", "drift"),
    ],
)
def test_which_answers_are_taken(answer: str, reason: str | None) -> None:
    assert rejection("A red ball ball lies on the the grass.", Reply(answer, True, 1, 1), 0.6) == reason


def test_a_cut_answer_is_not_taken_and_a_raw_apology_is_not_held_against_it() -> None:
    assert rejection("A red ball.", Reply("A red ball.", False, 1, 1), 0.6) == "cut off"
    sorry = "I'm sorry, a red ball lies there."
    assert rejection(sorry, Reply(sorry, True, 1, 1), 0.6) is None


def test_every_text_is_refined_once(project: Path, serve: Callable[..., Server]) -> None:
    server = serve("say:I'm sorry, I cannot do that.", "say:Elephants write novels.", "ok")
    result = refine(project, server, "--concurrency", 1)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split("\n")) == {"refusal or apology: 1", "drift: 1", "unchanged: 10", ""}
    with Ledger(project) as ledger:
        items = ledger.items()
        assert [item.text for item in items] == list(TEXTS)  # the raw text stands in for what was not taken
        rejected = [item.refined.data["text"] for item in items[:2] if item.refined]
        assert rejected == ["I'm sorry, I cannot do that.", "Elephants write novels."]  # and nothing is lost
    assert len(server.requests) == 12
    assert refine(project, server).returncode == 0
    assert len(server.requests) == 12
    [system, user] = server.requests[0]["body"]["messages"]
    assert system["role"] == "system"
    assert user == {"role": "user", "content": TEXTS[0]}


def test_another_address_or_threshold_is_not_paid_for_again(project: Path, serve: Callable[..., Server]) -> None:
    first, second = serve("say:Elephants write novels."), serve("ok")
    assert "drift: 12" in refine(project, first).stdout
    assert refine(project, second).stdout == ""
    result = refine(project, second, "--min-similarity", 0)
    assert result.stdout == "judged anew: 12\n", result.stderr
    assert second.requests == []
    with Ledger(project) as ledger:
        assert {item.text for item in ledger.items()} == {"Elephants write novels."}
        assert sum(event.data["tokens"] for event in ledger.events("refine")) == 12 * 30


def test_going_back_to_an_earlier_model_takes_its_answers_again(project: Path, serve: Callable[..., Server]) -> None:
    first, second = serve("say:Elephants write novels."), serve("ok")
    assert "drift: 12" in refine(project, first, "--min-similarity", 0.5).stdout
    assert "unchanged: 12" in refine(project, second, "--model", "another").stdout
    for again, told in ((0, "judged anew: 12\n"), (0, "")):
        assert refine(project, second, "--min-similarity", again).stdout == told
    with Ledger(project) as ledger:
        assert {item.text for item in ledger.items()} == {"Elephants write novels."}
    assert len(second.requests) == 12, "nothing is paid for twice"


def test_the_key_is_written_nowhere(project: Path, serve: Callable[..., Server]) -> None:
    good, bad = serve("ok"), serve("status:401")
    results = [refine(project, bad), refine(project, good)]
    assert_one_line(results[0], "HTTP 401", "OPENAI_API_KEY")
    assert KEY in good.requests[0]["key"]
    for file in project.rglob("*"):
        if file.is_file():
            assert KEY.encode() not in file.read_bytes(), file
    assert all(KEY not in result.stdout + result.stderr for result in results)


def test_a_password_in_the_address_is_written_nowhere(project: Path, serve: Callable[..., Server]) -> None:
    for behaviour, code in (("status:404", 2), ("ok", 0)):
        server = serve(behaviour)
        signed = server.url.replace("://", f"://me:{KEY}@")
        done = run("refine", project, "--endpoint", signed, "--model", "editor")
        assert done.returncode == code, done.stderr
        assert server.requests[0]["key"].startswith("Basic ")
        for text in (done.stdout + done.stderr, *(p.read_bytes().decode("latin-1") for p in project.glob("*.*"))):
            assert KEY not in text
            assert server.requests[0]["key"].split()[1] not in text


def test_killed_and_started_again_it_pays_for_nothing_twice(project: Path, serve: Callable[..., Server]) -> None:
    server = serve("slow:0.25")
    arguments = command("refine", project, "--endpoint", server.url, "--model", "editor", "--concurrency", 2)
    killed = 0
    for _ in range(2):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        before, deadline = len(server.requests), time.monotonic() + 60
        while len(server.requests) < before + 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert killed == 2
    result = refine(project, server)
    assert result.returncode == 0, result.stderr
    with Ledger(project) as ledger:
        events = ledger.events("refine")
        assert sorted(int(event.image) for event in events) == list(range(12))
    # Only what was under way when the process died is asked for again, at most two each time.
    assert 12 <= len(server.requests) <= 12 + 2 * killed
    again = [json.dumps(request["body"]["messages"][1]) for request in server.requests]
    assert len(set(again)) == 12
    # A gateway can tell such a question by its key.
    assert len({request["idempotency"] for request in server.requests}) == 12


def test_ctrl_c_records_what_is_under_way(project: Path, serve: Callable[..., Server]) -> None:
    server = serve("slow:0.4")
    arguments = command("refine", project, "--endpoint", server.url, "--model", "editor", "--concurrency", 2)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(server.requests) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in errors
    assert "Traceback" not in errors
    with Ledger(project) as ledger:
        assert len(ledger.events("refine")) == len(server.requests) < 12


def test_a_budget_is_kept_across_runs(project: Path, serve: Callable[..., Server]) -> None:
    server = serve("ok")  # each answer costs 30 tokens
    result = refine(project, server, "--budget", 600, "--concurrency", 1)
    assert "left for lack of budget" in result.stdout
    asked = len(server.requests)
    assert 0 < asked < 12
    assert refine(project, server, "--budget", 30 * asked).returncode == 0
    assert len(server.requests) == asked


def test_a_dry_run_tells_the_tokens_and_sends_nothing(project: Path) -> None:
    result = run(
        "refine", project, "--endpoint", "http://127.0.0.1:9/v1", "--model", "m", "--dry-run",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told = dict(line.split(": ", 1) for line in result.stdout.splitlines())
    assert told["requests"] == "12"
    assert int(told["prompt tokens"]) > int(told["answer tokens"]) > 0


def test_a_thought_stays_out_of_the_text(project: Path, serve: Callable[..., Server]) -> None:
    text = "The picture shows a ball in the room. The ball is on the left."
    result = refine(project, serve(f"say:Two balls?\n</think>\n\n{text}"), "--min-similarity", 0.1)
    assert result.stdout == "mended: 12\n", result.stderr
    with Ledger(project) as ledger:
        assert {item.text for item in ledger.items()} == {text}


def test_an_endpoint_that_fails_throughout_ends_the_work(
    project: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt4 import endpoint as module
    from minigpt4.curation.refine import refine as run_here

    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    server = serve(*["ok"] * 4, "empty")
    with Ledger(project) as ledger:
        asked = module.Endpoint(server.url, "editor", attempts=2)
        with pytest.raises(UserError, match="empty answer; what was answered is recorded"):
            run_here(ledger, asked, concurrency=1)
        assert len(ledger.events("refine")) == 4
        assert len(ledger.events("refine-failed")) == 3


def test_a_project_that_is_none(tmp_path: Path, serve: Callable[..., Server]) -> None:
    assert_one_line(refine(tmp_path / "none", serve("ok")), "none", "describe or import")
