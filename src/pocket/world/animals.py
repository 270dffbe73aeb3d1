"""Animals that do something odd: each animal and each prop in a unit frame, and how the two share a box."""

import math
import random
from collections.abc import Callable

from PIL import Image

from pocket.world.brush import RGB, Brush, arc
from pocket.world.shapes import RUBBER, STEEL, WOOD

_GOLD: RGB = (232, 186, 60)
_EYE: RGB = (28, 26, 32)
_ROSE: RGB = (226, 130, 140)
_BEAK: RGB = (246, 160, 40)


def _eyes(b: Brush, left: float, right: float, y: float, size: float = 0.035) -> None:
    for x in (left, right):
        b.ellipse(x, y, size * 1.35, size * 1.5, (250, 250, 250))
        b.ellipse(x + 0.006, y, size, size * 1.15, _EYE)


def _cat(b: Brush) -> None:
    b.line([(0.74, 0.92), (0.94, 0.84), (0.97, 0.64), (0.88, 0.54)], 0.09, b.shade)
    b.polygon([*arc(0.5, 0.72, 0.28, 0.28, 180, 360, 14), (0.82, 1), (0.18, 1)])
    b.polygon([(0.18, 0.3), (0.16, 0.0), (0.44, 0.14)])
    b.polygon([(0.82, 0.3), (0.84, 0.0), (0.56, 0.14)])
    b.polygon([(0.22, 0.2), (0.21, 0.08), (0.34, 0.15)], _ROSE)
    b.polygon([(0.78, 0.2), (0.79, 0.08), (0.66, 0.15)], _ROSE)
    b.ellipse(0.5, 0.34, 0.34, 0.26)
    _eyes(b, 0.36, 0.64, 0.3, 0.045)
    b.polygon([(0.45, 0.4), (0.55, 0.4), (0.5, 0.45)], _ROSE)
    for side in (-1, 1):
        for dy in (-0.03, 0.05):
            b.line([(0.5 + side * 0.14, 0.43), (0.5 + side * 0.4, 0.43 + dy)], 0.016, b.ink)
        b.ellipse(0.5 + side * 0.13, 0.96, 0.1, 0.06, b.pale)
    b.line([(0.5, 0.45), (0.44, 0.5)], 0.02, b.ink)
    b.line([(0.5, 0.45), (0.56, 0.5)], 0.02, b.ink)


def _dog(b: Brush) -> None:
    b.line([(0.76, 0.86), (0.92, 0.74), (0.94, 0.62)], 0.09, b.shade)
    b.polygon([*arc(0.5, 0.74, 0.28, 0.26, 180, 360, 14), (0.8, 1), (0.2, 1)])
    b.ellipse(0.5, 0.74, 0.14, 0.14, b.pale)
    b.ellipse(0.5, 0.32, 0.29, 0.3)
    b.ellipse(0.17, 0.38, 0.12, 0.25, b.shade)
    b.ellipse(0.83, 0.38, 0.12, 0.25, b.shade)
    b.ellipse(0.5, 0.46, 0.19, 0.15, b.pale)
    _eyes(b, 0.38, 0.62, 0.26, 0.04)
    b.ellipse(0.5, 0.39, 0.075, 0.055, _EYE)
    b.line([(0.5, 0.42), (0.5, 0.5)], 0.022, _EYE)
    b.polygon([(0.44, 0.51), (0.56, 0.51), (0.55, 0.62), (0.5, 0.65), (0.45, 0.62)], _ROSE)
    for x in (0.35, 0.65):
        b.ellipse(x, 0.96, 0.11, 0.06, b.pale)


def _fish(b: Brush) -> None:
    b.polygon([(0.24, 0.52), (0.0, 0.22), (0.04, 0.52), (0.0, 0.86)], b.shade)
    b.polygon([(0.36, 0.3), (0.46, 0.02), (0.74, 0.08), (0.72, 0.3)], b.shade)
    b.polygon([(0.44, 0.74), (0.4, 0.98), (0.62, 0.94), (0.64, 0.72)], b.shade)
    b.ellipse(0.58, 0.52, 0.42, 0.31)
    for x, y in ((0.3, 0.5), (0.42, 0.38), (0.42, 0.62), (0.54, 0.5), (0.53, 0.7)):
        b.line(arc(x, y, 0.06, 0.08, -70, 70, 6), 0.03, b.pale)
    b.polygon([(0.5, 0.56), (0.38, 0.74), (0.58, 0.68)], b.ink)
    b.ellipse(0.8, 0.42, 0.085, 0.085, (250, 250, 250))
    b.ellipse(0.815, 0.425, 0.05, 0.05, _EYE)
    b.line(arc(0.95, 0.56, 0.1, 0.07, 80, 170, 8), 0.03, b.ink)


def _penguin(b: Brush) -> None:
    b.ellipse(0.36, 0.96, 0.13, 0.05, _BEAK)
    b.ellipse(0.64, 0.96, 0.13, 0.05, _BEAK)
    b.polygon([(0.26, 0.4), (0.06, 0.66), (0.12, 0.74), (0.3, 0.66)], b.shade)
    b.polygon([(0.74, 0.4), (0.94, 0.66), (0.88, 0.74), (0.7, 0.66)], b.shade)
    b.ellipse(0.5, 0.62, 0.3, 0.36)
    b.ellipse(0.5, 0.26, 0.24, 0.26)
    b.ellipse(0.5, 0.7, 0.18, 0.25, (252, 252, 250) if b.colour[2] < 236 else (216, 220, 230))
    _eyes(b, 0.41, 0.59, 0.2, 0.036)
    b.polygon([(0.4, 0.28), (0.6, 0.28), (0.5, 0.42)], _BEAK)


def _frog(b: Brush) -> None:
    b.ellipse(0.16, 0.8, 0.16, 0.17, b.shade)
    b.ellipse(0.84, 0.8, 0.16, 0.17, b.shade)
    b.ellipse(0.5, 0.74, 0.32, 0.24)
    b.ellipse(0.5, 0.78, 0.2, 0.16, b.pale)
    b.ellipse(0.5, 0.42, 0.46, 0.27)
    for x in (0.24, 0.76):
        b.ellipse(x, 0.17, 0.17, 0.16)
        b.ellipse(x, 0.16, 0.11, 0.105, (252, 252, 246))
        b.ellipse(x, 0.17, 0.055, 0.065, _EYE)
    b.line(arc(0.5, 0.38, 0.32, 0.16, 10, 170, 12), 0.035, b.ink)
    for x in (0.42, 0.58):
        b.ellipse(x, 0.34, 0.018, 0.014, b.ink)
    for x in (0.16, 0.34, 0.66, 0.84):
        b.ellipse(x, 0.965, 0.1, 0.04, b.shade)


def _rabbit(b: Brush) -> None:
    for x, lean in ((0.36, -0.06), (0.64, 0.06)):
        b.polygon([(x - 0.1, 0.42), (x - 0.1 + lean, 0.1), *arc(x + lean, 0.1, 0.1, 0.1, 180, 360, 8), (x + 0.1, 0.42)])
        b.polygon([(x - 0.045, 0.36), (x - 0.04 + lean, 0.12), (x + 0.04 + lean, 0.12), (x + 0.045, 0.36)], _ROSE)
    b.ellipse(0.8, 0.86, 0.11, 0.1, b.pale)
    b.ellipse(0.5, 0.8, 0.28, 0.2)
    b.ellipse(0.5, 0.82, 0.15, 0.13, b.pale)
    b.ellipse(0.5, 0.48, 0.27, 0.21)
    _eyes(b, 0.39, 0.61, 0.45, 0.036)
    b.ellipse(0.5, 0.53, 0.04, 0.03, _ROSE)
    b.rectangle(0.455, 0.59, 0.545, 0.66, (252, 252, 252))
    b.line([(0.5, 0.56), (0.5, 0.66)], 0.012, b.ink)
    for x in (0.34, 0.66):
        b.ellipse(x, 0.96, 0.14, 0.05, b.pale)


def _bicycle(b: Brush) -> None:
    for x in (0.2, 0.8):
        b.line(arc(x, 0.62, 0.17, 0.34, 0, 360, 28), 0.05, RUBBER)
        for angle in (0, 60, 120):
            dx, dy = 0.15 * math.cos(math.radians(angle)), 0.3 * math.sin(math.radians(angle))
            b.line([(x - dx, 0.62 - dy), (x + dx, 0.62 + dy)], 0.01, STEEL)
    frame = [(0.2, 0.62), (0.38, 0.2), (0.7, 0.2), (0.48, 0.66), (0.2, 0.62)]
    b.line(frame, 0.045, (60, 170, 170))
    b.line([(0.38, 0.2), (0.48, 0.66)], 0.045, (60, 170, 170))
    b.line([(0.8, 0.62), (0.68, 0.06), (0.84, 0.02)], 0.045, (60, 170, 170))
    b.line([(0.3, 0.14), (0.46, 0.14)], 0.06, RUBBER)
    b.ellipse(0.48, 0.66, 0.05, 0.1, STEEL)


def _guitar(b: Brush) -> None:
    wood = (206, 140, 70)
    b.line([(0.36, 0.58), (0.86, 0.2)], 0.09, WOOD)
    b.line([(0.86, 0.2), (0.97, 0.1)], 0.14, (84, 54, 34))
    b.ellipse(0.22, 0.68, 0.22, 0.3, wood)
    b.ellipse(0.4, 0.54, 0.15, 0.2, wood)
    b.ellipse(0.32, 0.6, 0.07, 0.1, RUBBER)
    b.line([(0.14, 0.74), (0.9, 0.17)], 0.014, (246, 236, 210))


def _umbrella(b: Brush) -> None:
    pink, cream, rim = (236, 128, 168), (252, 238, 240), 0.32
    b.line([(0.5, 0.05), (0.5, 0.9), *arc(0.57, 0.9, 0.07, 0.07, 180, 0, 6)], 0.04, (110, 74, 50))
    scallops = [arc(0.1 + 0.2 * k, rim, 0.1, 0.05, 0, -180, 6) for k in range(5)]
    b.polygon([*arc(0.5, rim, 0.5, 0.29, 180, 360, 20), *(p for k in (4, 3, 2, 1, 0) for p in scallops[k])], pink)
    for k in (1, 3):
        b.polygon([(0.5, rim - 0.29), *scallops[k]], cream)
    b.rectangle(0.48, 0, 0.52, 0.06, (110, 74, 50))


def _skateboard(b: Brush) -> None:
    for x in (0.22, 0.78):
        b.ellipse(x, 0.76, 0.085, 0.24, (236, 214, 120))
        b.ellipse(x, 0.76, 0.03, 0.09, RUBBER)
    b.polygon(
        [(0, 0.1), (0.06, 0.04), (0.16, 0.26), (0.84, 0.26), (0.94, 0.04), (1, 0.1), (0.9, 0.56), (0.1, 0.56)],
        (96, 78, 70),
    )
    b.line([(0.15, 0.32), (0.85, 0.32)], 0.03, (170, 140, 110))


def _laptop(b: Brush) -> None:
    b.polygon([(0.12, 0.02), (0.88, 0.02), (0.9, 0.76), (0.1, 0.76)], (176, 182, 194))
    b.polygon([(0.16, 0.07), (0.84, 0.07), (0.85, 0.7), (0.15, 0.7)], (198, 204, 214))
    b.ellipse(0.5, 0.38, 0.08, 0.11, (250, 252, 255))
    b.polygon([(0.06, 0.76), (0.94, 0.76), (1, 0.94), (0.98, 1), (0.02, 1), (0, 0.94)], (128, 134, 146))


def _trumpet(b: Brush) -> None:
    b.line([(0.02, 0.42), (0.7, 0.42)], 0.085, _GOLD)
    b.polygon([(0.62, 0.36), (0.84, 0.22), (0.98, 0.0), (0.98, 0.84), (0.84, 0.62), (0.62, 0.48)], _GOLD)
    b.ellipse(0.97, 0.42, 0.04, 0.42, (186, 134, 30))
    b.line([(0.22, 0.42), (0.22, 0.74), (0.56, 0.74), (0.56, 0.42)], 0.06, _GOLD)
    for x in (0.3, 0.39, 0.48):
        b.line([(x, 0.2), (x, 0.74)], 0.05, (250, 222, 130))
    b.ellipse(0.03, 0.42, 0.035, 0.12, (186, 134, 30))


def _bathtub(b: Brush) -> None:
    white, grey = (240, 244, 248), (190, 200, 212)
    for x in (0.2, 0.8):
        b.ellipse(x, 0.94, 0.08, 0.08, _GOLD)
    b.polygon([(0.04, 0.24), (0.96, 0.24), (0.86, 0.84), (0.76, 0.94), (0.24, 0.94), (0.14, 0.84)], white)
    b.polygon([(0.1, 0.6), (0.9, 0.6), (0.86, 0.84), (0.76, 0.94), (0.24, 0.94), (0.14, 0.84)], grey)
    b.rectangle(0, 0.14, 1, 0.3, white)
    b.rectangle(0, 0.26, 1, 0.3, grey)
    for x, r in ((0.08, 0.07), (0.2, 0.09), (0.33, 0.06), (0.68, 0.07), (0.82, 0.09), (0.93, 0.06)):
        b.ellipse(x, 0.1, r, r * 1.5, (222, 240, 250))


def _crown(b: Brush) -> None:
    b.polygon([(0, 0.1), (0.25, 0.5), (0.5, 0.0), (0.75, 0.5), (1, 0.1), (0.92, 1), (0.08, 1)], _GOLD)
    b.rectangle(0.08, 0.78, 0.92, 1, (186, 134, 30))
    for x, jewel in ((0.25, (60, 170, 170)), (0.5, (226, 90, 150)), (0.75, (60, 170, 170))):
        b.ellipse(x, 0.68, 0.075, 0.13, jewel)


_ANIMALS: dict[str, Callable[[Brush], None]] = {
    "cat": _cat, "dog": _dog, "fish": _fish, "penguin": _penguin, "frog": _frog, "rabbit": _rabbit,
}  # fmt: skip
_Frame = tuple[float, float, float, float]
#: For each prop: how it is drawn, the animal's part of the shared box, and the
#: prop's part. The prop is drawn over the animal.
_PROPS: dict[str, tuple[Callable[[Brush], None], _Frame, _Frame]] = {
    "bicycle": (_bicycle, (0.17, 0.0, 0.79, 0.68), (0.0, 0.48, 1.0, 1.0)),
    "guitar": (_guitar, (0.06, 0.0, 0.9, 1.0), (0.06, 0.5, 1.0, 1.0)),
    "umbrella": (_umbrella, (0.0, 0.28, 0.6, 1.0), (0.2, 0.0, 1.0, 0.92)),
    "skateboard": (_skateboard, (0.12, 0.0, 0.88, 0.84), (0.0, 0.78, 1.0, 1.0)),
    "laptop": (_laptop, (0.1, 0.0, 0.9, 0.88), (0.2, 0.56, 0.98, 1.0)),
    "trumpet": (_trumpet, (0.0, 0.04, 0.8, 1.0), (0.42, 0.38, 1.0, 0.74)),
    "bathtub": (_bathtub, (0.15, 0.0, 0.85, 0.76), (0.0, 0.5, 1.0, 1.0)),
    "crown": (_crown, (0.1, 0.19, 0.9, 1.0), (0.29, 0.0, 0.71, 0.27)),
}


def draw_odd(
    canvas: Image.Image, animal: str, prop: str, colour: RGB, box: tuple[float, float, float, float], rng: random.Random
) -> None:
    """Paints the animal, in its colour, with the prop into `box` (pixels)."""
    paint_prop, animal_frame, prop_frame = _PROPS[prop]
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    sway = rng.uniform(-0.015, 0.015) * width
    for paint, frame, paint_colour, shift in (
        (_ANIMALS[animal], animal_frame, colour, sway),
        (paint_prop, prop_frame, (120, 110, 100), 0.0),
    ):
        x0, y0, x1, y1 = frame
        place = (left + x0 * width + shift, top + y0 * height, left + x1 * width + shift, top + y1 * height)
        brush = Brush(canvas, place, paint_colour)
        paint(brush)
        brush.finish()
