"""What things stand on and before: a scene's background, a product's backdrop, a table, a sheet of paper.

All are muted, so that the things stand out.
"""

import math
import random
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from pocket.world.brush import RGB, mix, soft_ellipse, stroke

#: Upper and lower part of each surface, and where they meet: (colour at the top, above the line, below it, at the
#: bottom, height of the line).
_GROUNDS: dict[str, tuple[RGB, RGB, RGB, RGB, float]] = {
    "meadow": ((160, 204, 236), (222, 238, 244), (176, 212, 138), (136, 186, 104), 0.24),
    "beach": ((170, 218, 240), (220, 242, 246), (244, 232, 200), (226, 206, 164), 0.13),
    "desert": ((246, 206, 150), (252, 232, 196), (232, 192, 142), (206, 154, 104), 0.24),
    "street": ((190, 200, 212), (216, 222, 228), (160, 160, 164), (132, 132, 138), 0.3),
    "room": ((232, 214, 204), (224, 202, 192), (186, 146, 112), (158, 118, 86), 0.3),
    "night": ((34, 40, 82), (74, 80, 128), (68, 84, 104), (46, 58, 78), 0.3),
    "marble": ((214, 216, 222), (232, 233, 237), (228, 229, 233), (196, 198, 206), 0.62),
    "wood": ((190, 178, 166), (212, 200, 188), (196, 152, 108), (158, 112, 72), 0.6),
    "velvet": ((96, 62, 84), (122, 80, 106), (134, 90, 116), (92, 58, 80), 0.64),
    "sand": ((196, 216, 220), (222, 230, 226), (232, 212, 172), (204, 178, 132), 0.58),
    "table": ((168, 128, 94), (164, 124, 90), (160, 120, 86), (146, 106, 76), 0.5),
    "paper": ((250, 246, 232), (248, 243, 228), (247, 242, 226), (240, 233, 214), 0.5),
}


@lru_cache(maxsize=64)
def _ground(name: str, side: int) -> Image.Image:
    """The two gradients of a surface, with the corners a little darker."""
    top, above, below, bottom, line = _GROUNDS[name]
    y = np.linspace(0, 1, side, dtype=np.float32)
    stops = [0, line - 0.004, line + 0.004, 1]
    column = np.stack([np.interp(y, stops, [c[k] for c in (top, above, below, bottom)]) for k in range(3)], -1)
    centred = np.linspace(-1, 1, side, dtype=np.float32)
    strength = {"paper": 0.035, "street": 0.05, "room": 0.07}.get(name, 0.06 if line < 0.5 else 0.13)
    vignette = 1 - strength * (centred[:, None] ** 2 + centred[None, :] ** 2)
    pixels = np.clip(column[:, None, :] * vignette[..., None], 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


class _Surface:
    """A canvas that starts as one of the grounds and is drawn on in fractions of its side."""

    def __init__(self, name: str, side: int) -> None:
        self.canvas = _ground(name, side).copy()
        self.side = side
        self._draw = ImageDraw.Draw(self.canvas)

    def polygon(self, points: list[tuple[float, float]], fill: RGB) -> None:
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill)

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: RGB) -> None:
        self._draw.rectangle([v * self.side for v in (left, top, right, bottom)], fill)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float, fill: RGB) -> None:
        self._draw.ellipse([v * self.side for v in (cx - rx, cy - ry, cx + rx, cy + ry)], fill)

    def line(self, points: list[tuple[float, float]], width: float, fill: RGB) -> None:
        stroke(self._draw, [(x * self.side, y * self.side) for x, y in points], width * self.side, fill)

    def soft(self, cx: float, cy: float, rx: float, ry: float, fill: RGB, strength: int) -> None:
        box = [v * self.side for v in (cx - rx, cy - ry, cx + rx, cy + ry)]
        soft_ellipse(self.canvas, box, fill, strength)


def _ridge(rng: random.Random, height: float, rise: float) -> list[tuple[float, float]]:
    """A soft skyline from the left to the right border."""
    phase, length = rng.uniform(0, math.tau), rng.uniform(5, 9)
    return [(k / 16, height - rise * (0.5 + 0.5 * math.sin(phase + length * k / 16))) for k in range(17)]


def _clouds(s: _Surface, rng: random.Random, fill: RGB) -> None:
    for _ in range(2):
        x, y = rng.uniform(0.08, 0.92), rng.uniform(0.03, 0.1)
        for dx, r in ((-0.05, 0.025), (0, 0.035), (0.05, 0.025)):
            s.ellipse(x + dx, y, 0.045, r, fill)


def _meadow(s: _Surface, rng: random.Random) -> None:
    _clouds(s, rng, (244, 249, 252))
    s.polygon([*_ridge(rng, 0.24, 0.08), (1, 0.27), (0, 0.27)], (158, 198, 140))
    s.polygon([*_ridge(rng, 0.27, 0.03), (1, 0.3), (0, 0.3)], (170, 208, 136))
    for _ in range(34):
        x, y = rng.random(), rng.uniform(0.3, 0.99)
        s.line([(x - 0.008, y - 0.02), (x, y), (x + 0.008, y - 0.02)], 0.005, (124, 176, 96))
    for _ in range(10):
        x, y = rng.random(), rng.uniform(0.32, 0.98)
        s.ellipse(x, y, 0.007, 0.007, (240, 240, 222))


def _beach(s: _Surface, rng: random.Random) -> None:
    _clouds(s, rng, (250, 252, 253))
    shore = _ridge(rng, 0.38, 0.04)
    s.polygon([(0, 0.13), (1, 0.13), *reversed([(x, y + 0.016) for x, y in shore])], (250, 250, 246))
    s.polygon([(0, 0.13), (1, 0.13), *reversed(shore)], (134, 196, 212))
    s.rectangle(0, 0.13, 1, 0.19, (112, 176, 204))
    for _ in range(9):
        x, y = rng.random(), rng.uniform(0.17, 0.31)
        s.line([(x, y), (x + 0.03, y - 0.006), (x + 0.06, y)], 0.006, (196, 230, 236))
    for _ in range(26):
        x, y = rng.random(), rng.uniform(0.44, 0.99)
        s.ellipse(x, y, 0.006, 0.004, (214, 190, 148))


def _desert(s: _Surface, rng: random.Random) -> None:
    x = rng.uniform(0.15, 0.85)
    s.soft(x, 0.1, 0.15, 0.15, (255, 250, 226), 220)
    s.ellipse(x, 0.1, 0.05, 0.05, (255, 246, 214))
    s.polygon([*_ridge(rng, 0.25, 0.07), (1, 0.27), (0, 0.27)], (222, 178, 128))
    for height in (0.34, 0.52, 0.72, 0.9):
        ridge = _ridge(rng, height, 0.06)
        lower = [(x, y + 0.045) for x, y in reversed(ridge)]
        s.polygon([*ridge, *lower], mix((240, 206, 158), (214, 166, 114), height))
        s.line(ridge, 0.006, (246, 218, 176))
    for x in (rng.uniform(0.03, 0.3), rng.uniform(0.7, 0.97)):
        for line in ([(x, 0.16), (x, 0.28)], [(x - 0.03, 0.19), (x - 0.03, 0.225), (x, 0.23)]):
            s.line(line, 0.014, (132, 150, 108))
        s.line([(x + 0.03, 0.17), (x + 0.03, 0.21), (x, 0.215)], 0.014, (132, 150, 108))


def _street(s: _Surface, rng: random.Random) -> None:
    x = -0.02
    while x < 1:
        width, top = rng.uniform(0.12, 0.2), rng.uniform(0.02, 0.14)
        wall = mix((196, 176, 168), (170, 178, 190), rng.random())
        s.rectangle(x, top, x + width - 0.008, 0.27, wall)
        for row in range(3):
            for column in range(3):
                wx, wy = x + width * (0.14 + 0.27 * column), top + 0.03 + 0.055 * row
                if wy < 0.23:
                    s.rectangle(wx, wy, wx + width * 0.15, wy + 0.028, (228, 226, 206))
        x += width
    s.rectangle(0, 0.27, 1, 0.33, (198, 196, 192))
    s.rectangle(0, 0.33, 1, 0.338, (120, 120, 126))
    shift = rng.uniform(0, 0.2)
    for k in range(-1, 6):
        left = shift + 0.2 * k
        s.polygon([(left, 0.63), (left + 0.11, 0.63), (left + 0.105, 0.66), (left - 0.005, 0.66)], (222, 220, 210))
    s.rectangle(0, 0.93, 1, 1, (190, 188, 184))
    s.rectangle(0, 0.92, 1, 0.93, (112, 112, 118))


def _room(s: _Surface, rng: random.Random) -> None:
    for k in range(14):
        s.rectangle(k / 13 - 0.008, 0, k / 13 + 0.008, 0.285, (236, 220, 212))
    x = rng.uniform(0.12, 0.3) if rng.random() < 0.5 else rng.uniform(0.7, 0.88)
    s.rectangle(x - 0.105, 0.02, x + 0.105, 0.21, (250, 248, 244))
    s.rectangle(x - 0.09, 0.035, x + 0.09, 0.195, (190, 218, 234))
    s.rectangle(x - 0.008, 0.035, x + 0.008, 0.195, (250, 248, 244))
    s.rectangle(0, 0.28, 1, 0.31, (246, 238, 230))
    for k in range(-7, 8):
        s.line([(0.5 + k * 0.1, 0.312), (0.5 + k * 0.2, 1)], 0.006, (150, 112, 82))
    s.ellipse(0.5, 0.7, 0.42, 0.22, (206, 186, 170))
    s.ellipse(0.5, 0.7, 0.38, 0.19, (220, 204, 188))


def _night(s: _Surface, rng: random.Random) -> None:
    for _ in range(26):
        x, y, r = rng.random(), rng.uniform(0, 0.24), rng.uniform(0.003, 0.006)
        s.ellipse(x, y, r, r, (226, 228, 244))
    x = rng.uniform(0.1, 0.9)
    s.soft(x, 0.09, 0.16, 0.16, (210, 214, 240), 120)
    s.ellipse(x, 0.09, 0.045, 0.045, (236, 236, 222))
    s.ellipse(x + 0.02, 0.08, 0.037, 0.037, (66, 74, 120))
    s.polygon([*_ridge(rng, 0.3, 0.08), (1, 0.33), (0, 0.33)], (52, 62, 96))
    s.polygon([*_ridge(rng, 0.36, 0.03), (1, 0.4), (0, 0.4)], (62, 76, 98))
    for _ in range(26):
        x, y = rng.random(), rng.uniform(0.4, 0.99)
        s.line([(x - 0.008, y - 0.018), (x, y), (x + 0.008, y - 0.018)], 0.005, (84, 100, 118))


_SCENERY = {
    "meadow": _meadow, "beach": _beach, "desert": _desert, "street": _street, "room": _room, "night": _night,
}  # fmt: skip


def background(name: str, side: int, rng: random.Random) -> Image.Image:
    """The scenery of a scene, RGB, `side` x `side`."""
    surface = _Surface(name, side)
    _SCENERY[name](surface, rng)
    return surface.canvas


def backdrop(name: str, side: int, rng: random.Random) -> Image.Image:
    """The studio of a product shot under its spot light, RGB, `side` x `side`."""
    s = _Surface(name, side)
    line = _GROUNDS[name][4]
    if name == "marble":
        for _ in range(9):
            x, y = rng.random(), rng.uniform(0, 1)
            points = [(x, y)]
            for _ in range(5):
                x, y = x + rng.uniform(0.03, 0.12), y + rng.uniform(-0.06, 0.08)
                points.append((x, y))
            s.line(points, rng.uniform(0.004, 0.012), mix((176, 180, 192), (206, 208, 216), rng.random()))
    elif name == "wood":
        for k in range(4):
            top = line + 0.1 * k
            s.rectangle(0, top, 1, top + 0.006, (128, 88, 56))
            for _ in range(5):
                x, y = rng.uniform(-0.1, 0.9), top + rng.uniform(0.02, 0.09)
                s.line([(x, y), (x + 0.1, y + 0.004), (x + 0.25, y)], 0.005, (150, 108, 70))
        for k in range(7):
            s.rectangle(k / 6 - 0.004, 0, k / 6 + 0.004, line - 0.006, (180, 168, 156))
    elif name == "velvet":
        for k in range(9):
            x, sway = (k + rng.uniform(-0.25, 0.25)) / 8, rng.uniform(-0.05, 0.05)
            fold = [(x, 0), (x + sway, line * 0.5), (x - sway / 2, line)]
            s.line(fold, 0.03, (94, 60, 82))
            s.line([(px + 0.028, py) for px, py in fold], 0.018, (124, 82, 108))
    else:
        for k in range(7):
            y = line + 0.02 + 0.06 * k
            phase = rng.uniform(0, 6)
            wave = [(n / 14, y + 0.012 * math.sin(phase + n * 0.9)) for n in range(15)]
            s.line([(x, v + 0.012) for x, v in wave], 0.01, (198, 170, 122))
            s.line(wave, 0.01, (242, 226, 192))
    s.soft(0.42, 0.36, 0.6, 0.55, (255, 252, 240), 90)
    return s.canvas


def table(side: int, rng: random.Random) -> Image.Image:
    """A wooden table seen from above, RGB, `side` x `side`."""
    s = _Surface("table", side)
    shift = rng.uniform(0, 0.2)
    for k in range(6):
        y = shift + 0.2 * k
        s.rectangle(0, y, 1, y + 0.006, (112, 80, 56))
        for _ in range(3):
            x, v = rng.uniform(-0.1, 0.9), y + rng.uniform(-0.17, -0.03)
            s.line([(x, v), (x + 0.12, v + 0.005), (x + 0.3, v)], 0.005, (136, 98, 70))
    return s.canvas


def paper(side: int, rng: random.Random) -> Image.Image:
    """A sheet of paper, plain or faintly ruled, RGB, `side` x `side`."""
    s = _Surface("paper", side)
    if rng.random() < 0.5:
        shift = rng.uniform(0, 0.06)
        for k in range(17):
            y = shift + 0.06 * k
            s.rectangle(0, y, 1, y + 0.003, (222, 226, 226))
    return s.canvas
