"""Writing by hand: a stroke font of our own and pen strokes that wobble. Knows letters and lines, no page."""

import random
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw

from pocket.world.brush import RGB, Point, stroke

# One string per letter: strokes separated by "|", each a line of points "xy" in hexadecimal. Rows: 0 is the top of
# capitals, 4 the top of small letters, a the baseline, d the lowest point. "-" is drawn straight, "~" curved.
_LETTERS = {
    "A": "-0a 30 6a|-17 57", "B": "-00 0a|~00 30 52 35 05|~05 45 67 4a 0a", "C": "~61 30 03 07 3a 69",
    "D": "-00 0a|~00 30 63 67 3a 0a", "E": "-60 00 0a 6a|-05 45", "F": "-60 00 0a|-05 45",
    "G": "~61 30 03 07 3a 69 66|-66 36", "H": "-00 0a|-60 6a|-05 65", "I": "-10 50|-30 3a|-1a 5a",
    "J": "~50 57 4a 1a 08|-20 60", "K": "-00 0a|-50 05 5a", "L": "-00 0a 5a", "M": "-0a 00 46 80 8a",
    "N": "-0a 00 6a 60", "O": "~30 03 07 3a 67 63 30", "P": "-0a 00|~00 40 62 45 05",
    "Q": "~30 03 07 3a 67 63 30|-47 7b", "R": "-0a 00|~00 40 52 45 05|-25 6a", "S": "~61 30 02 35 68 3a 09",
    "T": "-00 60|-30 3a", "U": "~00 07 3a 67 60", "V": "-00 3a 60", "W": "-00 2a 43 6a 80", "X": "-00 6a|-60 0a",
    "Y": "-00 35 60|-35 3a", "Z": "-00 60 0a 6a",
    "a": "~55 24 07 2a 58|-54 5a", "b": "-00 0a|~06 34 57 3a 09", "c": "~45 24 07 2a 49",
    "d": "~55 24 07 2a 58|-50 5a", "e": "-07 57|~57 44 24 07 2a 59", "f": "~41 20 13 1a|-04 44",
    "g": "~55 24 07 2a 58|~54 5b 3d 0c", "h": "-00 0a|~06 34 56 5a", "i": "-14 1a|-11 12",
    "j": "~34 3b 1d 0c|-31 32", "k": "-00 0a|-44 07 4a", "l": "-10 1a", "m": "-04 0a|~06 24 46 4a|~46 64 86 8a",
    "n": "-04 0a|~06 34 56 5a", "o": "~24 06 08 2a 48 46 24", "p": "-04 0d|~06 34 57 3a 09",
    "q": "~55 24 07 2a 58|-54 5d", "r": "-04 0a|~06 24 45", "s": "~45 24 06 48 2a 09", "t": "~11 19 3a 49|-04 44",
    "u": "~04 08 2a 58|-54 5a", "v": "-04 2a 54", "w": "-04 2a 45 6a 84", "x": "-04 5a|-54 0a", "y": "-04 2a|-54 1d",
    "z": "-04 54 0a 5a",
}  # fmt: skip
_GAP = 1.9  # between letters, in columns of the font's grid


def _smooth(points: Sequence[Point], steps: int = 5) -> list[Point]:
    """A Catmull-Rom curve through the points."""
    padded = [points[0], *points, points[-1]]
    curve = []
    for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        for k in range(steps):
            t = k / steps
            curve.append((_spline(a[0], b[0], c[0], d[0], t), _spline(a[1], b[1], c[1], d[1], t)))
    return [*curve, points[-1]]


def _spline(a: float, b: float, c: float, d: float, t: float) -> float:
    return b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))


@lru_cache(maxsize=64)
def _letter(character: str) -> tuple[tuple[tuple[Point, ...], ...], float]:
    """The strokes of a letter on the font's grid, and its width."""
    strokes = []
    for text in _LETTERS[character].split("|"):
        points = [(float(int(pair[0], 16)), float(int(pair[1], 16))) for pair in text[1:].split()]
        strokes.append(tuple(_smooth(points) if text[0] == "~" else points))
    width = max(x for line in strokes for x, _ in line)
    left = min(x for line in strokes for x, _ in line)
    return tuple(tuple((x - left, y) for x, y in line) for line in strokes), width - left


class Pen:
    """A pen on a square RGB canvas. All positions and widths are fractions of the canvas's side."""

    def __init__(self, canvas: Image.Image, rng: random.Random, colour: RGB, width: float) -> None:
        self.rng, self.colour, self.width = rng, colour, width
        self._side = canvas.width
        self._draw = ImageDraw.Draw(canvas)

    def curve(self, points: Sequence[Point], weight: float = 1.0) -> None:
        """One stroke exactly through the points; pressure varies a little from stroke to stroke."""
        width = self.width * weight * self.rng.uniform(0.88, 1.15) * self._side
        stroke(self._draw, [(x * self._side, y * self._side) for x, y in points], width, self.colour)

    def straight(self, start: Point, end: Point, weight: float = 1.0) -> None:
        """A line as a hand draws it: ends a little off, slightly bent."""
        wobble = self.rng.uniform
        (x0, y0), (x1, y1) = start, end
        x0, y0, x1, y1 = (v + wobble(-0.006, 0.006) for v in (x0, y0, x1, y1))
        bend_x, bend_y = wobble(-0.006, 0.006), wobble(-0.006, 0.006)
        middle = ((x0 + x1) / 2 + bend_x, (y0 + y1) / 2 + bend_y)
        self.curve(_smooth([(x0, y0), middle, (x1, y1)], 4), weight)

    def frame(self, left: float, top: float, right: float, bottom: float, weight: float = 1.0) -> None:
        """A rectangle of four strokes."""
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for start, end in zip(corners, corners[1:], strict=False):
            self.straight(start, end, weight)

    def wave(self, left: float, right: float, y: float, height: float, weight: float = 1.0) -> None:
        """A wavy line that stands for words."""
        points, x, up = [], left, 1
        while x < right:
            points.append((x, y + up * height * self.rng.uniform(0.5, 1.0) / 2))
            x, up = x + height * self.rng.uniform(0.55, 0.9), -up
        self.curve(_smooth([*points, (right, y)], 3), weight)

    def write(self, text: str, left: float, top: float, right: float, bottom: float) -> None:
        """Writes a word of ASCII letters as large as fits into the given space."""
        letters = [_letter(character) for character in text]
        columns = sum(width for _, width in letters) + _GAP * (len(letters) - 1)
        rows = max(y for strokes, _ in letters for line in strokes for _, y in line)
        unit_y = (bottom - top) / (rows + 0.6)
        unit_x = min((right - left) / (columns + 1), 1.45 * unit_y)
        unit_y = min(unit_y, 1.5 * unit_x)
        x = (left + right - columns * unit_x) / 2
        y = (top + bottom - rows * unit_y) / 2
        slant = self.rng.uniform(-0.02, 0.14)
        for strokes, width in letters:
            lift, tilt = self.rng.uniform(-0.3, 0.3), slant + self.rng.uniform(-0.05, 0.05)
            scale = self.rng.uniform(0.95, 1.06)
            for line in strokes:
                points = [
                    (x + (px * scale + (7 - py) * tilt) * unit_x, y + ((py - 10) * scale + 10 + lift) * unit_y)
                    for px, py in line
                ]
                self.curve(points, 1.25)
            x += (width + _GAP) * unit_x
