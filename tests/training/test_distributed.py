"""Two machines that torchrun starts a process on each train as one process does: the same losses and projection.

The machines are this one twice, and meet on loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from minigpt4.errors import UserError
from minigpt4.local_web import listen
from minigpt4.training.recipe import Recipe
from minigpt4.training.train import train

if sys.platform == "win32":
    pytest.skip("gloo and signals as on Unix", allow_module_level=True)


@pytest.fixture(scope="module")
def runs(
    tiny_vision: Path, tiny_llm: Path, tiny_pairs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The directory of all runs, and what the first of two machines wrote to stderr."""
    root = tmp_path_factory.mktemp("runs")

    def recipe(name: str, **values: Any) -> Recipe:
        return Recipe.parse({
            "stage": 1, "vision_qformer": str(tiny_vision), "llm": str(tiny_llm), "template": "pocket",
            "data": str(tiny_pairs), "feature_cache": root / "features", "output": root / name, "device": "cpu",
            "dtype": "float32", "steps": 6, "batch_size": 8, "learning_rate": 0.01, "save_every": 3, **values,
        })  # fmt: skip

    streamed = {"stream": True, "shuffle_buffer": 16}
    train(recipe("one"), progress=False)
    train(recipe("stream of one", **streamed), progress=False)
    two = [
        recipe("two", feature_cache=root / "features-of-two"),
        recipe("accumulated", gradient_accumulation_steps=2),
        recipe("sharded", shard_llm=True, trackers=["tensorboard"]),
        recipe("odd", batch_size=7),
        recipe("stream", **streamed, workers=2, gradient_accumulation_steps=2),
    ]
    files = []
    for each in two:
        files.append(root / f"{each.output.name}.yaml")
        files[-1].write_text(each.to_yaml())
    for port in range(20_000 + os.getpid() % 10_000, 32_000):  # below those that are given out by chance meanwhile
        with contextlib.suppress(UserError), listen("127.0.0.1", port):
            break
    # The line that docs/training.md gives for two machines.
    line = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    script = Path(__file__).with_name("run_recipes.py")
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *line, "--node-rank", str(rank), script, *files],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [machine.communicate(timeout=600)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()
    assert [machine.returncode for machine in machines] == [0, 0], told
    return root, told[0]


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["two", "accumulated", "sharded", "stream"])
def test_two_processes_train_as_one(runs: tuple[Path, str], name: str) -> None:
    """Gradients summed over both, in parts (accumulation), and through an LLM of which each holds a half (FSDP)."""
    root, _ = runs
    one = "stream of one" if name == "stream" else "one"
    assert losses(root / name) == pytest.approx(losses(root / one), abs=1e-5)
    projections = [load_file(root / each / "alignment" / "projection.safetensors") for each in (one, name)]
    for key, tensor in projections[0].items():
        assert (projections[1][key] - tensor).abs().max() < 1e-4


def test_figures_of_two_processes_go_to_a_tracker_once(runs: tuple[Path, str]) -> None:
    """And the run goes on when the tracker has ended: processes still say to each other what was left out."""
    tracked = [json.loads(line) for line in (runs[0] / "sharded" / "minigpt4.jsonl").read_text().splitlines()]
    assert tracked == losses(runs[0] / "sharded")


def test_a_batch_that_does_not_come_out_even(runs: tuple[Path, str]) -> None:
    problem = "batch_size 7 cannot be divided over 2 processes x 1 gradient_accumulation_steps; give a multiple of 2"
    assert problem in runs[1]
    assert not (runs[0] / "odd").exists()


def test_what_all_would_say_is_said_once(runs: tuple[Path, str], tmp_path: Path) -> None:
    recipe = Recipe.load(runs[0] / "stream.yaml", [f"data={tmp_path / 'nowhere'}", f"output={tmp_path / 'out'}"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "minigpt4"]
    result = subprocess.run(
        [*launch, "train", tmp_path / "recipe.yaml"], capture_output=True, text=True, timeout=900, check=False
    )
    assert result.returncode != 0
    told = [line for line in result.stderr.splitlines() if "nowhere" in line]
    assert len(told) == 1, result.stderr
    assert told[0].startswith("minigpt4: data ")
