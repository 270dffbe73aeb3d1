"""What the tests of curation share: a running server, texts, and the command line in real processes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

import commands
from commands import START
from minigpt4.curation.ledger import Ledger
from tiny import IMAGE_SIZE

COLOURS = ("red", "green", "blue", "orange", "purple")


def picture_file(number: int) -> bytes:
    """A PNG of a pattern of its own for every number, in the colour `COLOURS[number % 5]`."""
    pattern = Image.new("L", (4, 4))
    pattern.putdata([(97 * number + 53 * number * cell + 31 * cell * cell) % 256 for cell in range(16)])
    pattern = pattern.resize((IMAGE_SIZE, IMAGE_SIZE)).convert("RGB")
    image = Image.blend(pattern, Image.new("RGB", pattern.size, COLOURS[number % 5]), 0.3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


TEXTS = tuple(
    f"The picture shows a {COLOURS[i % 5]} ball in the room. The {COLOURS[i % 5]} ball number {i} is on the left."
    for i in range(12)
)


def add_texts(ledger: Ledger, folder: Path, texts: tuple[str, ...] = TEXTS) -> None:
    """Pictures and raw texts as `describe` would have recorded them."""
    names = [str(number) for number in range(len(texts))]
    assert not ledger.add_images([(name, folder / f"{name}.png") for name in names])
    settings = ledger.settings("describe", {"model": "by hand"})
    rows = [
        ((name, 0), 0, {"text": text, "tokens": 20, "continuations": 0, "ended": True})
        for name, text in zip(names, texts, strict=True)
    ]
    ledger.add("describe", settings, rows)


def command(*arguments: object) -> list[str]:
    """`minigpt4 curate ...` in a process of its own."""
    return [sys.executable, "-c", START, "curate", *map(str, arguments)]


def run(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return commands.run("curate", *arguments, **more)


def assert_one_line(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """A user's mistake: exit code 2, one line on stderr that holds all of `parts`."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("minigpt4: "), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for part in parts:
        assert part in result.stderr
