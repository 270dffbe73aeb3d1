"""How each product looks in a studio shot, in the unit square of its box."""

from collections.abc import Callable

from pocket.world.brush import Brush, arc
from pocket.world.shapes import GLASS, OBJECTS, RUBBER, STEEL


def _watch(b: Brush) -> None:
    b.polygon([(0.34, 0), (0.66, 0), (0.7, 0.34), (0.3, 0.34)])
    b.polygon([(0.3, 0.66), (0.7, 0.66), (0.66, 1), (0.34, 1)])
    for y in (0.06, 0.14, 0.86, 0.94):
        b.rectangle(0.42, y - 0.015, 0.58, y + 0.015, b.ink)
    b.rectangle(0.78, 0.45, 0.86, 0.55, STEEL)
    b.ellipse(0.5, 0.5, 0.31, 0.31, b.shade)
    b.ellipse(0.5, 0.5, 0.27, 0.27)
    b.ellipse(0.5, 0.5, 0.2, 0.2, (248, 246, 240))
    b.line([(0.5, 0.36), (0.5, 0.5), (0.6, 0.56)], 0.03, RUBBER)


def _shoe(b: Brush) -> None:
    b.polygon(
        [(0.04, 0.28), (0.1, 0.24), (0.34, 0.26), (0.4, 0.38), (0.56, 0.5), (0.86, 0.56), (0.98, 0.66), (1, 0.78)]
        + [(0.02, 0.78), (0, 0.5)]
    )
    b.polygon([(0, 0.76), (1, 0.76), (0.98, 0.88), (0.02, 0.88)], (240, 238, 232))
    b.polygon([(0.08, 0.27), (0.33, 0.28), (0.36, 0.35), (0.1, 0.34)], b.ink)
    for x, y in ((0.42, 0.42), (0.5, 0.48), (0.58, 0.53)):
        b.line([(x, y), (x - 0.07, y + 0.09)], 0.03, (240, 238, 232))
    b.polygon([(0.72, 0.55), (0.86, 0.57), (0.98, 0.67), (1, 0.76), (0.76, 0.76)], b.shade)
    b.line([(0.1, 0.66), (0.3, 0.6), (0.46, 0.7)], 0.05, b.pale)


def _bag(b: Brush) -> None:
    b.line(arc(0.5, 0.38, 0.24, 0.33, 180, 360, 16), 0.07, b.shade)
    b.polygon([(0.1, 0.36), (0.9, 0.36), (1, 0.92), (0.94, 1), (0.06, 1), (0, 0.92)])
    b.polygon([(0.1, 0.36), (0.9, 0.36), (0.94, 0.58), (0.5, 0.72), (0.06, 0.58)], b.shade)
    b.rectangle(0.44, 0.62, 0.56, 0.76, (226, 190, 90))
    b.line([(0.12, 0.7), (0.1, 0.9)], 0.04, b.pale)


def _headphones(b: Brush) -> None:
    b.line(arc(0.5, 0.56, 0.4, 0.5, 180, 360, 24), 0.11)
    b.line(arc(0.5, 0.56, 0.4, 0.5, 205, 270, 12), 0.03, b.pale)
    for x, side in ((0.13, 1), (0.87, -1)):
        b.ellipse(x, 0.7, 0.13, 0.25)
        b.ellipse(x + side * 0.11, 0.7, 0.07, 0.22, RUBBER if b.colour[1] > 60 else STEEL)
    b.ellipse(0.11, 0.64, 0.04, 0.09, b.pale)


def _teapot(b: Brush) -> None:
    b.line(arc(0.8, 0.56, 0.16, 0.2, -90, 90, 12), 0.07, b.shade)
    b.polygon([(0.28, 0.74), (0.12, 0.62), (0.0, 0.3), (0.1, 0.28), (0.2, 0.46), (0.32, 0.54)], b.shade)
    b.ellipse(0.5, 0.62, 0.33, 0.31)
    b.rectangle(0.32, 0.88, 0.68, 0.95, b.shade)
    b.polygon(arc(0.5, 0.36, 0.2, 0.14, 180, 360, 12), b.shade)
    b.ellipse(0.5, 0.19, 0.055, 0.055)
    b.ellipse(0.36, 0.5, 0.09, 0.06, b.pale)
    b.line(arc(0.5, 0.62, 0.31, 0.1, 20, 160, 10), 0.03, b.pale)


def _camera(b: Brush) -> None:
    b.polygon([(0.3, 0.3), (0.36, 0.16), (0.62, 0.16), (0.68, 0.3)], b.shade)
    b.rectangle(0.08, 0.22, 0.22, 0.3, STEEL)
    b.polygon([(0.03, 0.28), (0.97, 0.28), (1, 0.32), (1, 0.84), (0.97, 0.88), (0.03, 0.88), (0, 0.84), (0, 0.32)])
    b.rectangle(0, 0.4, 1, 0.44, b.pale)
    b.ellipse(0.5, 0.6, 0.25, 0.25, STEEL)
    b.ellipse(0.5, 0.6, 0.2, 0.2, (40, 44, 54))
    b.ellipse(0.5, 0.6, 0.12, 0.12, (74, 90, 120))
    b.ellipse(0.44, 0.54, 0.04, 0.04, GLASS)
    b.rectangle(0.8, 0.31, 0.92, 0.38, GLASS)


def _backpack(b: Brush) -> None:
    b.line(arc(0.5, 0.13, 0.12, 0.11, 180, 360, 10), 0.05, b.ink)
    b.polygon([(0.04, 0.5), (0.16, 0.46), (0.16, 0.9), (0.04, 0.86)], b.shade)
    b.polygon([(0.96, 0.5), (0.84, 0.46), (0.84, 0.9), (0.96, 0.86)], b.shade)
    b.polygon([*arc(0.5, 0.42, 0.38, 0.34, 180, 360, 18), (0.88, 0.96), (0.84, 1), (0.16, 1), (0.12, 0.96)])
    b.polygon([(0.24, 0.6), (0.76, 0.6), (0.76, 0.9), (0.24, 0.9)], b.shade)
    b.line([(0.24, 0.6), (0.76, 0.6)], 0.03, b.ink)
    b.line(arc(0.5, 0.46, 0.28, 0.22, 190, 350, 14), 0.03, b.ink)
    b.rectangle(0.46, 0.6, 0.54, 0.7, (226, 190, 90))
    b.ellipse(0.26, 0.3, 0.05, 0.07, b.pale)


def _sunglasses(b: Brush) -> None:
    b.line([(0.05, 0.4), (0.18, 0.2), (0.3, 0.18)], 0.05, b.shade)
    b.line([(0.95, 0.4), (0.82, 0.2), (0.7, 0.18)], 0.05, b.shade)
    b.line(arc(0.5, 0.5, 0.1, 0.1, 190, 350, 8), 0.07)
    lens = (46, 50, 62) if b.colour[1] > 60 else (120, 132, 150)
    for x in (0.24, 0.76):
        b.polygon([*arc(x, 0.5, 0.24, 0.26, 0, 180, 14), (x - 0.24, 0.36), (x + 0.24, 0.36)])
        b.polygon([*arc(x, 0.5, 0.155, 0.165, 0, 180, 12), (x - 0.155, 0.45), (x + 0.155, 0.45)], lens)
        b.line([(x - 0.06, 0.56), (x + 0.02, 0.48)], 0.03, GLASS)


PRODUCTS: dict[str, Callable[[Brush], None]] = {
    "watch": _watch, "shoe": _shoe, "bag": _bag, "headphones": _headphones, "teapot": _teapot, "camera": _camera,
    "backpack": _backpack, "sunglasses": _sunglasses, "lamp": OBJECTS["lamp"], "bottle": OBJECTS["bottle"],
}  # fmt: skip
