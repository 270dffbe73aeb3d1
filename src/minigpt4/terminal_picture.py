"""A picture in the terminal: as itself where it can be (Kitty's or iTerm2's protocol), else in coloured blocks."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

#: At most so many cells. A cell is taken to be twice as high as wide.
COLUMNS, ROWS = 48, 20


def show(image: Image.Image) -> None:
    """Print the picture, small, to a terminal on standard output; nothing if that has no colours."""
    console = Console()
    if console.color_system is None:
        return
    columns, rows = cells(image, min(COLUMNS, console.width), ROWS)
    how = protocol(os.environ)
    if how == "blocks":
        console.print(blocks(image, columns, rows))
    else:
        sys.stdout.write((kitty if how == "kitty" else iterm)(image, columns, rows) + "\n")
        sys.stdout.flush()


def protocol(environment: Mapping[str, str]) -> str:
    """`kitty`, `iterm` or `blocks`: what the terminal of this environment understands."""
    program = environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or environment.get("TERM", "").startswith(("screen", "tmux")):
        return "blocks"  # they pass neither on
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-kitty" or program == "ghostty":
        return "kitty"
    return "iterm" if program in ("iTerm.app", "WezTerm") else "blocks"


def cells(image: Image.Image, columns: int, rows: int) -> tuple[int, int]:
    """The largest (columns, rows) within these in which the picture keeps its shape."""
    width, height = image.size
    scale = min(columns / width, 2 * rows / height)
    return max(1, round(width * scale)), max(1, round(height * scale / 2))


def blocks(image: Image.Image, columns: int, rows: int) -> Text:
    """Half-blocks: each cell shows two pixels, one above the other, as its foreground and background."""
    small = image.convert("RGB").resize((columns, 2 * rows))
    pixels = [[Color.from_rgb(*small.getpixel((x, y))) for x in range(columns)] for y in range(2 * rows)]  # type: ignore[misc]
    text = Text()
    for above, below in zip(pixels[::2], pixels[1::2], strict=True):
        for top, bottom in zip(above, below, strict=True):
            text.append("\u2580", Style(color=top, bgcolor=bottom))
        text.append("\n")
    return text


def kitty(image: Image.Image, columns: int, rows: int) -> str:
    """The picture in Kitty's graphics protocol: a PNG, in pieces of 4,096 characters."""
    data = _png(image)
    pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    head = f"a=T,f=100,q=2,c={columns},r={rows},"
    return "".join(
        f"\x1b_G{head if i == 0 else ''}m={int(i < len(pieces) - 1)};{piece}\x1b\\" for i, piece in enumerate(pieces)
    )


def iterm(image: Image.Image, columns: int, rows: int) -> str:
    """The picture in iTerm2's protocol for inline images."""
    return f"\x1b]1337;File=inline=1;width={columns};height={rows}:{_png(image)}\a"


def _png(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((800, 800))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
