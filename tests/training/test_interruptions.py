"""Runs that are killed, stopped or out of disk space, in real processes, end with the losses of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from minigpt4.training.recipe import Recipe
from minigpt4.training.train import STOPPING

if sys.platform == "win32":
    pytest.skip("forks processes and sends them signals", allow_module_level=True)

STEPS = 30


@pytest.fixture(scope="module")
def recipe(tiny_vision: Path, tiny_llm: Path, tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return Recipe.parse({
        "stage": 1, "vision_qformer": str(tiny_vision), "llm": str(tiny_llm), "template": "pocket",
        "data": str(tiny_pairs), "feature_cache": tmp_path_factory.mktemp("features"), "output": "undisturbed",
        "device": "cpu", "steps": STEPS, "batch_size": 6, "learning_rate": 0.01, "warmup_steps": 3, "save_every": 10,
    })  # fmt: skip


def run(recipe: Recipe, output: Path, troubles: list[dict[str, int]], **values: Any) -> tuple[list[int], str]:
    """How each process ended, and what they all wrote to stderr."""
    file = output.with_suffix(".yaml")
    file.write_text(Recipe.parse({**recipe.model_dump(), **values, "output": output}).to_yaml())
    command = [sys.executable, Path(__file__).with_name("runs_in_trouble.py"), file, json.dumps(troubles)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=True)
    return json.loads(result.stdout), result.stderr


def losses(output: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


def projection(output: Path) -> bytes:
    return (output / "alignment" / "projection.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    ends, _ = run(recipe, output, [{}])
    assert ends == [0]
    assert [step for step, _ in losses(output)] == list(range(1, STEPS + 1))
    return output


def test_killed_at_any_step(recipe: Recipe, undisturbed: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    kills = [{"signal": signal.SIGKILL, "line": line} for line in (3, 12, 19, 27)]
    ends, log = run(recipe, output, [*kills, {}])
    assert ends == [-signal.SIGKILL] * 4 + [0]
    assert "continuing from step 20 of 30" in log
    assert losses(output) == losses(undisturbed)
    assert projection(output) == projection(undisturbed)


def test_killed_before_every_single_write(recipe: Recipe, undisturbed: Path, tmp_path: Path) -> None:
    """Saving after every fifth step, and killed at ever later points: in the midst of saves and of the last writes."""
    output = tmp_path / "killed"
    ends, log = run(recipe, output, [{"kill_at_file": n} for n in range(1, 60)], save_every=5)
    assert len(ends) > 8
    assert set(ends[:-1]) == {-signal.SIGKILL}, log
    assert ends[-1] == 0
    assert losses(output) == losses(undisturbed)
    assert projection(output) == projection(undisturbed)
    assert not list(output.rglob(".*.tmp"))


def test_stopped_by_signals(recipe: Recipe, undisturbed: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGTERM as a preempted machine gets it: each saves, exits with 130 and says how to go on."""
    output = tmp_path / "stopped"
    troubles = [{"signal": signal.SIGINT, "line": 4}, {"signal": signal.SIGTERM, "line": 12}, {}]
    ends, log = run(recipe, output, troubles, save_every=1000)
    assert ends == [130, 130, 0]
    hints = [line for line in log.splitlines() if line.startswith("stopped at step")]
    assert len(hints) == 2
    assert all(hint.endswith("; the same command continues there") for hint in hints)
    assert log.count("continuing from step") == 2
    assert "Traceback" not in log
    assert losses(output) == losses(undisturbed)
    assert projection(output) == projection(undisturbed)


def test_ctrl_c_at_the_command_line(recipe: Recipe, tmp_path: Path) -> None:
    """Exit code 130 and one line that says how to go on; nothing else on stderr but what was done."""
    file, output = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(recipe.to_yaml())
    start = "from minigpt4.cli import main; main()"
    command = [sys.executable, "-c", start, "train", str(file), f"output={output}", "steps=100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (output / "metrics.jsonl").is_file():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, log = process.communicate(timeout=60)
    assert process.returncode == 130
    assert not out
    assert log.splitlines().count(f"minigpt4: {STOPPING}") == 1
    hint = log.splitlines()[-1]
    assert hint.startswith("minigpt4: stopped at step ")
    assert hint.endswith(" of 100000; the same command continues there")
    assert "Traceback" not in log


LONG = """
import torch
from minigpt4.stopping import StopSignals
square = torch.ones(12_000, 12_000)
with StopSignals("heard"):
    print("started", flush=True)
    square @ square
"""


def test_a_signal_is_heard_in_the_midst_of_a_long_operation() -> None:
    """As a backward pass is one, at whose end Python's own handlers come; a second signal does not wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "started\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "minigpt4: heard\n"
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 130
        assert process.stderr.read() == ""


def test_no_disk_space(recipe: Recipe, undisturbed: Path, tmp_path: Path) -> None:
    """The checkpoint does not fit any more: one line says so, the former checkpoint is kept, and the run can go on."""
    output = tmp_path / "full"
    room = next(undisturbed.glob("checkpoints/*.pt")).stat().st_size - 100
    troubles = [{"signal": signal.SIGTERM, "line": 4}, {"file_limit": room}, {}]
    ends, log = run(recipe, output, troubles, save_every=20)
    assert ends == [130, 2, 0]
    (message,) = [line for line in log.splitlines() if "cannot be written" in line]
    assert "/checkpoints/" in message
    assert "free some space and run the same command again" in message
    resumed = [line for line in log.splitlines() if line.startswith("continuing from step")]
    assert len(resumed) == 2
    assert resumed[0] == resumed[1]  # the full disk cost nothing that was saved
    assert losses(output) == losses(undisturbed)


def test_killed_at_twenty_random_moments(recipe: Recipe, tmp_path: Path) -> None:
    """On a stream that two worker processes read and shuffle: at any moment of its life, also in the midst of saves.

    One run is killed again and again: after a few steps and a while, or before the n-th time it opens or renames a
    file. The workers of a killed run end too: `run` would wait for them, who hold its pipes.
    """
    streamed = {"stream": True, "workers": 2, "shuffle_buffer": 16, "save_every": 2, "steps": 200}
    ends, _ = run(recipe, tmp_path / "whole", [{}], **streamed)
    assert ends == [0]
    moment = random.Random(4)
    at_times = [{"signal": 9, "more": moment.randrange(6), "wait": moment.randrange(40)} for _ in range(14)]
    at_files = [{"kill_at_file": moment.randrange(1, 40)} for _ in range(6)]
    kills = moment.sample([*at_times, *at_files], 20)
    ends, log = run(recipe, tmp_path / "killed", [*kills, {}], **streamed)
    assert ends == [-signal.SIGKILL] * 20 + [0], log
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert projection(tmp_path / "killed") == projection(tmp_path / "whole")
