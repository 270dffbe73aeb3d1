"""Draws the signs of the page's sheet, as strokes: `python tools/page_signs.py` writes the page's `signs.json`.

They are lines of the pen that draws the pocket world's website drafts, so that what is placed is what the pocket model
was trained to read. Lengths are fractions of the sheet's side, from the sign's upper left corner.
"""

from __future__ import annotations

import json
import math
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pocket.world.brush import Point
from pocket.world.draft import draw_element
from pocket.world.handwriting import Pen, _letter
from pocket.world.world import ELEMENTS

PLACE = Path(__file__).parents[1] / "src" / "minigpt4" / "app" / "page" / "assets" / "signs.json"
#: Width and height of each, and the seed of its pen, of which one was taken that draws the sign plainly.
SIGNS = {
    "navigation": (0.79, 0.07, 2), "image": (0.6, 0.2, 0), "text": (0.79, 0.118, 0), "list": (0.79, 0.16, 0),
    "input": (0.79, 0.085, 0), "button": (0.38, 0.095, 0),
}  # fmt: skip


class _Recorder(Pen):
    def __init__(self, seed: int) -> None:
        super().__init__(Image.new("RGB", (8, 8)), random.Random(seed), (0, 0, 0), 0.01)
        self.lines: list[list[Point]] = []

    def curve(self, points: Sequence[Point], weight: float = 1.0) -> None:
        self.lines.append(_corners(points, 0.005))


def _corners(line: Sequence[Point], off: float) -> list[Point]:
    """The fewest points of a line from which it is nowhere further away than `off` (Douglas and Peucker's)."""
    (x0, y0), (x1, y1) = line[0], line[-1]
    length = math.hypot(x1 - x0, y1 - y0)
    away = [
        abs((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length if length else math.hypot(x - x0, y - y0)
        for x, y in line
    ]
    furthest = max(range(len(line)), key=away.__getitem__)
    if away[furthest] <= off:
        return [line[0], line[-1]]
    return [*_corners(line[: furthest + 1], off)[:-1], *_corners(line[furthest:], off)]


def _rounded(lines: Sequence[Sequence[Point]], digits: int) -> list[list[float]]:
    return [[round(value, digits) for point in line for value in point] for line in lines]


def signs() -> dict[str, Any]:
    """Each sign's height and lines, and each letter's width and lines on the font's grid; a line is x, y, x, y, ..."""
    drawn = {}
    for name in ELEMENTS:
        width, height, seed = SIGNS[name]
        pen = _Recorder(seed)
        draw_element(pen, name, (0.0, 0.0, width, height))
        drawn[name] = {"height": height, "lines": _rounded(pen.lines, 4)}
    letters = {}
    for letter in string.ascii_letters:
        lines, width = _letter(letter)
        letters[letter] = {"width": round(width, 2), "lines": _rounded([_corners(line, 0.3) for line in lines], 2)}
    return {"signs": drawn, "letters": letters}


if __name__ == "__main__":
    PLACE.write_text(json.dumps(signs(), separators=(",", ":")) + "\n")
