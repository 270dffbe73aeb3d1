from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from formats import FORMATS, tars
from minigpt4.cli import app
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.training.features import FeatureCache, features_fingerprint


def run(*arguments: object) -> tuple[int, str, str]:
    """Exit code, what was printed, and what was told on stderr."""
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_inspect_prints_and_draws(tmp_path: Path) -> None:
    source = FORMATS["csv"](tmp_path / "photos", range(30))
    code, printed, _ = run("inspect", source, "--out", tmp_path / "sheet.png", "--limit", 20, "--model", "pocket")
    assert code == 0
    assert "no problems\nwords that the LLM has in three pieces or more: " in printed
    assert "pairs looked at: 20 of 30\n" in printed
    assert printed.endswith(f"\ncontact sheet: {tmp_path / 'sheet.png'}\n")
    assert Image.open(tmp_path / "sheet.png").size[0] == 960


@pytest.mark.parametrize("command", ["inspect", "features"])
def test_what_is_missing_is_one_line(command: str, tmp_path: Path) -> None:
    more = ["--model", "none", "--out", tmp_path / "out"] if command == "features" else []
    code, printed, told = run(command, tmp_path / "{00000..00002}.tar", *more)
    assert (code, printed) == (2, "")
    assert "3 of 3 shards are missing" in told
    assert told.count("\n") == 1


def test_download_says_where_the_lists_are() -> None:
    code, printed, _ = run("download")
    assert code == 0
    assert "ccs_synthetic_filtered_large.json" in printed
    assert "laion_synthetic_filtered_large.json" in printed


def test_features_are_cached_once_without_the_llm(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    llm = shutil.copytree(tiny_llm, tmp_path / "llm")
    model = MiniGPT4.assemble(tiny_vision, llm, template="pocket", device="cpu", dtype="float32")
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(llm)
    arguments = (tars(tmp_path / "tars", range(20)), "--model", tmp_path / "model", "--out", tmp_path / "cache")
    code, printed, _ = run("features", *arguments, "--dtype", "float32")
    assert (code, printed.partition(";")[0]) == (0, "20 pairs, 20 new images encoded")
    assert run("features", *arguments, "--dtype", "float32")[1].startswith("20 pairs, 0 new images encoded")
    (directory,) = (tmp_path / "cache").iterdir()
    assert directory.name == features_fingerprint(model)
    assert len(FeatureCache(tmp_path / "cache", directory.name)) == 20
