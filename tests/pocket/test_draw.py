"""The pocket world's pictures show what their truth says, at every size, and each thing looks like itself only."""

from __future__ import annotations

import colorsys
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minigpt4.errors import UserError
from pocket.world import world
from pocket.world.draw import draw, write_pictures
from pocket.world.world import Picture, Thing

SMALL_BOX = (0.4, 0.4, 0.59, 0.59)
PIECE_BOX = (0.425, 0.425, 0.575, 0.575)
WIDE_BOX = (0.2, 0.2, 0.8, 0.8)


def crop(picture: Picture, box: world.Box, size: int = 96) -> np.ndarray:
    """(h, w, 3) float: what the picture shows within the box."""
    left, top, right, bottom = (round(edge * size) for edge in box)
    return np.asarray(draw(picture, size), dtype=float)[top:bottom, left:right]


def scene(kind: str, colour: str, background: str = "meadow", box: world.Box = SMALL_BOX, seed: int = 5) -> Picture:
    return Picture("scene", background, (Thing(kind, colour, "small", "centre", (box,)),), seed)


def assert_all_differ(crops: dict[str, np.ndarray], threshold: float) -> None:
    """Every two of the crops differ by more than `threshold` of 255 on average."""
    for first, second in itertools.combinations(crops, 2):
        difference = np.abs(crops[first] - crops[second]).mean()
        assert difference > threshold, f"{first} and {second} look alike ({difference:.1f})"


@pytest.mark.parametrize("type_", world.TYPES)
def test_the_same_truth_is_drawn_the_same(type_: str) -> None:
    picture, other = world.sample(12_000_001, type_), world.sample(12_000_002, type_)
    assert draw(picture, 96).tobytes() == draw(picture, 96).tobytes()
    assert draw(picture, 96).tobytes() != draw(other, 96).tobytes()


@pytest.mark.parametrize("type_", world.TYPES)
def test_small_and_large_pictures_show_the_same(type_: str) -> None:
    for seed in range(12_000_000, 12_000_004):
        picture = world.sample(seed, type_)
        small = np.asarray(draw(picture, 96), dtype=float)
        large = np.asarray(draw(picture, 384).reduce(4), dtype=float)
        assert small.shape == (96, 96, 3)
        assert np.abs(small - large).mean() < 6


def test_kinds_differ_when_small() -> None:
    assert_all_differ({kind: crop(scene(kind, "red"), SMALL_BOX) for kind in world.KINDS}, 14)


@pytest.mark.parametrize("colour", world.COLOURS)
def test_every_kind_shows_on_every_background(colour: str) -> None:
    for kind, background in itertools.product(world.KINDS, world.BACKGROUNDS):
        empty = crop(Picture("scene", background, (), 5), SMALL_BOX)
        shown = crop(scene(kind, colour, background), SMALL_BOX)
        assert (np.abs(shown - empty).max(axis=-1) > 24).mean() > 0.2, f"{colour} {kind} hides on the {background}"


def nearest_colour(pixel: np.ndarray) -> str:
    """The colour word for one pixel by plain rules on hue, saturation and value; `none` in between."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
    degrees = hue * 360
    if saturation < 0.25:
        return "white" if value > 0.72 else "black" if value < 0.42 else "none"
    for name, low, high in (
        ("red", -15, 16), ("orange", 16, 41), ("yellow", 41, 70), ("green", 100, 165), ("blue", 200, 240),
        ("purple", 265, 300),
    ):  # fmt: skip
        if low <= degrees < high or low <= degrees - 360 < high:
            return name
    return "none"


@pytest.mark.parametrize("colour", world.COLOURS)
def test_colours_are_readable(colour: str) -> None:
    for kind in world.KINDS:
        # What another colour leaves unchanged is background, outline or detail; what is left is the body.
        other = "blue" if colour in ("orange", "yellow") else "yellow"
        shown, compared = crop(scene(kind, colour), SMALL_BOX), crop(scene(kind, other), SMALL_BOX)
        body = shown[np.abs(shown - compared).max(axis=-1) > 90]
        names = [nearest_colour(pixel) for pixel in body]
        counts = {name: names.count(name) for name in world.COLOURS}
        assert max(counts, key=lambda name: counts[name]) == colour, f"{colour} {kind}: {counts}"


def test_backgrounds_differ() -> None:
    whole = (0.0, 0.0, 1.0, 1.0)
    assert_all_differ({name: crop(Picture("scene", name, (), 3), whole) for name in world.BACKGROUNDS}, 14)


def test_dishes_differ() -> None:
    crops = {name: crop(Picture("food", name, (), 3), (0.15, 0.15, 0.85, 0.85)) for name in world.DISHES}
    assert_all_differ(crops, 10)


@pytest.mark.parametrize("dish", world.DISHES)
def test_ingredients_differ_and_show(dish: str) -> None:
    crops = {
        name: crop(Picture("food", dish, (Thing(name, boxes=(PIECE_BOX,)),), 3), PIECE_BOX)
        for name in world.INGREDIENTS
    }
    crops["nothing"] = crop(Picture("food", dish, (), 3), PIECE_BOX)
    assert_all_differ(crops, 14)


def test_products_differ() -> None:
    for backdrop in world.BACKDROPS:
        crops = {
            name: crop(Picture("product", backdrop, (Thing(name, "blue", boxes=(WIDE_BOX,)),), 3), WIDE_BOX)
            for name in world.PRODUCTS
        }
        assert_all_differ(crops, 14)


def test_backdrops_differ() -> None:
    item = Thing("bag", "red", boxes=(WIDE_BOX,))
    crops = {name: crop(Picture("product", name, (item,), 3), (0.0, 0.0, 1.0, 1.0)) for name in world.BACKDROPS}
    assert_all_differ(crops, 10)


def test_animals_with_props_differ() -> None:
    crops = {}
    for animal, prop in itertools.product(world.ANIMALS, world.PROPS):
        items = (Thing(animal, "green", boxes=(WIDE_BOX,)), Thing(prop, boxes=(WIDE_BOX,)))
        crops[f"{animal} with {prop}"] = crop(Picture("odd", "street", items, 3), WIDE_BOX)
    assert_all_differ(crops, 6)


def test_titles_differ_and_fill_their_place() -> None:
    box = (0.06, 0.05, 0.94, 0.22)
    crops = {title: crop(Picture("draft", title, (), 3), box) for title in world.TITLES}
    assert_all_differ(crops, 10)
    for title, pixels in crops.items():
        columns = (pixels.min(axis=(0, 2)) < 150).nonzero()[0]
        assert columns.max() - columns.min() > 0.45 * pixels.shape[1], f"{title} is written too small"


def test_elements_differ_and_show() -> None:
    box = (0.1, 0.4, 0.6, 0.55)
    crops = {name: crop(Picture("draft", "Harbor", (Thing(name, boxes=(box,)),), 3), box) for name in world.ELEMENTS}
    crops["nothing"] = crop(Picture("draft", "Harbor", (), 3), box)
    assert_all_differ(crops, 8)


def test_write_pictures_with_their_truth(tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    paths = write_pictures(12_000_000, 3, out, size=64, type="scene")
    assert [path.name for path in paths] == ["12000000.png", "12000001.png", "12000002.png"]
    lines = [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]
    assert sorted(path.name for path in out.iterdir()) == [*(path.name for path in paths), "truth.jsonl"]
    for path, line in zip(paths, lines, strict=True):
        picture = world.sample(line["seed"], "scene")
        assert line["file"] == path.name
        assert line["items"] == json.loads(json.dumps(picture.to_dict()))["items"]
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert image.tobytes() == draw(picture, 64).tobytes()


def test_write_pictures_leaves_existing_files_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UserError, match="not empty"):
        write_pictures(1, 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 0}, {"type": "portrait"}])
def test_write_pictures_names_what_is_out_of_range(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(UserError, match="expected"):
        write_pictures(**{"seed": 1, "count": 1, "out": tmp_path / "new", **wrong})
    assert not (tmp_path / "new").exists()


def test_write_pictures_says_that_a_place_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_pictures(1, 1, tmp_path / "file" / "below")
