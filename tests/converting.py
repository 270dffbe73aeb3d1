"""The released files of `tests/golden`, and `minigpt4 convert` on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner, Result

from minigpt4.cli import app
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.convert import convert as convert_files

FILES = Path(__file__).parent / "golden" / "released"
SIZES: dict[str, int] = json.loads((FILES / "expected.json").read_text())["sizes"]
VISION_SIDE = {"vision": FILES / "eva_vit.pth", "qformer": FILES / "blip2_pretrained.pth"}
HEADS = {"vision_heads": SIZES["vision_heads"], "qformer_heads": SIZES["qformer_heads"]}


def run(*arguments: object) -> Result:
    """A command in this process, for one of its own takes seconds to start; `test_cli.py` starts real ones."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def options(**changes: Any) -> list[object]:
    """The options of `minigpt4 convert` for the fixtures, with some changed, or left out if None."""
    given = {
        **VISION_SIDE,
        **HEADS,
        "projection": FILES / "pretrained.pth",
        "llm": FILES / "llm",
        "template": "vicuna_v0",
        **changes,
    }
    return [text for key, value in given.items() if value is not None for text in (f"--{key.replace('_', '-')}", value)]


def convert(out: Path, **changes: Any) -> MiniGPT4:
    given = {**VISION_SIDE, **HEADS, "projection": FILES / "pretrained.pth", "llm": FILES / "llm", **changes}
    convert_files(out=out, template="vicuna_v0", **given)
    return MiniGPT4.from_pretrained(out, device="cpu")


def answers(model: MiniGPT4) -> list[str]:
    return model.generate([FILES / "0.png", FILES / "1.png"], ["What is it?"] * 2, do_sample=False, max_new_tokens=8)


def same_weights(model: MiniGPT4, other: MiniGPT4) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
