"""The parts of a hand-drawn website draft, each drawn by pen into its box."""

from collections.abc import Callable

from pocket.world.brush import arc
from pocket.world.handwriting import Pen


def _navigation(pen: Pen, left: float, top: float, right: float, bottom: float) -> None:
    count = pen.rng.choice((3, 4, 4))
    step = (right - left) / count
    for k in range(count):
        start, end = left + k * step, left + (k + 0.8) * step
        pen.frame(start, top, end, bottom, 0.8)
        pen.wave(start + 0.2 * (end - start), end - 0.2 * (end - start), (top + bottom) / 2, 0.3 * (bottom - top), 0.8)


def _image(pen: Pen, left: float, top: float, right: float, bottom: float) -> None:
    pen.frame(left, top, right, bottom)
    width, height = right - left, bottom - top
    if pen.rng.random() < 0.5:
        pen.straight((left, top), (right, bottom), 0.8)
        pen.straight((left, bottom), (right, top), 0.8)
        return
    peaks = [(0.04, 0.94), (0.34, 0.3), (0.56, 0.72), (0.7, 0.48), (0.96, 0.94)]
    for (x0, y0), (x1, y1) in zip(peaks, peaks[1:], strict=False):
        pen.straight((left + x0 * width, top + y0 * height), (left + x1 * width, top + y1 * height), 0.9)
    radius = 0.16 * height
    pen.curve(arc(left + 0.78 * width, top + 0.26 * height, radius, radius, 0, 360, 14), 0.9)


def _text(pen: Pen, left: float, top: float, right: float, bottom: float) -> None:
    count = 4 if bottom - top > 0.12 else 3
    step = (bottom - top) / count
    for k in range(count):
        end = right if k < count - 1 else left + (right - left) * pen.rng.uniform(0.55, 0.75)
        pen.wave(left, end, top + (k + 0.5) * step, 0.5 * step)


def _list(pen: Pen, left: float, top: float, right: float, bottom: float) -> None:
    count = 3
    step = (bottom - top) / count
    for k in range(count):
        y = top + (k + 0.5) * step
        radius = 0.16 * step
        pen.curve(arc(left + 0.025, y, radius, radius, 0, 360, 10), 1.5)
        pen.straight((left + 0.09, y), (left + 0.09 + (right - left) * pen.rng.uniform(0.32, 0.5), y), 1.1)


def _input(pen: Pen, left: float, top: float, right: float, bottom: float) -> None:
    pen.frame(left, top, right, bottom)
    inset = 0.22 * (bottom - top)
    pen.straight((left + 0.035, top + inset), (left + 0.035, bottom - inset), 0.9)


def _button(pen: Pen, left: float, top: float, right: float, bottom: float) -> None:
    radius = min(0.45 * (bottom - top), 0.2 * (right - left))
    outline = [
        *arc(right - radius, top + radius, radius, radius, -90, 0, 5),
        *arc(right - radius, bottom - radius, radius, radius, 0, 90, 5),
        *arc(left + radius, bottom - radius, radius, radius, 90, 180, 5),
        *arc(left + radius, top + radius, radius, radius, 180, 270, 5),
    ]
    pen.curve([*outline, outline[0]], 1.2)
    lean, x = 0.5 * (bottom - top), left + 0.6 * radius
    while x + lean < right:
        pen.straight((x, bottom - 0.01), (x + lean, top + 0.01), 0.75)
        x += 0.034 * pen.rng.uniform(0.85, 1.15)


_ELEMENTS: dict[str, Callable[[Pen, float, float, float, float], None]] = {
    "navigation": _navigation, "image": _image, "text": _text, "list": _list, "input": _input, "button": _button,
}  # fmt: skip


def draw_element(pen: Pen, name: str, box: tuple[float, float, float, float]) -> None:
    """Draws the named part into `box` (fractions of the side)."""
    _ELEMENTS[name](pen, *box)
