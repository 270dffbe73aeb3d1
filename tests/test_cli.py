"""The commands, each in a process of its own as people run them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image

from commands import run
from minigpt4.cli import app
from pages import ask, served

COMMANDS = Path(__file__).with_name("commands.yaml")
MINIGPT4 = str(Path(sys.executable).with_name("minigpt4"))


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """A user's mistake: exit code 2, nothing on stdout, one line on stderr that holds all of `parts`."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("minigpt4: ")
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr


def commands() -> dict[str, list[str]]:
    """Every command, hidden ones too, with its options, by walking the tree."""
    found = {}

    def walk(path: str, command: Any) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(f"{path} {name}".strip(), inner)
        else:
            found[path] = sorted(p.opts[0] for p in command.params if p.opts[0].startswith("--"))

    walk("", typer.main.get_command(app))
    return dict(sorted(found.items()))


def test_commands_and_options_are_those_that_were_decided() -> None:
    """A new option is a decision: `python tests/test_cli.py` writes the list."""
    decided = yaml.safe_load(COMMANDS.read_text(encoding="utf-8"))
    assert commands() == {name: (options or "").split() for name, options in decided.items()}


HIDDEN = ("demo", "reproduce", "curate demo", "eval ablations")  # former names


@pytest.mark.parametrize("command", [name for name in commands() if name not in HIDDEN])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0
    assert f"Example: minigpt4 {command} " in result.stdout


def test_of_several_processes_each_tells_its_own_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    result = run("train", "nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("minigpt4 (process 3): ")
    assert "nowhere" in result.stderr


def test_version() -> None:
    import minigpt4

    assert run("--version").stdout == f"{minigpt4.__version__}\n"


def test_without_a_command_it_shows_the_commands() -> None:
    shown = run()
    assert {"train", "chat", "pocket"} <= set((shown.stdout + shown.stderr).split())


def test_h_shows_every_command_in_its_group() -> None:
    import typer

    from minigpt4.cli import _GROUPS, app

    shown = run("-h").stdout
    places = [shown.index(f"\n{group}:\n") for group in _GROUPS]
    assert places == sorted(places)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    visible = {name for name, command in commands.items() if not command.hidden}
    assert visible == {name for names in _GROUPS.values() for name in names}
    assert "--max-new-tokens" in run("chat", "-h").stdout


def test_pocket_draw_writes_the_same_pictures_again(tmp_path: Path) -> None:
    for name in "ab":
        result = run("pocket", "draw", "--seed", 7, "--count", 3, "--size", 64, "--out", tmp_path / name)
        assert result.returncode == 0
        assert str(tmp_path / name) in result.stdout
    first = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert set(first) == {"7.png", "8.png", "9.png", "truth.jsonl"}
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    again = "pocket", "draw", "--seed", 8, "--count", 2, "--size", 64, "--out", tmp_path / "b"
    assert_one_line(run(*again), "(7.png, 8.png, 9.png and 1 more)", "--overwrite", "another directory")
    assert run(*again, "--overwrite").returncode == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["8.png", "9.png", "truth.jsonl"]


def test_pocket_data_is_written_in_the_papers_formats(tmp_path: Path) -> None:
    assert run("pocket", "data", "stage1", "--count", 3, "--out", tmp_path / "one").returncode == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["00000.tar"]
    assert run("pocket", "data", "stage2", "--count", 3, "--out", tmp_path / "two").returncode == 0
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["filter_cap.json", "image"]
    assert_one_line(run("pocket", "data", "stage1", "--count", 3, "--out", tmp_path / "one"), "exists", "another")
    assert_one_line(run("pocket", "data", "stage3", "--out", tmp_path / "three"), "stage3", "stage1, stage2")
    assert run("pocket", "data", "benchmarks", "--count", 1, "--out", tmp_path / "four").returncode == 0
    assert (tmp_path / "four" / "captions_pocket.json").is_file()


def test_pocket_draw_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert_one_line(run("pocket", "draw", "--out", tmp_path), f"{tmp_path}: exists and is not empty (letter.txt); give")
    assert_one_line(run("pocket", "draw", "--out", tmp_path, "--overwrite"), "no truth.jsonl, but letter.txt")
    assert (tmp_path / "letter.txt").read_text() == "dear"
    assert_one_line(run("pocket", "draw", "--type", "scenery", "--out", tmp_path / "new"), "scenery", "scene")


def test_train_names_what_is_wrong_with_a_recipe(tmp_path: Path) -> None:
    assert_one_line(run("train", "pocket-stage3"), "pocket-stage3", "pocket-stage1")
    assert_one_line(run("train", "pocket-stage1", "stepz=3"), "unknown key 'stepz'", "did you mean 'steps'?")
    assert_one_line(run("train", "pocket-stage1", "steps"), "'steps'", "key=value")
    assert_one_line(run("train", "pocket-stage1", f"data={tmp_path / 'none'}", f"output={tmp_path / 'o'}"), "none")


@pytest.mark.parametrize("trouble", ["missing", "truncated", "text", "empty", "directory", "bomb"])
def test_chat_says_what_is_wrong_with_a_picture(tmp_path: Path, trouble: str) -> None:
    path = tmp_path / f"{trouble}.png"
    if trouble == "truncated":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:900])
    elif trouble == "text":
        path.write_text("not an image")
    elif trouble == "empty":
        path.touch()
    elif trouble == "directory":
        path.mkdir()
    elif trouble == "bomb":
        Image.new("1", (20_000, 20_000)).save(path)
    assert_one_line(run("chat", "pocket", path), str(path))


def test_chat_says_what_is_wrong_with_a_model(tmp_path: Path) -> None:
    assert_one_line(run("chat", tmp_path / "nowhere"), "nowhere", "no such directory")


def test_generate_says_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    options = ("--out", out, "--prompt", "What is it?")
    result = run("generate", "pocket", "--images", tmp_path / "none", *options)
    assert_one_line(result, "none", "no such file or directory")
    assert not out.exists()


def test_plan_says_what_is_wrong(tmp_path: Path) -> None:
    assert_one_line(run("plan", tmp_path / "nowhere"), "nowhere", "no such directory")


@pytest.mark.parametrize("tower", ["language", "vision"])
def test_a_build_says_that_there_is_nothing_to_go_on_from(tmp_path: Path, tower: str) -> None:
    result = run("pocket", "build", tower, "--out", tmp_path / "towers", "--start", tmp_path / "nowhere")
    assert_one_line(result, "nowhere", "no such directory")


def test_wrong_usage_is_exit_code_2() -> None:
    for arguments in (
        ["paint"],
        ["chat"],
        ["pocket", "draw"],
        ["pocket", "draw", "--out", "x", "--count", "many"],
        ["chat", "pocket", "--temperature", "-1"],
    ):
        result = run(*arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_ctrl_c_is_exit_code_130_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    process = subprocess.Popen(
        [MINIGPT4, "pocket", "data", "stage1", "--count", "100000", "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "minigpt4: stopped"
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    COMMANDS.write_text("".join(f"{name}: {' '.join(options)}".rstrip() + "\n" for name, options in commands().items()))


def test_a_tilde_in_an_option_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path))
    done = run("pocket", "draw", "--seed", 12_000_000, "--count", 1, "--out=~/one")
    assert (done.returncode, (tmp_path / "one" / "truth.jsonl").is_file()) == (0, True), done.stderr
    assert run("data", "inspect", "~/one", "--out", "~/sheet.png").returncode in (0, 2)
    assert not list((tmp_path / "work").iterdir())


def test_training_and_the_page_need_no_home_and_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("pocket", "data", "stage1", "--count", 16, "--out", tmp_path / "s1").returncode == 0
    for name, value in {"HOME": "/dev/null/home", "ALL_PROXY": "socks://127.0.0.1:9", "no_proxy": "[::1"}.items():
        monkeypatch.setenv(name, value)
    keys = {"data": tmp_path / "s1", "output": tmp_path / "run", "feature_cache": tmp_path / "f", "steps": 1}
    done = run("train", "pocket-stage1", "batch_size=8", "warmup_steps=0", *(f"{k}={v}" for k, v in keys.items()))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "blind guess" not in done.stderr  # for this LLM learnt from such texts
    with served("web", "pocket", "--port", 0) as url:
        assert ask(url, "/") == 200
