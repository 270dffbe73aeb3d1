"""Draws docs/assets/world.png: a sheet of pocket pictures from development seeds.

Run: python tools/world_picture.py
"""

from pathlib import Path

from PIL import Image

from pocket.world.draw import draw
from pocket.world.world import SEEDS, TYPES, sample

SIDE, GAP = 176, 6
COLUMNS = ("scene", "scene", *TYPES[1:])

sheet = Image.new("RGB", (len(COLUMNS) * (SIDE + GAP) - GAP, 3 * (SIDE + GAP) - GAP), "white")
for row in range(3):
    for column, type in enumerate(COLUMNS):
        picture = sample(SEEDS["development"][0] + 40 + 10 * row + column, type)
        sheet.paste(draw(picture, SIDE), (column * (SIDE + GAP), row * (SIDE + GAP)))
sheet.quantize(128).save(Path(__file__).parents[1] / "docs" / "assets" / "world.png", optimize=True)
