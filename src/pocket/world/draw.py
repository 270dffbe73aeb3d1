"""Draws the pictures of the pocket world from their truth. Knows how things are put together, not what is true.

A picture depends on its truth alone: the small accidents of light, texture and pen come from its seed. Everything
is laid out in fractions of the side, so the same truth looks the same at every size.
"""

import json
import random
from pathlib import Path

from PIL import Image

from minigpt4.errors import UserError
from minigpt4.files import new_directory
from pocket.world import world
from pocket.world.animals import draw_odd
from pocket.world.brush import PAINT, RGB, Brush, soft_ellipse
from pocket.world.draft import draw_element
from pocket.world.food import draw_dish, draw_ingredient
from pocket.world.handwriting import Pen
from pocket.world.products import PRODUCTS
from pocket.world.shapes import OBJECTS
from pocket.world.surroundings import backdrop, background, paper, table

#: Small pictures are drawn larger than large ones, relative to their size, for the same smoothness.
_SMALL, _SMALL_SCALE, _LARGE_SCALE = 160, 3, 2
_INKS: tuple[RGB, ...] = ((28, 44, 110), (34, 34, 40), (72, 74, 84))


def draw(picture: world.Picture, size: int = 384) -> Image.Image:
    """The picture that shows `picture`: RGB, `size` x `size` pixels, always the same for the same truth."""
    scale = _SMALL_SCALE if size <= _SMALL else _LARGE_SCALE
    canvas = _PAINTERS[picture.type](picture, size * scale, random.Random(picture.seed))
    return canvas.reduce(scale)


def draw_once(path: Path, picture: world.Picture, size: int) -> Path:
    """The file of a picture, which is drawn unless it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}")
        draw(picture, size).save(aside, quality=90)
        aside.replace(path)
    return path


def _pixels(box: world.Box, side: int) -> world.Box:
    left, top, right, bottom = box
    return left * side, top * side, right * side, bottom * side


def _paint(colour: str | None, rng: random.Random) -> RGB:
    """A colour word as paint, never exactly the same twice."""
    base = PAINT[str(colour)]
    gain = rng.uniform(0.93, 1.05)
    r, g, b = (min(255, max(0, round(channel * gain + rng.uniform(-6, 6)))) for channel in base)
    return (r, g, b)


def _cast_shadow(canvas: Image.Image, left: float, right: float, bottom: float, strength: int) -> None:
    """A soft shadow on the ground under what reaches from `left` to `right` and down to `bottom` (pixels)."""
    width = right - left
    box = (left - 0.04 * width, bottom - 0.13 * width, right + 0.16 * width, bottom + 0.11 * width)
    soft_ellipse(canvas, box, (20, 20, 30), strength)


def _scene(picture: world.Picture, side: int, rng: random.Random) -> Image.Image:
    canvas = background(picture.setting, side, rng)
    for item in picture.items:
        brush = Brush(canvas, _pixels(item.boxes[0], side), _paint(item.colour, rng))
        OBJECTS[item.kind](brush)
        _cast_shadow(canvas, *brush.footprint(), 130)
        brush.finish()
    return canvas


def _food(picture: world.Picture, side: int, rng: random.Random) -> Image.Image:
    canvas = table(side, rng)
    draw_dish(canvas, picture.setting, rng)
    for item in picture.items:
        for box in item.boxes:
            draw_ingredient(canvas, item.kind, _pixels(box, side), rng.uniform(-50, 50))
    return canvas


def _product(picture: world.Picture, side: int, rng: random.Random) -> Image.Image:
    canvas = backdrop(picture.setting, side, rng)
    (item,) = picture.items
    brush = Brush(canvas, _pixels(item.boxes[0], side), _paint(item.colour, rng))
    PRODUCTS[item.kind](brush)
    _cast_shadow(canvas, *brush.footprint(), 190)
    brush.finish()
    return canvas


def _odd(picture: world.Picture, side: int, rng: random.Random) -> Image.Image:
    canvas = background(picture.setting, side, rng)
    animal, prop = picture.items
    box = _pixels(animal.boxes[0], side)
    _cast_shadow(canvas, box[0], box[2], box[3], 150)
    draw_odd(canvas, animal.kind, prop.kind, _paint(animal.colour, rng), box, rng)
    return canvas


def _draft(picture: world.Picture, side: int, rng: random.Random) -> Image.Image:
    canvas = paper(side, rng)
    pen = Pen(canvas, rng, rng.choice(_INKS), rng.uniform(0.0095, 0.0125))
    pen.write(picture.setting, 0.06, 0.05, 0.94, 0.22)
    for item in picture.items:
        draw_element(pen, item.kind, item.boxes[0])
    return canvas


_PAINTERS = {"scene": _scene, "food": _food, "product": _product, "odd": _odd, "draft": _draft}


def write_pictures(
    seed: int, count: int, out: Path, size: int = 384, type: str | None = None, overwrite: bool = False
) -> list[Path]:
    """Writes `count` pictures, named by the seeds from `seed` on, and their truth; returns the pictures' paths.

    Args:
        out: directory for `<seed>.png` and `truth.jsonl` (one line per picture: `Picture.to_dict` and `file`);
            must be empty or not exist unless `overwrite` is set, and appears whole or not at all.
        size: side of the pictures in pixels.
        type: one of `world.TYPES`; without it, all types in their shares.
    Raises:
        UserError: `out` holds files already or cannot be written; `count`, `size` or `type` is out of range.
    """
    if count < 1:
        raise UserError(f"count is {count}, expected at least 1 picture: ask for one or more")
    if not 16 <= size <= 4096:
        raise UserError(f"picture size is {size}, expected 16 to 4096 pixels: choose a size in that range")
    if type is not None and type not in world.TYPES:
        known = ", ".join(world.TYPES)
        raise UserError(f"picture type {type!r} is unknown, expected one of {known}: choose one of them")
    names, lines = [], []
    with new_directory(out, overwrite=overwrite, marker="truth.jsonl") as directory:
        for number in range(seed, seed + count):
            picture = world.sample(number, type)
            names.append(f"{number}.png")
            draw(picture, size).save(directory / names[-1])
            lines.append(json.dumps({"file": names[-1], **picture.to_dict()}) + "\n")
        (directory / "truth.jsonl").write_text("".join(lines), encoding="utf-8")
    return [out / name for name in names]
