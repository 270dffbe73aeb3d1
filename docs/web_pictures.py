"""Makes the pictures that the web page's examples start with, and the screenshots of the page in the README.

    python docs/web_pictures.py examples      # into src/minigpt4/app/assets
    python docs/web_pictures.py screenshots   # into docs/assets; needs Chromium

The pictures are of development seeds (not those that are measured), chosen among ten each as ones that the pocket model
answers right.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
#: Ability of the example, seed and type of its picture.
EXAMPLES = (
    ("describe", 12_400_001, "scene"),
    ("website", 12_400_103, "draft"),
    ("funny", 12_400_204, "odd"),
    ("recipe", 12_400_301, "food"),
    ("advertise", 12_400_402, "product"),
    ("poem", 12_400_503, "scene"),
    ("story", 12_400_602, "odd"),
    ("diagnose", 12_400_706, "odd"),
)


def examples() -> None:
    """Draw the examples' pictures: 256 colours and as many pixels a side, so that they weigh little."""
    from minigpt4.pocket.draw import draw
    from minigpt4.pocket.world import sample

    folder = HERE.parent / "src" / "minigpt4" / "app" / "assets"
    for name, seed, kind in EXAMPLES:
        picture = draw(sample(seed, kind), 256).quantize(256)
        picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    {"examples": examples}[sys.argv[1]]()
