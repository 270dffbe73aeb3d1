"""Makes the measure of images that are unlike those that a vision side learnt from: familiar.safetensors beside it.

    python tools/familiar.py pocket
    python tools/familiar.py photo --images runs/photo/images

Linear discriminant analysis finds the direction in the encoder's output that tells training images best from what is
made here: noise, plain colours, pages of text, tables, charts and, for photographs, drawn pictures. The limit on it is
passed by 1 % of the held-out training images of one kind, and by fewer of the others.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import font_manager, pyplot
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file

from minigpt4.images import to_pixels
from minigpt4.model import sources
from minigpt4.model.parts import FAMILIAR_FILE
from minigpt4.model.vision import VisionSide, load_vision_side
from pocket.world.draw import draw
from pocket.world.world import SEEDS, TYPES, sample

QUANTILE = 0.99
#: Weight of the others' covariance beside that of training images, and of the identity: neither matters much.
OTHERS, RIDGE = 0.5, 0.1
WORDS = ("the", "of", "a", "picture", "and", "in", "that", "it", "was", "for", "on", "are", "answers", "with", "they")
FONTS = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono", "STIXGeneral")


def noise(rng: random.Random) -> Image.Image:
    """Independent values of all or few pixels."""
    side, draws = rng.choice((8, 24, 96, 320)), np.random.default_rng(rng.getrandbits(32))
    shape = (side, side, 3) if rng.random() < 0.7 else (side, side)
    values = draws.integers(0, 256, shape) if rng.random() < 0.6 else draws.normal(128, 45, shape).clip(0, 255)
    return Image.fromarray(values.astype(np.uint8)).resize((480, 480), rng.choice((0, 3)))


def plain(rng: random.Random) -> Image.Image:
    """One colour, or a change from one to another."""
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(2)]
    if rng.random() < 0.5:
        colours = [rng.choice(((255, 255, 255), (0, 0, 0), (250, 245, 225), colours[0]))] * 2
    blend = Image.linear_gradient("L").rotate(rng.choice((0, 90)))
    return Image.composite(*(Image.new("RGB", (256, 256), colour) for colour in colours), blend)


def text(rng: random.Random) -> Image.Image:
    """A page, or part of a screen, full of words, in rows of a table or not, dark on light or the other way round."""
    width, height = rng.choice(((700, 1000), (1280, 800), (600, 600), (400, 860)))
    light, dark = rng.choice((("white", "black"), ("#f7f2e6", "#333"), ("#e8e8ea", "#1d2a6d")))
    paper, ink = (light, dark) if rng.random() < 0.6 else ("#15171c", rng.choice(("#ddd", "#7fd08a")))
    image = Image.new("RGB", (width, height), paper)
    pen, size = ImageDraw.Draw(image), rng.randint(11, 30)
    font = ImageFont.truetype(font_manager.findfont(rng.choice(FONTS)), size)
    table, y = rng.random() < 0.3, rng.randint(10, 90)
    while y < height - size:
        if table:
            for x in range(30, width - 100, 140):
                pen.rectangle((x, y, x + 140, y + 2 * size), outline=ink)
                pen.text((x + 6, y + size // 2), f"{rng.random() * 1000:.2f}", fill=ink, font=font)
            y += 2 * size
        else:
            line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 30)))
            pen.text((30, y), line, fill=ink, font=font)
            y += int(1.5 * size)
    return image


def chart(rng: random.Random) -> Image.Image:
    """Bars, lines, points, a pie, or a grid of values."""
    draws, kind = np.random.default_rng(rng.getrandbits(32)), rng.choice(("bar", "plot", "scatter", "pie", "imshow"))
    with pyplot.style.context(rng.choice(("default", "ggplot", "dark_background"))):
        figure, axes = pyplot.subplots(figsize=(rng.choice((4, 6)), 4))
        count = rng.randint(4, 12)
        given: dict[str, tuple[Any, ...]] = {
            "bar": (range(count), draws.random(count)), "plot": (draws.normal(size=(60, count)).cumsum(0),),
            "scatter": tuple(draws.normal(size=(2, 20 * count))), "pie": (draws.random(count),),
            "imshow": (draws.random((count, count)),),
        }  # fmt: skip
        getattr(axes, kind)(*given[kind])
        axes.set_title(" ".join(rng.choice(WORDS) for _ in range(4)))
        figure.savefig(buffer := io.BytesIO(), dpi=90)
        pyplot.close(figure)
    return Image.open(buffer).convert("RGB")


def drawn(rng: random.Random, types: tuple[str, ...], seeds: str = "stage1") -> Image.Image:
    """A picture of the pocket world."""
    first, count = SEEDS[seeds]
    return draw(sample(first + rng.randrange(count), rng.choice(types)), rng.choice((96, 200, 320)))


def encode(side: VisionSide, image: Callable[[random.Random], Image.Image], seeds: Sequence[str]) -> np.ndarray:
    """The means of the encoder's tokens (n, d_vision) for an image of each seed."""
    found = []
    for start in range(0, len(seeds), 25):
        images = [image(random.Random(seed)) for seed in seeds[start : start + 25]]
        tokens = side.run_encoder(torch.from_numpy(to_pixels(side.image_processor, images)))
        found.append(tokens.float().mean(1).numpy())
    return np.concatenate(found)


def seeds(use: str, count: int) -> list[str]:
    return [f"{use} {number}" for number in range(count)]


def kept(side: VisionSide, file: Path, rows: slice) -> np.ndarray:
    """The same of decoded images (n, height, width, 3)."""
    images = iter(np.load(file, mmap_mode="r")[rows])
    return encode(side, lambda _: Image.fromarray(next(images)), seeds(file.stem, rows.stop - rows.start))


def fit(near: np.ndarray, far: np.ndarray, held_out: Iterable[np.ndarray]) -> dict[str, torch.Tensor]:
    spread = np.cov(near.T) + OTHERS * np.cov((far - far.mean(0)).T)
    spread += RIDGE * np.trace(spread) / len(spread) * np.eye(len(spread))
    direction = np.linalg.solve(spread, far.mean(0) - near.mean(0)).astype(np.float32)
    limit = max(np.quantile(images @ direction, QUANTILE) for images in held_out)
    return {"direction": torch.from_numpy(direction), "limit": torch.tensor(limit, dtype=torch.float32)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("photo", "pocket"))
    parser.add_argument("--images", type=Path, help="for photo: the decoded images of tools/photo/qformer.py")
    arguments = parser.parse_args()
    matplotlib.use("Agg")
    side = load_vision_side(f"{arguments.model}-stage1", dtype="float32", device="cpu")
    strange: dict[str, Callable[[random.Random], Image.Image]] = {f.__name__: f for f in (noise, plain, text, chart)}
    if arguments.model == "photo":

        def part(name: str, start: int, end: int) -> np.ndarray:
            return kept(side, arguments.images / f"{name}.npy", slice(start, end))

        strange["drawn"] = partial(drawn, types=tuple(kind for kind in TYPES if kind != "draft"))
        near = np.concatenate([part("train", 0, 4000), part("imagenet", 0, 800), part("drafts", 0, 1500)])
        held_out = {"photographs": part("validation", 0, 250), "classes": part("imagenet", 800, 1000),
                    "drafts": part("drafts", 2000, 2300)}  # fmt: skip
        tested = {"photographs": part("validation", 250, 500), "drafts": part("drafts", 2500, 2800)}
    else:
        near = encode(side, partial(drawn, types=TYPES), seeds("near", 2000))
        others = partial(drawn, types=TYPES, seeds="development")
        held_out, tested = ({"drawn": encode(side, others, seeds(use, 500))} for use in ("limit", "test"))
    far = {kind: encode(side, make, seeds(kind, 100)) for kind, make in strange.items()}
    measure = fit(near, np.concatenate([each[:75] for each in far.values()]), held_out.values())
    score, limit = measure["direction"].numpy(), float(measure["limit"])
    for kind, images in tested.items():
        print(f"held out, {kind}: {(images @ score > limit).mean():.1%} of {len(images)} taken for unlike")
    for kind, images in far.items():
        print(f"held out, {kind}: {(images[75:] @ score > limit).mean():.1%} of {len(images[75:])} found unlike")
    save_file(measure, Path(sources.resolve(f"{arguments.model}/vision")) / FAMILIAR_FILE)


if __name__ == "__main__":
    main()
