"""A brush that paints one thing into one box: silhouette outline, fills, light from the upper left.

Shapes are given in fractions of the box, so the same strokes serve every size of picture.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

#: The eight colour words as paint, far enough apart to stay readable in light and in shade.
PAINT: dict[str, RGB] = {
    "red": (214, 32, 38), "orange": (247, 131, 20), "yellow": (250, 214, 30), "green": (34, 148, 62),
    "blue": (36, 94, 220), "purple": (136, 56, 178), "white": (246, 246, 248), "black": (36, 36, 42),
}  # fmt: skip


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """The colour that lies `share` (0 to 1) of the way from `first` to `second`."""
    r, g, b = (round(a + (z - a) * share) for a, z in zip(first, second, strict=True))
    return (r, g, b)


def arc(cx: float, cy: float, rx: float, ry: float, start: float, end: float, count: int = 16) -> list[Point]:
    """Points on an ellipse; angles in degrees, 0 to the right, growing clockwise as seen."""
    step = math.radians(end - start) / count
    first = math.radians(start)
    return [(cx + rx * math.cos(first + step * k), cy + ry * math.sin(first + step * k)) for k in range(count + 1)]


class Brush:
    """Collects shapes in the unit square of a box and paints them with `finish`.

    Every shape is first painted a little larger in the outline's colour and then in its own, so the whole thing
    gets one outline around its silhouette and none inside. The box is left, top, right, bottom in pixels of the RGB
    canvas, turned about its centre by `turn` degrees. `tone`, `ink` and `pale` follow from the body's colour.
    """

    def __init__(self, canvas: Image.Image, box: Sequence[float], colour: RGB, turn: float = 0.0) -> None:
        self.canvas = canvas
        self.left, self.top, right, bottom = box
        self.width, self.height = right - self.left, bottom - self.top
        self.colour = colour
        luminance = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
        self._grey = max(colour) - min(colour) < 30
        self._dark = self._grey and luminance < 90
        self._light = self._grey and luminance > 180
        self._cos, self._sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        self._turned = turn != 0
        self._shapes: list[tuple[str, list[Point], float, RGB]] = []

    def tone(self, amount: float) -> RGB:
        """The body's colour, lightened (positive) or darkened (negative) by `amount` up to 1."""
        return mix(self.colour, (255, 255, 255) if amount > 0 else (0, 0, 0), abs(amount))

    @property
    def shade(self) -> RGB:
        """The body's colour on a side turned away from the light."""
        if self._dark or self._light:
            return (66, 66, 76) if self._dark else (206, 208, 216)
        # Orange and yellow turn brown when they get dark.
        return self.tone(-0.17 if self.colour[0] > 200 and self.colour[1] > 90 else -0.28)

    @property
    def ink(self) -> RGB:
        """For lines and dark details on the body: always visible on it."""
        return (140, 140, 152) if self._dark else (118, 120, 132) if self._light else self.tone(-0.58)

    @property
    def pale(self) -> RGB:
        """For light details on the body: always visible on it."""
        return (110, 110, 122) if self._dark else (200, 203, 213) if self._light else self.tone(0.5)

    @property
    def edge(self) -> RGB:
        """The silhouette's outline."""
        return (150, 152, 164) if self._dark else (92, 94, 106) if self._light else self.tone(-0.55)

    def _place(self, points: Sequence[Point]) -> list[Point]:
        placed = []
        for x, y in points:
            if self._turned:
                x, y = x - 0.5, y - 0.5
                x, y = 0.5 + x * self._cos - y * self._sin, 0.5 + x * self._sin + y * self._cos
            placed.append((x * self.width, y * self.height))
        return placed

    def polygon(self, points: Sequence[Point], fill: RGB | None = None) -> None:
        """A filled polygon."""
        self._shapes.append(("polygon", self._place(points), 0.0, fill or self.colour))

    def rectangle(self, left: float, top: float, right: float, bottom: float, fill: RGB | None = None) -> None:
        """A filled rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float | None = None, fill: RGB | None = None) -> None:
        """A filled ellipse; a circle when `ry` is not given (in a square box)."""
        ry = rx if ry is None else ry
        if self._turned:
            self.polygon(arc(cx, cy, rx, ry, 0, 360, 24), fill)
        else:
            corners = self._place([(cx - rx, cy - ry), (cx + rx, cy + ry)])
            self._shapes.append(("ellipse", corners, 0.0, fill or self.colour))

    def line(self, points: Sequence[Point], width: float, fill: RGB | None = None) -> None:
        """A line with round ends and joints; `width` in fractions of the box's width."""
        self._shapes.append(("line", self._place(points), width * self.width, fill or self.colour))

    def footprint(self) -> tuple[float, float, float]:
        """Leftmost, rightmost and lowest pixel of the canvas that the collected shapes reach."""
        points = [point for _, shape, _, _ in self._shapes for point in shape]
        x = [x for x, _ in points]
        return self.left + min(x), self.left + max(x), self.top + max(y for _, y in points)

    def finish(self, light: float = 1.0) -> None:
        """Paints what was collected; `light` scales the strength of light and shade."""
        pen = 0.012 * self.canvas.width * min(1.0, 0.25 + 1.6 * self.width / self.canvas.width)
        pen = max(pen, 1.0)
        margin = math.ceil(pen) + 2
        x0, y0 = math.floor(self.left) - margin, math.floor(self.top) - margin
        columns, rows = math.ceil(self.width) + 2 * margin + 1, math.ceil(self.height) + 2 * margin + 1
        shift_x, shift_y = self.left - x0, self.top - y0
        tile = Image.new("RGBA", (columns, rows), (*self.edge, 0))
        draw = ImageDraw.Draw(tile)
        shapes = [
            (form, [(x + shift_x, y + shift_y) for x, y in points], width, fill)
            for form, points, width, fill in self._shapes
        ]
        edge = (*self.edge, 255)
        for form, points, width, _ in shapes:
            _paint(draw, form, points, width, edge, pen)
        for form, points, width, fill in shapes:
            _paint(draw, form, points, width, (*fill, 255), 0.0)
        pixels = np.asarray(tile)[..., :3].astype(np.float32)
        gain = 1.0 + light * _light(columns, rows)
        pixels *= gain
        # Dark paint hardly answers to a gain: let it catch some of the light itself.
        pixels += np.maximum(gain - 1.0, 0.0) * 110.0
        shaded = Image.fromarray(np.minimum(pixels, 255.0).astype(np.uint8))
        self.canvas.paste(shaded, (x0, y0), tile.getchannel("A"))


@lru_cache(maxsize=256)
def _light(columns: int, rows: int) -> np.ndarray:
    """(rows, columns, 1) float32: how much brighter than its paint each point of a tile is, light from upper left."""
    x = np.linspace(0, 1, columns, dtype=np.float32)[None, :]
    y = np.linspace(0, 1, rows, dtype=np.float32)[:, None]
    return (0.15 - 0.13 * x - 0.22 * y)[..., None]


def _paint(
    draw: ImageDraw.ImageDraw, form: str, points: list[Point], width: float, fill: tuple[int, ...], grow: float
) -> None:
    """One shape, grown by `grow` pixels on all sides."""
    if form == "ellipse":
        (x0, y0), (x1, y1) = points
        x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        draw.ellipse((x0 - grow, y0 - grow, x1 + grow, y1 + grow), fill)
    elif form == "polygon":
        draw.polygon(points, fill)
        if grow:
            stroke(draw, [*points, points[0]], 2 * grow, fill)
    else:
        stroke(draw, points, width + 2 * grow, fill)


def stroke(draw: ImageDraw.ImageDraw, points: Sequence[Point], width: float, fill: tuple[int, ...]) -> None:
    """A line of `width` pixels with round ends and joints."""
    # In a thin line with many points the gaps at the joints cannot be seen, and closing them takes time.
    many = len(points) > 12
    draw.line(points, fill, max(1, round(width)), joint="curve" if many and width > 5 else None)
    radius = width / 2
    if radius >= 1:
        for x, y in points if not many else (points[0], points[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill)


@lru_cache(maxsize=512)
def _soft_spot(columns: int, rows: int, strength: int) -> Image.Image:
    """An L mask: an ellipse that fades out towards its rim."""
    x = np.linspace(-1, 1, columns, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    mask = np.clip(1.25 * (1 - np.sqrt(x * x + y * y)), 0, 1) * strength
    return Image.fromarray(mask.astype(np.uint8))


def soft_ellipse(canvas: Image.Image, box: Sequence[float], fill: RGB, strength: int) -> None:
    """Paints an ellipse with soft rim into `box` (pixels): a shadow or a glow. `strength` is the opacity of 255."""
    left, top, right, bottom = box
    # Sizes in steps of four pixels, so that the masks are few and stay cached.
    columns, rows = max(4, 4 * round((right - left) / 4)), max(4, 4 * round((bottom - top) / 4))
    corner = round((left + right - columns) / 2), round((top + bottom - rows) / 2)
    canvas.paste(fill, (*corner, corner[0] + columns, corner[1] + rows), _soft_spot(columns, rows, strength))
