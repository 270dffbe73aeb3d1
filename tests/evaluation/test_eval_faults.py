"""`minigpt4 eval` in trouble: kills, a second process, bad data, judges that are away or answer nonsense."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from curating import assert_one_line
from endpoint import Server
from evaluating import command, figures, picture_folder, results, run, task, write_tasks
from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.abilities import Abilities
from minigpt4.evaluation.cli import judge_from
from minigpt4.evaluation.judges import JudgePrompt, LLMJudge
from minigpt4.evaluation.run import evaluate
from minigpt4.files import only_process

Serve = Callable[..., Server]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "photos", 10)


def model(server: Server) -> str:
    return f"m=openai:{server.url}#some-model"


def asked(server: Server) -> list[str]:
    """The prompts that reached a server, each with its picture."""
    return [json.dumps(request["body"]["messages"][-1]["content"], sort_keys=True) for request in server.requests]


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_and_asks_nothing_twice(
    kill: signal.Signals, folder: Path, tmp_path: Path, serve: Serve
) -> None:
    server = serve("slow:0.1")
    arguments = ("reliability", model(server), "--data", folder, "--out", tmp_path / "out", "--concurrency", 2)
    journal = tmp_path / "out" / "reliability" / "answers.jsonl"
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(kill)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if kill == signal.SIGKILL else 130)
    assert "Traceback" not in errors
    kept = journal.read_bytes().count(b"\n")
    assert 5 <= kept < 20
    with journal.open("ab") as file:
        file.write(b'{"key": "half a li')  # as a kill in the middle of a write leaves it
    before = asked(server)
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    after = asked(server)[len(before) :]
    assert len(after) == 20 - kept, "what was recorded is not asked again"
    assert len(set(asked(server))) == 20, "every question was asked"
    assert results(journal.parent)["items"] == len(results(journal.parent)["answers"]) == 20
    again = run(*arguments)
    assert again.returncode == 0
    assert len(asked(server)) == len(before) + len(after)


def test_two_processes_do_not_work_in_one_directory(folder: Path, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "out" / "reliability").mkdir(parents=True)
    with only_process(tmp_path / "out" / "reliability", "eval"):
        second = run("reliability", model(serve("ok")), "--data", folder, "--out", tmp_path / "out")
    assert_one_line(second, f"process {os.getpid()} is at work on eval", "run the same command again")


def test_another_model_costs_its_own_answers_only_and_a_changed_question_is_asked_anew(
    folder: Path, tmp_path: Path, serve: Serve
) -> None:
    first, second, judge = serve("say:A poem."), serve("say:A fish."), serve("find:A poem.")
    data = write_tasks(tmp_path / "tasks.yaml", {"poem": task("photos/0.png", "photos/1.png")})

    def measure(*models: str) -> None:
        evaluate(Abilities(data, judge=llm(judge)), models, tmp_path / "out")

    measure(model(first))
    measure(model(first), f"n=openai:{second.url}#x")
    assert (len(first.requests), len(second.requests)) == (2, 2)
    assert figures(tmp_path / "out/abilities", "m")["poem"] == (2, 2, 0)
    assert figures(tmp_path / "out/abilities", "n")["poem"] == (0, 2, 0)
    # Equal answers to equal questions are judged once, whoever gave them and on whatever picture.
    assert len(judge.requests) == 2
    changed = {"image": "photos/1.png", "prompt": "Write another poem."}
    write_tasks(tmp_path / "tasks.yaml", {"poem": task("photos/0.png", changed)})
    measure(model(first))
    assert len(first.requests) == 3
    assert len(judge.requests) == 3


def test_what_is_wrong_with_data_is_named_counted_apart_and_the_rest_goes_on(
    folder: Path, tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "3.png").write_bytes(b"\x89PNG broken")
    data = write_tasks(
        tmp_path / "tasks.yaml",
        {
            "poem": task("photos/0.png", "photos/none.png", {"prompt": "Hi"}, "photos/0.png", "photos/3.png"),
            "story": task({"image": "photos/1.png", "id": "one"}, {"image": 7}, success=3),
            "joke": task({"image": "photos/2.png", "id": "poem-0"}, "photos/2.png"),
        },
    )
    evaluate(Abilities(data, judge=llm(serve("say:yes"))), [model(serve("say:Well."))], tmp_path / "out")
    found = results(tmp_path / "out/abilities")
    assert found["left_out"] == {
        "missing image": 1, "malformed record": 2, "duplicate id": 2, "unreadable image": 1,
    }  # fmt: skip
    assert figures(tmp_path / "out/abilities", "m") == {"poem": (1, 1, 0), "joke": (1, 1, 0), "all": (2, 2, 0)}
    told = {fault["where"] + ": " + fault["reason"] for fault in found["faults"]}
    for expected in (
        f"{data}: task 'poem', item 2: there is no image {folder / 'none.png'}",
        f"{data}: task 'poem', item 3: has no 'image'",
        f"{data}: task 'poem', item 4: its id 'poem-0' is that of {data}: task 'poem', item 1, which is kept",
        f"{data}: task 'story': 'success' is 3, a str was expected",
        f"{data}: task 'joke', item 1: its id 'poem-0' is that of {data}: task 'poem', item 1, which is kept",
    ):
        assert expected in told
        assert expected in caplog.text
    assert any("3.png" in line and "not an image" in line for line in told)
    table = (tmp_path / "out/abilities/results.md").read_text()
    assert "Left out and counted apart: 1 × missing image" in table


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tasks: [unclosed", ":1: broken YAML"),
        ("tasks:\n  a: {}\n  a: {}\n", ":3: broken YAML (the key 'a' stands there twice)"),
        ("title: no tasks\n", ": has no 'tasks'"),
        ("tasks: {a: {items: [x.png], success: s}}\n", ": holds nothing to ask about; the first fault: "),
    ],
)
def test_a_file_that_is_wrong_as_a_whole(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'tasks.yaml'}{told}")):
        evaluate(Abilities(tmp_path / "tasks.yaml"), ["pocket"], tmp_path / "out")


def test_mistakes_in_the_command_are_told_before_anything_is_loaded(tmp_path: Path, folder: Path) -> None:
    data = write_tasks(tmp_path / "tasks.yaml", {"poem": task("photos/0.png")})
    for models, told in (
        (["pocket", "pocket"], "named twice"),
        (["nowhere"], "nowhere: no such directory"),
        (["openai:http://x/v1"], "give the base URL and the model's name"),
        (["pocket"], "judge by people"),
    ):
        with pytest.raises(UserError, match=told):
            evaluate(Abilities(data), models, tmp_path / "out")
    with pytest.raises(UserError, match="would be the same answer"):
        evaluate(Abilities(data), ["pocket"], tmp_path / "out", samples=2)
    for judge, prompt, told in (
        ("me", "success", "no judge 'me'"),
        ("openai:http://x/v1#y", "kind", "no judge prompt 'kind'"),
        ("openai:http://x/v1#y", str(data), "is no judge prompt: has no 'version'"),
    ):
        with pytest.raises(UserError, match=told):
            judge_from(judge, prompt, Abilities, {"out": tmp_path, "concurrency": 1, "timeout": 1.0})


def llm(judge: Server) -> LLMJudge:
    return LLMJudge(f"openai:{judge.url}#judge", JudgePrompt.load("success"))


class _Judging:
    """The suite of two pictures with an LLM as its judge, in this process: retries can be made quick here."""

    def __init__(self, tmp_path: Path, answerer: Server, judge: Server | str, attempts: int = 2) -> None:
        self.out, self.answerer = tmp_path / "out", answerer
        self.data = write_tasks(tmp_path / "tasks.yaml", {"poem": task(*(f"photos/{i}.png" for i in range(4)))})
        url = judge if isinstance(judge, str) else judge.url
        self.judge = LLMJudge(f"openai:{url}#judge", JudgePrompt.load("success"), concurrency=1, timeout=5)
        self.judge.endpoint.attempts = attempts

    def run(self) -> tuple[int, int, int]:
        evaluate(Abilities(self.data, judge=self.judge), [model(self.answerer)], self.out)
        return figures(self.out / "abilities", "m")["poem"]


def test_a_judge_out_of_form_is_asked_again_and_then_undecided(folder: Path, tmp_path: Path, serve: Serve) -> None:
    # Case 1: at the third asking. Case 2: never. Then yes, and no with a flourish.
    answers = serve(*(f"say:poem {i}" for i in range(4)))
    judge = serve(
        "say:Well, I think so", "say:Yes and no", "say:**Yes.**\nBecause it rhymes.",
        "say:maybe", "say:yes, it does", "say:I would say yes", "say:yes", "say:NO\nIt does not.",
    )  # fmt: skip
    work = _Judging(tmp_path, answers, judge)
    monkey = work.answerer
    assert work.run() == (2, 4, 1)
    assert len(judge.requests) == 8
    first, second = (request["body"]["messages"][-1]["content"] for request in judge.requests[:2])
    assert "nothing else on that line" in second
    assert "nothing else on that line" not in first
    verdicts = [row["verdicts"][0] for row in results(tmp_path / "out/abilities")["answers"]]
    assert [v["success"] for v in verdicts].count(None) == 1
    assert {v["detail"]["asked"] for v in verdicts} == {1, 3}
    assert results(tmp_path / "out/abilities")["judge"]["version"] == 1
    table = (tmp_path / "out/abilities/results.md").read_text()
    assert "2/4 (15–85 %, 1 undecided)" in table
    assert "could not decide 1 cases" in table
    assert work.run() == (2, 4, 1)
    assert len(judge.requests) == 8, "not even the undecided are asked again"
    assert len(monkey.requests) == 4


def test_a_judge_that_thinks_is_given_the_tokens_for_it(folder: Path, tmp_path: Path, serve: Serve) -> None:
    judge = serve("think:1000")
    work = _Judging(tmp_path, serve(*(f"say:poem {i}" for i in range(4))), judge)
    assert work.run() == (4, 4, 0)
    assert len(judge.requests) == 5


def test_a_judge_that_declines_leaves_a_case_undecided(folder: Path, tmp_path: Path, serve: Serve) -> None:
    judge = serve("say:yes", "error:400,This was rejected by our content policy.", "say:yes")
    work = _Judging(tmp_path, serve(*(f"say:poem {i}" for i in range(4))), judge)
    assert work.run() == (3, 4, 1)
    reasons = [row["verdicts"][0]["reason"] for row in results(tmp_path / "out/abilities")["answers"]]
    assert sum("content policy" in reason for reason in reasons) == 1


@pytest.mark.parametrize("said", ["<think>yes or no?", "<think>Hm.</think>", "<think>\nyes\n</think>\nperhaps"])
def test_a_verdict_is_not_read_from_a_thought(said: str) -> None:
    assert JudgePrompt.load("success").read(said)[0] is None


def test_a_judge_that_is_away_loses_nothing(
    folder: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt4 import endpoint

    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    answers = serve(*(f"say:poem {i}" for i in range(4)))
    away = _Judging(tmp_path, answers, "http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match=r"no connection.*what was answered is recorded"):
        away.run()
    assert not (tmp_path / "out/abilities/results.json").exists()
    halting = serve("say:yes", "status:500")
    with pytest.raises(UserError, match="HTTP 500"):
        _Judging(tmp_path, answers, halting).run()
    back = _Judging(tmp_path, answers, halting)
    back.judge.endpoint = _Judging(tmp_path, answers, serve("say:no")).judge.endpoint  # the same judge, up again
    assert back.run() == (1, 4, 0)
    assert len(answers.requests) == 4


def test_a_model_that_fails_on_one_question_is_counted_apart_and_asked_again_later(
    folder: Path, tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt4 import endpoint
    from minigpt4.evaluation.models import Answering

    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    answers = serve("say:a", *["nonsense"] * 6, "say:c")
    data = write_tasks(tmp_path / "tasks.yaml", {"poem": task(*(f"photos/{i}.png" for i in range(3)))})
    judge = llm(serve("say:yes"))
    one = Answering(concurrency=1)
    evaluate(Abilities(data, judge=judge), [model(answers)], tmp_path / "out", settings=one)
    assert results(tmp_path / "out/abilities")["left_out"] == {"no answer": 1}
    assert figures(tmp_path / "out/abilities", "m")["poem"] == (2, 2, 0)
    evaluate(Abilities(data, judge=judge), [model(answers)], tmp_path / "out", settings=one)
    assert figures(tmp_path / "out/abilities", "m")["poem"] == (3, 3, 0)
    assert results(tmp_path / "out/abilities")["left_out"] == {}


def test_an_image_that_a_model_refuses_is_counted_apart_however_often_it_is_asked(
    folder: Path, tmp_path: Path, serve: Serve
) -> None:
    from minigpt4.evaluation.models import Answering

    server = serve("say:a", "error:400,You uploaded an unsupported image.")
    data = write_tasks(tmp_path / "tasks.yaml", {"poem": task("photos/0.png", "photos/1.png")})
    for _ in range(2):
        suite = Abilities(data, judge=llm(serve("say:yes")))
        evaluate(suite, [model(server)], tmp_path / "out", settings=Answering(concurrency=1))
        assert figures(tmp_path / "out/abilities", "m")["poem"] == (1, 1, 0)
        [fault] = results(tmp_path / "out/abilities")["faults"]
        assert "unsupported image" in fault["reason"]
    assert len(server.requests) == 3


def test_passwords_in_addresses_stay_out_of_results(folder: Path, tmp_path: Path, serve: Serve) -> None:
    data = write_tasks(tmp_path / "tasks.yaml", {"poem": task("photos/0.png")})
    asked, judging = serve("say:A poem."), serve("find:A poem.")
    signed = [server.url.replace("://", "://me:secret@") for server in (asked, judging)]
    out = tmp_path / "out"
    done = run("abilities", f"openai:{signed[0]}#x", "--judge", f"openai:{signed[1]}#y", "--data", data, "--out", out)
    assert done.returncode == 0, done.stderr
    assert asked.requests[0]["key"] == judging.requests[0]["key"] == "Basic bWU6c2VjcmV0"
    failed = run("abilities", f"openai:{signed[0]}", "--data", data, "--out", out)
    unknown = run("abilities", "m=" + signed[0], "--judge", signed[1], "--data", data, "--out", out)
    assert failed.returncode == unknown.returncode == 2
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    said = [(each.stdout + each.stderr).encode() for each in (done, failed, unknown)]
    for text in (*written, *said):
        assert b"secret" not in text
        assert b"bWU6c2VjcmV0" not in text
    assert f"openai:{asked.url}#x".encode() in b"".join(written)
