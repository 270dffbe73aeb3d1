"""Text from outside on a terminal: escape sequences and forged lines are shown, and do nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from commands import run
from minigpt4.telling import shown

NAME = "x\x1b]0;owned\x07\x9b31m\r\nminigpt4: all is well\u202egpj.png"
ESCAPED = r"x\x1b]0;owned\x07\x9b31m\r\nminigpt4: all is well\u202egpj.png"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NAME, ESCAPED),
        ("Größe 你好 👩‍🚀 e\u0301 \\n", "Größe 你好 👩‍🚀 e\u0301 \\n"),
        ("\x00\t\x7f\x85\u2028\u2029\u2066\u200f\udc9b", r"\x00\t\x7f\x85\u2028\u2029\u2066\u200f\udc9b"),
    ],
)
def test_only_what_acts_on_a_terminal_is_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_laid_out_text_keeps_its_lines() -> None:
    assert shown("a\n\tb\r\x1b", lines=True) == "a\n\tb\\r\\x1b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    (folder / "pictures").mkdir()
    (folder / "pictures" / NAME).write_bytes(b"not an image")
    Image.new("RGB", (8, 8)).save(folder / "good.png")
    rows = [{"image": f"pictures/{NAME}", "caption": "a cat"}, {"image": "good.png", "caption": "a cat"}]
    (folder / f"{NAME}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text('base: pocket-stage1\n"k\\e]0;owned\\a\\nminigpt4: all is well": 1\n')
    return folder


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["generate", "pocket", "--images", "pictures", "--prompt", "x", "--out", "out.jsonl"], ESCAPED),  # a log line
        (["chat", "pocket", f"pictures/{NAME}"], ESCAPED),  # a mistake
        (["chat", NAME, "good.png"], ESCAPED),
        (["train", "recipe.yaml"], r"k\x1b]0;owned\x07\nminigpt4: all is well"),
        (["data", "inspect", f"{NAME}.jsonl"], "unreadable image"),  # a table
        (["curate", "describe", "project", "--images", "pictures"], ESCAPED.removesuffix(".png")),
    ],
)
def test_names_reach_no_terminal_as_commands(folder: Path, command: list[str], told: str) -> None:
    done = run(*command, cwd=folder)
    said = done.stdout + done.stderr
    assert told in said
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(said)
    assert "\nminigpt4: all is well" not in said
