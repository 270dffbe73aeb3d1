"""Dishes seen from above and the pieces that lie on them. Knows how they look, not where they lie."""

import math
import random
from collections.abc import Callable

from PIL import Image, ImageDraw

from pocket.world.brush import RGB, Brush, arc, mix, soft_ellipse, stroke

_REACH = 0.43  # radius of the dish as a fraction of the picture's side


def draw_dish(canvas: Image.Image, dish: str, rng: random.Random) -> None:
    """Paints the named dish, without its ingredients, in the middle of the canvas."""
    side = canvas.width
    reach = _REACH * side
    centre = side / 2
    soft_ellipse(canvas, (0.04 * side, 0.08 * side, 1.0 * side, 1.03 * side), (40, 26, 16), 150)
    draw = ImageDraw.Draw(canvas)

    def disc(radius: float, fill: RGB, shift: float = 0.0) -> None:
        r, c = radius * reach, centre + shift * side
        draw.ellipse((c - r, c - r, c + r, c + r), fill)

    def strand(points: list[tuple[float, float]], width: float, fill: RGB) -> None:
        stroke(draw, [(centre + x * reach, centre + y * reach) for x, y in points], width * side, fill)

    def spot(radius: float) -> tuple[float, float]:
        r, angle = radius * math.sqrt(rng.random()), rng.uniform(0, math.tau)
        return r * math.cos(angle), r * math.sin(angle)

    if dish == "pizza":
        disc(1.0, (150, 94, 44))
        disc(0.985, (214, 156, 84))
        disc(0.93, (228, 176, 104), -0.006)
        disc(0.86, (190, 66, 40))
        disc(0.82, (240, 206, 138))
        for _ in range(9):
            x, y = spot(0.72)
            r = rng.uniform(0.05, 0.1)
            centre_x, centre_y = centre + x * reach, centre + y * reach
            blob = (centre_x - r * reach, centre_y - r * reach, centre_x + r * reach, centre_y + r * reach)
            draw.ellipse(blob, (246, 222, 164))
        return
    if dish == "soup":
        disc(1.0, (96, 116, 140))
        disc(0.98, (128, 152, 178))
        disc(0.9, (72, 88, 110))
        disc(0.86, (206, 152, 92), 0.004)
        disc(0.82, (222, 172, 108), -0.004)
        for radius in (0.68, 0.42):
            turn = rng.uniform(0, 360)
            strand(arc(0, 0, radius, radius, turn, turn + 130, 18), 0.012, (240, 206, 152))
        return
    disc(1.0, (176, 176, 182))
    disc(0.985, (246, 246, 244), -0.003)
    disc(0.86, (222, 222, 226))
    disc(0.84, (240, 240, 238))
    if dish == "salad":
        for k in range(36):
            radius = 0.7 if k < 14 else 0.6
            angle = math.tau * k / 14 + rng.uniform(-0.2, 0.2) if k < 14 else rng.uniform(0, math.tau)
            r = radius if k < 14 else radius * math.sqrt(rng.random())
            x, y = r * math.cos(angle), r * math.sin(angle)
            shade = mix((126, 178, 72), (190, 218, 132), rng.random())
            start = rng.uniform(0, 360)
            leaf = []
            for n in range(9):
                size = (0.24 if n % 2 else 0.19) * (1 if k < 14 else 0.9)
                around = math.radians(start + 40 * n)
                leaf.append(
                    (centre + (x + size * math.cos(around)) * reach, centre + (y + size * math.sin(around)) * reach)
                )
            draw.polygon(leaf, shade)
            vein = math.radians(start)
            strand([(x, y), (x + 0.16 * math.cos(vein), y + 0.16 * math.sin(vein))], 0.005, (216, 234, 170))
    elif dish == "rice":
        disc(0.8, (228, 223, 209))
        for _ in range(110):
            x, y = spot(0.78)
            angle = rng.uniform(0, math.pi)
            dx, dy = 0.04 * math.cos(angle), 0.04 * math.sin(angle)
            strand([(x - dx, y - dy), (x + dx, y + dy)], 0.013, mix((232, 228, 214), (255, 255, 252), rng.random()))
    else:
        disc(0.8, (228, 186, 100))
        for _ in range(26):
            x, y = spot(0.5)
            radius, turn = rng.uniform(0.14, 0.3), rng.uniform(0, 360)
            noodle = mix((226, 182, 88), (248, 218, 138), rng.random())
            strand(arc(x, y, radius, radius * 0.8, turn, turn + 260, 14), 0.024, mix(noodle, (120, 80, 20), 0.35))
            strand(arc(x, y, radius, radius * 0.8, turn, turn + 260, 14), 0.015, noodle)


def _tomato(b: Brush) -> None:
    b.ellipse(0.5, 0.5, 0.48)
    b.ellipse(0.5, 0.5, 0.38, fill=(236, 92, 72))
    for k in range(4):
        angle = math.radians(90 * k + 45)
        b.ellipse(0.5 + 0.2 * math.cos(angle), 0.5 + 0.2 * math.sin(angle), 0.12, fill=(248, 176, 120))


def _cheese(b: Brush) -> None:
    b.polygon([(0.02, 0.8), (0.5, 0.06), (0.98, 0.8)])
    b.polygon([(0.02, 0.8), (0.98, 0.8), (0.98, 0.96), (0.02, 0.96)], (226, 160, 20))
    for x, y, r in ((0.5, 0.42, 0.09), (0.34, 0.66, 0.08), (0.66, 0.66, 0.1)):
        b.ellipse(x, y, r, fill=(206, 140, 10))


def _basil(b: Brush) -> None:
    for tip in (-1, 1):
        b.polygon([(0.5, 0.62), (0.5 + tip * 0.16, 0.2), (0.5 + tip * 0.48, 0.04), (0.5 + tip * 0.46, 0.4)])
        b.line([(0.5, 0.62), (0.5 + tip * 0.4, 0.16)], 0.05, (120, 190, 110))
    b.polygon([(0.5, 0.4), (0.7, 0.66), (0.5, 0.98), (0.3, 0.66)], (28, 110, 48))
    b.line([(0.5, 0.5), (0.5, 0.9)], 0.05, (120, 190, 110))


def _olive(b: Brush) -> None:
    b.ellipse(0.5, 0.5, 0.42)
    b.ellipse(0.5, 0.5, 0.18, fill=(226, 214, 176))


def _egg(b: Brush) -> None:
    b.ellipse(0.5, 0.5, 0.5, 0.4)
    b.ellipse(0.46, 0.58, 0.38, 0.38)
    b.ellipse(0.5, 0.5, 0.23, fill=(252, 184, 22))
    b.ellipse(0.44, 0.44, 0.07, fill=(255, 226, 130))


def _carrot(b: Brush) -> None:
    for x in (0.32, 0.5, 0.68):
        b.line([(0.5, 0.3), (x, 0.04)], 0.1, (58, 150, 60))
    b.polygon([(0.24, 0.28), (0.5, 0.2), (0.76, 0.28), (0.54, 1), (0.46, 1)])
    b.line([(0.36, 0.46), (0.52, 0.46)], 0.05, (190, 90, 10))
    b.line([(0.5, 0.66), (0.6, 0.66)], 0.05, (190, 90, 10))


def _onion(b: Brush) -> None:
    for radius, fill in ((0.48, b.colour), (0.38, (246, 236, 248)), (0.29, b.colour), (0.2, (246, 236, 248))):
        b.ellipse(0.5, 0.5, radius, fill=fill)
    b.ellipse(0.5, 0.5, 0.1, fill=b.colour)


def _pepper(b: Brush) -> None:
    b.line([(0.2, 0.2), (0.1, 0.04)], 0.12, (60, 130, 50))
    b.polygon(
        [(0.06, 0.3), (0.34, 0.12), (0.56, 0.34), (0.72, 0.62), (0.98, 0.78), (0.72, 0.94), (0.36, 0.8), (0.14, 0.54)]
    )
    b.line([(0.26, 0.32), (0.46, 0.6)], 0.08, (250, 120, 110))


def _corn(b: Brush) -> None:
    for x, y in ((0.3, 0.22), (0.7, 0.2), (0.5, 0.46), (0.16, 0.52), (0.84, 0.5), (0.34, 0.78), (0.7, 0.76)):
        b.ellipse(x, y, 0.15, 0.14)
        b.ellipse(x - 0.03, y - 0.04, 0.06, 0.05, (255, 246, 170))


def _shrimp(b: Brush) -> None:
    b.line(arc(0.5, 0.54, 0.3, 0.3, 150, 400, 16), 0.28)
    b.line(arc(0.5, 0.54, 0.3, 0.3, 150, 400, 16), 0.1, (255, 200, 180))
    b.polygon([(0.72, 0.8), (0.98, 0.72), (0.92, 1.0), (0.7, 0.98)], (226, 90, 60))
    for angle in (210, 265, 320):
        b.line(arc(0.5, 0.54, 0.3, 0.3, angle, angle + 1, 1) + [(0.5, 0.54)], 0.04, (220, 100, 76))


def _broccoli(b: Brush) -> None:
    b.polygon([(0.36, 0.5), (0.64, 0.5), (0.6, 1), (0.4, 1)], (176, 206, 120))
    for x, y in ((0.24, 0.42), (0.76, 0.42), (0.5, 0.26), (0.5, 0.52)):
        b.ellipse(x, y, 0.24, 0.22)
        b.ellipse(x - 0.06, y - 0.06, 0.1, 0.08, (84, 166, 74))


def _lemon(b: Brush) -> None:
    b.ellipse(0.5, 0.5, 0.48)
    b.ellipse(0.5, 0.5, 0.41, fill=(255, 252, 216))
    for k in range(6):
        start = 60 * k + 6
        b.polygon([(0.5, 0.5), *arc(0.5, 0.5, 0.37, 0.37, start, start + 48, 4)], (250, 226, 40))


def _bacon(b: Brush) -> None:
    wave = [(0.04 + 0.92 * k / 6, 0.5 + (0.08 if k % 2 else -0.08)) for k in range(7)]
    for shift, width, fill in ((0, 0.5, b.colour), (-0.1, 0.1, (246, 206, 180)), (0.12, 0.1, (246, 206, 180))):
        upper = [(x, y + shift - width / 2) for x, y in wave]
        lower = [(x, y + shift + width / 2) for x, y in reversed(wave)]
        b.polygon(upper + lower, fill)


def _avocado(b: Brush) -> None:
    for grow, fill in ((0.0, b.colour), (0.08, (214, 226, 128))):
        b.ellipse(0.5, 0.62, 0.38 - grow, 0.37 - grow, fill)
        b.ellipse(0.5, 0.3, 0.25 - grow, 0.29 - grow, fill)
    b.ellipse(0.5, 0.62, 0.17, fill=(122, 74, 36))


def _cucumber(b: Brush) -> None:
    b.ellipse(0.5, 0.5, 0.48)
    b.ellipse(0.5, 0.5, 0.38, fill=(214, 236, 168))
    for k in range(6):
        angle = math.radians(60 * k)
        b.ellipse(0.5 + 0.18 * math.cos(angle), 0.5 + 0.18 * math.sin(angle), 0.055, fill=(150, 190, 110))


def _salmon(b: Brush) -> None:
    b.polygon([(0.02, 0.26), (0.9, 0.14), (0.98, 0.74), (0.1, 0.86)])
    for x in (0.2, 0.44, 0.68):
        b.line([(x, 0.28), (x + 0.13, 0.48), (x + 0.06, 0.74)], 0.06, (255, 222, 204))


_INGREDIENTS: dict[str, tuple[Callable[[Brush], None], RGB]] = {
    "tomato": (_tomato, (212, 40, 34)), "cheese": (_cheese, (252, 206, 62)), "basil": (_basil, (44, 134, 62)),
    "olive": (_olive, (46, 40, 50)), "egg": (_egg, (252, 252, 250)), "carrot": (_carrot, (244, 126, 22)),
    "onion": (_onion, (150, 66, 140)), "pepper": (_pepper, (206, 24, 30)), "corn": (_corn, (250, 206, 40)),
    "shrimp": (_shrimp, (244, 138, 112)), "broccoli": (_broccoli, (40, 116, 44)), "lemon": (_lemon, (244, 208, 20)),
    "bacon": (_bacon, (166, 56, 42)), "avocado": (_avocado, (76, 96, 40)), "cucumber": (_cucumber, (58, 134, 58)),
    "salmon": (_salmon, (248, 140, 102)),
}  # fmt: skip


def draw_ingredient(canvas: Image.Image, name: str, box: tuple[float, float, float, float], turn: float) -> None:
    """Paints one piece into `box` (pixels), turned by `turn` degrees."""
    shape, colour = _INGREDIENTS[name]
    left, top, right, bottom = box
    drop = 0.12 * (right - left)
    soft_ellipse(canvas, (left - drop / 2, top + drop, right + drop * 1.5, bottom + drop * 1.6), (30, 20, 10), 130)
    brush = Brush(canvas, box, colour, turn)
    shape(brush)
    brush.finish(0.7)
