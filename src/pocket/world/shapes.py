"""How each kind of object in a scene looks: one function per kind, in the unit square of its box.

Silhouettes differ so that the kinds can be told apart at 18 x 18 pixels.
"""

import math
from collections.abc import Callable

from pocket.world.brush import RGB, Brush, arc

WOOD: RGB = (126, 84, 50)
STEEL: RGB = (150, 154, 164)
RUBBER: RGB = (52, 52, 58)
GLASS: RGB = (188, 220, 236)
LEAF: RGB = (70, 140, 66)
GLOW: RGB = (255, 238, 170)


def _ball(b: Brush) -> None:
    b.ellipse(0.5, 0.5, 0.5)
    b.line(arc(0.1, 0.5, 0.5, 0.62, -48, 48), 0.07, b.pale)
    b.line(arc(0.9, 0.5, 0.5, 0.62, 132, 228), 0.07, b.shade)
    b.ellipse(0.32, 0.24, 0.1, 0.07, b.pale)


def _box(b: Brush) -> None:
    b.polygon([(0, 0.3), (0.62, 0.36), (0.62, 1), (0, 0.92)])
    b.polygon([(0.62, 0.36), (1, 0.22), (1, 0.84), (0.62, 1)], b.shade)
    b.polygon([(0, 0.3), (0.4, 0.1), (1, 0.22), (0.62, 0.36)], b.pale)
    b.polygon([(0.25, 0.325), (0.37, 0.335), (0.37, 0.6), (0.25, 0.59)], b.ink)


def _cup(b: Brush) -> None:
    b.line(arc(0.72, 0.5, 0.22, 0.22, -90, 90), 0.1, b.shade)
    b.polygon([(0.02, 0.16), (0.76, 0.16), (0.7, 0.9), *arc(0.39, 0.9, 0.31, 0.09, 0, 180)])
    b.ellipse(0.39, 0.16, 0.37, 0.11, b.pale)
    b.ellipse(0.39, 0.18, 0.29, 0.07, b.ink)
    b.rectangle(0.14, 0.36, 0.2, 0.78, b.pale)


def _bottle(b: Brush) -> None:
    b.polygon(
        [(0.4, 0.06), (0.6, 0.06), (0.6, 0.3), (0.74, 0.44), (0.74, 0.96), (0.7, 1)]
        + [(0.3, 1), (0.26, 0.96), (0.26, 0.44), (0.4, 0.3)]
    )
    b.rectangle(0.37, 0, 0.63, 0.11, b.ink)
    b.rectangle(0.26, 0.58, 0.74, 0.8, b.pale)
    b.rectangle(0.32, 0.44, 0.38, 0.56, b.pale)


def _book(b: Brush) -> None:
    pages = (236, 230, 214)
    b.polygon([(0.06, 0.2), (0.72, 0.02), (0.98, 0.72), (0.98, 0.82), (0.3, 1), (0.04, 0.3)])
    b.polygon([(0.33, 0.87), (0.97, 0.7), (0.96, 0.79), (0.32, 0.96)], pages)
    b.polygon([(0.06, 0.2), (0.72, 0.02), (0.98, 0.7), (0.32, 0.88)])
    b.polygon([(0.06, 0.2), (0.15, 0.175), (0.41, 0.855), (0.32, 0.88)], b.shade)
    b.polygon([(0.3, 0.27), (0.66, 0.17), (0.72, 0.33), (0.36, 0.43)], b.pale)


def _chair(b: Brush) -> None:
    b.rectangle(0.12, 0, 0.25, 1)
    b.rectangle(0.12, 0.02, 0.36, 0.5)
    b.rectangle(0.2, 0.1, 0.29, 0.42, b.ink)
    b.rectangle(0.74, 0.6, 0.86, 1)
    b.rectangle(0.34, 0.6, 0.43, 0.9, b.shade)
    b.rectangle(0.56, 0.6, 0.65, 0.9, b.shade)
    b.polygon([(0.12, 0.5), (0.9, 0.5), (0.9, 0.66), (0.12, 0.66)])
    b.rectangle(0.12, 0.5, 0.9, 0.55, b.pale)


def _lamp(b: Brush) -> None:
    b.rectangle(0.45, 0.5, 0.55, 0.92, STEEL)
    b.polygon([(0.26, 1), (0.3, 0.9), (0.7, 0.9), (0.74, 1)], b.shade)
    b.ellipse(0.5, 0.57, 0.12, 0.08, GLOW)
    b.polygon([(0.3, 0), (0.7, 0), (0.98, 0.56), (0.02, 0.56)])
    b.polygon([(0.36, 0.05), (0.46, 0.05), (0.32, 0.5), (0.14, 0.5)], b.pale)
    b.rectangle(0.05, 0.5, 0.95, 0.56, b.shade)


def _tree(b: Brush) -> None:
    b.polygon([(0.43, 0.6), (0.57, 0.6), (0.62, 1), (0.38, 1)], WOOD)
    b.ellipse(0.27, 0.5, 0.27, 0.24)
    b.ellipse(0.73, 0.5, 0.27, 0.24, b.shade)
    b.ellipse(0.5, 0.56, 0.3, 0.2)
    b.ellipse(0.5, 0.27, 0.31, 0.27)
    b.ellipse(0.4, 0.2, 0.13, 0.09, b.pale)
    b.ellipse(0.22, 0.44, 0.1, 0.07, b.pale)


def _flower(b: Brush) -> None:
    b.line([(0.5, 0.5), (0.52, 0.98)], 0.08, LEAF)
    b.polygon([(0.52, 0.9), (0.62, 0.72), (0.86, 0.7), (0.74, 0.88)], LEAF)
    for k in range(6):
        angle = math.radians(60 * k + 30)
        x, y = 0.5 + 0.24 * math.cos(angle), 0.35 + 0.22 * math.sin(angle)
        b.ellipse(x, y, 0.165, 0.15, b.colour if k % 2 else b.shade)
    centre = (150, 86, 30) if b.colour[0] > 200 and b.colour[1] > 100 else (250, 214, 70)
    b.ellipse(0.5, 0.35, 0.12, 0.11, centre)


def _house(b: Brush) -> None:
    b.rectangle(0.74, 0.06, 0.86, 0.34, b.shade)
    b.rectangle(0.1, 0.42, 0.9, 1)
    b.polygon([(0, 0.46), (0.5, 0), (1, 0.46)], b.ink)
    b.polygon([(0.1, 0.43), (0.5, 0.06), (0.9, 0.43)], b.shade)
    b.rectangle(0.42, 0.66, 0.6, 1, WOOD)
    b.rectangle(0.18, 0.56, 0.34, 0.74, GLASS)
    b.rectangle(0.68, 0.56, 0.84, 0.74, GLASS)


def _car(b: Brush) -> None:
    b.polygon(
        [(0, 0.56), (0.04, 0.46), (0.2, 0.42), (0.32, 0.18), (0.7, 0.18), (0.84, 0.44), (0.98, 0.5), (1, 0.74)]
        + [(0.96, 0.78), (0.03, 0.78), (0, 0.74)]
    )
    b.polygon([(0.27, 0.42), (0.36, 0.24), (0.49, 0.24), (0.49, 0.42)], GLASS)
    b.polygon([(0.54, 0.42), (0.54, 0.24), (0.67, 0.24), (0.76, 0.42)], GLASS)
    b.rectangle(0.02, 0.66, 0.98, 0.76, b.shade)
    for x in (0.23, 0.77):
        b.ellipse(x, 0.76, 0.135, 0.135, RUBBER)
        b.ellipse(x, 0.76, 0.06, 0.06, STEEL)
    b.ellipse(0.95, 0.56, 0.04, 0.04, GLOW)


def _boat(b: Brush) -> None:
    b.rectangle(0.475, 0, 0.53, 0.72, WOOD)
    b.polygon([(0.56, 0.04), (0.96, 0.6), (0.56, 0.6)], b.colour)
    b.polygon([(0.44, 0.14), (0.44, 0.6), (0.12, 0.6)], b.pale)
    b.polygon([(0, 0.7), (1, 0.7), (0.82, 0.98), (0.18, 0.98)])
    b.polygon([(0.1, 0.86), (0.9, 0.86), (0.82, 0.98), (0.18, 0.98)], b.shade)


def _star(b: Brush) -> None:
    points = []
    for k in range(10):
        radius, angle = (0.53, 0.24)[k % 2], math.radians(36 * k - 90)
        points.append((0.5 + radius * math.cos(angle), 0.53 + radius * math.sin(angle)))
    b.polygon(points)
    for k in range(0, 10, 2):
        b.polygon([points[k], points[(k + 1) % 10], (0.5, 0.53)], b.shade)
    b.polygon([points[0], points[9], (0.5, 0.53)], b.pale)


def _heart(b: Brush) -> None:
    b.polygon(
        [*arc(0.26, 0.3, 0.26, 0.26, 165, 340, 12), *arc(0.74, 0.3, 0.26, 0.26, 200, 375, 12)]
        + [(0.92, 0.54), (0.5, 0.98), (0.08, 0.54)]
    )
    b.ellipse(0.24, 0.24, 0.09, 0.07, b.pale)
    b.polygon([(0.97, 0.42), (0.92, 0.54), (0.5, 0.98), (0.5, 0.84)], b.shade)


def _hat(b: Brush) -> None:
    b.ellipse(0.5, 0.78, 0.5, 0.17, b.shade)
    b.ellipse(0.5, 0.74, 0.5, 0.15)
    b.polygon([(0.22, 0.72), (0.24, 0.18), *arc(0.5, 0.18, 0.26, 0.08, 180, 360, 8), (0.78, 0.72)])
    b.polygon([(0.22, 0.72), (0.225, 0.54), (0.775, 0.54), (0.78, 0.72), (0.5, 0.77)], b.ink)
    b.rectangle(0.3, 0.18, 0.37, 0.5, b.pale)


def _umbrella(b: Brush) -> None:
    b.line([(0.5, 0.1), (0.5, 0.86), *arc(0.6, 0.86, 0.1, 0.1, 180, 0, 8)], 0.06, WOOD)
    b.polygon(
        [*arc(0.5, 0.52, 0.5, 0.48, 180, 360, 20), *arc(0.833, 0.52, 0.167, 0.09, 0, -180, 6)]
        + [*arc(0.5, 0.52, 0.167, 0.09, 0, -180, 6), *arc(0.167, 0.52, 0.167, 0.09, 0, -180, 6)]
    )
    b.polygon([(0.5, 0.04), *arc(0.5, 0.52, 0.167, 0.09, -180, 0, 6)], b.pale)
    b.polygon(
        [(0.5, 0.04), *arc(0.5, 0.52, 0.5, 0.48, 300, 360, 8), *arc(0.833, 0.52, 0.167, 0.09, 0, -180, 6)], b.shade
    )
    b.rectangle(0.48, 0, 0.52, 0.08, WOOD)


def _key(b: Brush) -> None:
    b.line(arc(0.24, 0.36, 0.18, 0.24, 0, 360, 24), 0.13)
    b.line(arc(0.24, 0.36, 0.18, 0.24, 150, 260, 10), 0.05, b.pale)
    b.rectangle(0.42, 0.28, 1, 0.44)
    b.rectangle(0.68, 0.42, 0.79, 0.74)
    b.rectangle(0.88, 0.42, 1, 0.82)
    b.rectangle(0.42, 0.385, 1, 0.44, b.shade)


def _clock(b: Brush) -> None:
    b.line([(0.26, 0.84), (0.16, 0.98)], 0.09, b.shade)
    b.line([(0.74, 0.84), (0.84, 0.98)], 0.09, b.shade)
    b.ellipse(0.22, 0.14, 0.17, 0.13, b.shade)
    b.ellipse(0.78, 0.14, 0.17, 0.13, b.shade)
    b.rectangle(0.46, 0, 0.54, 0.14, b.shade)
    b.ellipse(0.5, 0.54, 0.43, 0.42)
    b.ellipse(0.5, 0.54, 0.27, 0.27, (250, 248, 240))
    b.line([(0.5, 0.34), (0.5, 0.54), (0.63, 0.6)], 0.06, RUBBER)


def _guitar(b: Brush) -> None:
    b.line([(0.4, 0.6), (0.88, 0.12)], 0.09, WOOD)
    b.line([(0.86, 0.14), (0.96, 0.04)], 0.15, b.ink)
    b.ellipse(0.29, 0.71, 0.29, 0.28)
    b.ellipse(0.5, 0.5, 0.19, 0.19)
    b.ellipse(0.4, 0.6, 0.09, 0.09, RUBBER)
    b.line([(0.4, 0.6), (0.88, 0.12)], 0.045, WOOD)
    b.line([(0.14, 0.72), (0.28, 0.86)], 0.06, b.ink)
    b.ellipse(0.14, 0.6, 0.06, 0.06, b.pale)


def _balloon(b: Brush) -> None:
    b.line([(0.5, 0.7), (0.44, 0.8), (0.55, 0.88), (0.48, 1)], 0.035, RUBBER)
    b.polygon([(0.5, 0.68), (0.6, 0.78), (0.4, 0.78)], b.shade)
    b.ellipse(0.5, 0.36, 0.34, 0.36)
    b.ellipse(0.37, 0.22, 0.08, 0.12, b.pale)


def _mushroom(b: Brush) -> None:
    stem = (238, 226, 204)
    b.polygon([(0.36, 0.5), (0.64, 0.5), (0.7, 0.96), (0.5, 1), (0.3, 0.96)], stem)
    b.polygon([*arc(0.5, 0.56, 0.5, 0.56, 180, 360, 18), *arc(0.5, 0.56, 0.5, 0.1, 0, 180, 8)])
    for x, y, r in ((0.3, 0.3, 0.1), (0.62, 0.2, 0.09), (0.76, 0.44, 0.08), (0.47, 0.47, 0.07)):
        b.ellipse(x, y, r, r * 0.85, b.pale)


def _kite(b: Brush) -> None:
    b.line([(0.52, 0.66), (0.42, 0.78), (0.54, 0.86), (0.4, 0.98)], 0.04, b.ink)
    b.polygon([(0.34, 0.8), (0.5, 0.74), (0.48, 0.86)], b.shade)
    b.polygon([(0.58, 0.82), (0.4, 0.96), (0.6, 0.96)], b.shade)
    b.polygon([(0.5, 0), (0.94, 0.32), (0.52, 0.72), (0.06, 0.32)])
    b.polygon([(0.5, 0), (0.94, 0.32), (0.5, 0.32)], b.pale)
    b.polygon([(0.06, 0.32), (0.5, 0.32), (0.52, 0.72)], b.shade)


def _tent(b: Brush) -> None:
    b.polygon([(0.42, 0.06), (0.8, 0.2), (1, 0.9), (0.84, 0.96)], b.shade)
    b.polygon([(0.42, 0.06), (0.84, 0.96), (0, 0.96)])
    b.polygon([(0.42, 0.3), (0.58, 0.96), (0.26, 0.96)], (46, 40, 44))
    b.polygon([(0.42, 0.3), (0.26, 0.96), (0.16, 0.96)], b.pale)
    b.line([(0.42, 0), (0.42, 0.1)], 0.04, WOOD)


def _apple(b: Brush) -> None:
    b.line([(0.5, 0.3), (0.48, 0.14), (0.54, 0.02)], 0.07, WOOD)
    b.ellipse(0.32, 0.6, 0.32, 0.38)
    b.ellipse(0.68, 0.6, 0.32, 0.38)
    b.ellipse(0.5, 0.68, 0.3, 0.3)
    b.polygon([(0.54, 0.2), (0.66, 0.06), (0.9, 0.06), (0.78, 0.2)], LEAF)
    b.ellipse(0.5, 0.27, 0.1, 0.05, b.shade)
    b.ellipse(0.2, 0.46, 0.07, 0.12, b.pale)


def _ladder(b: Brush) -> None:
    for y in (0.14, 0.36, 0.58, 0.8):
        b.rectangle(0.24, y, 0.76, y + 0.1, b.shade)
    b.polygon([(0.24, 0), (0.37, 0), (0.31, 1), (0.16, 1)])
    b.polygon([(0.63, 0), (0.76, 0), (0.84, 1), (0.69, 1)])


def _drum(b: Brush) -> None:
    b.polygon([(0.02, 0.34), (0.98, 0.34), (0.98, 0.84), *arc(0.5, 0.84, 0.48, 0.16, 0, 180, 14), (0.02, 0.84)])
    b.line([(0.04, 0.5), (0.2, 0.9), (0.36, 0.58), (0.5, 0.96), (0.64, 0.58), (0.8, 0.9), (0.96, 0.5)], 0.045, b.pale)
    b.ellipse(0.5, 0.34, 0.48, 0.16, b.shade)
    b.ellipse(0.5, 0.33, 0.4, 0.115, (244, 238, 222))
    b.line([(0.4, 0.34), (0.08, 0.04)], 0.06, WOOD)
    b.line([(0.6, 0.34), (0.92, 0.04)], 0.06, WOOD)


OBJECTS: dict[str, Callable[[Brush], None]] = {
    "ball": _ball, "box": _box, "cup": _cup, "bottle": _bottle, "book": _book, "chair": _chair, "lamp": _lamp,
    "tree": _tree, "flower": _flower, "house": _house, "car": _car, "boat": _boat, "star": _star, "heart": _heart,
    "hat": _hat, "umbrella": _umbrella, "key": _key, "clock": _clock, "guitar": _guitar, "balloon": _balloon,
    "mushroom": _mushroom, "kite": _kite, "tent": _tent, "apple": _apple, "ladder": _ladder, "drum": _drum,
}  # fmt: skip
