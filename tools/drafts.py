"""The vision side that reads website drafts as people draw them: `python tools/drafts.py WORK [--steps N]`.

The pocket model's own vision side knows one layout: a large title in the head of the sheet, and elements below it in
one order. This goes on from it, as it was trained itself (`pocket.towers.vision`: the truth of each query, captions
through the frozen captioning LM), on drafts with titles and elements in all places, orders and sizes, drawn by thick
and thin, steady and unsteady pens. Elements are always told in the same order, for the pocket LLM writes pages in no
other. `minigpt4 train` then aligns the projection on captions and descriptions of such drafts, which are written too:

    python tools/drafts.py WORK
    minigpt4 train pocket-stage1 vision_qformer=WORK/vision data=WORK/stage1 output=WORK/one steps=250
    minigpt4 train pocket-stage2 init=WORK/one/alignment data=WORK/stage2 output=WORK/two
    python tools/drafts.py WORK --ship       # the encoder in 8 bits, in the package
    python tools/drafts.py WORK --measure    # pages that the shipped models make of 40 drafts of either kind

Resumes where it was stopped. Needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minigpt4 import MiniGPT4
from minigpt4.files import new_directory
from minigpt4.model import parts
from minigpt4.model.quantization import layers_in, quantize, scale_name
from pocket.measure.webpage import check_page
from pocket.shipped import HERE
from pocket.text.phrases import caption, description
from pocket.towers.pretrain import Pretraining, pretrain
from pocket.towers.vision import (
    _IGNORED,
    _INDEX,
    IMAGE_SIZE,
    PATCH_SIZE,
    PictureBatch,
    TowerAndQFormer,
    caption_loss,
    normalise,
    query_truth,
    save_vision_side,
    truth_loss,
)
from pocket.world.brush import Point, arc
from pocket.world.draft import draw_element
from pocket.world.draw import draw
from pocket.world.handwriting import _LETTERS as LETTERS
from pocket.world.handwriting import Pen, _smooth
from pocket.world.surroundings import paper
from pocket.world.world import ELEMENTS, SEEDS, TITLES, Box, Picture, Thing, sample

BATCH, SPOKEN = 32, 8  # drafts of a step, and those among them whose caption is said too: it costs half a step
#: Seeds of what is trained on, looked at while building, and given to the projection.
TRAINED, LOOKED_AT, ALIGNED = SEEDS["towers"][0] + 9_000_000, SEEDS["development"][0] + 900_000, SEEDS["stage1"][0]
HEIGHTS = {
    "navigation": (0.05, 0.11), "image": (0.13, 0.4), "text": (0.07, 0.27), "list": (0.1, 0.3), "input": (0.055, 0.13),
    "button": (0.055, 0.15),
}  # fmt: skip


#: Other forms of letters that hands write differently, in the notation of `handwriting._LETTERS`.
OTHERS = {
    "A": "~0a 04 30 64 6a|-06 66", "B": "-0a 00 50 63 45 05|-45 67 5a 0a", "C": "-60 20 02 08 2a 6a",
    "D": "-00 0a 3a 67 63 30 00", "E": "~61 20 03 35 07 2a 69", "G": "-61 40 10 02 08 2a 6a 66 36", "I": "-00 0a",
    "J": "~50 57 3a 08", "K": "-00 0a|-60 06 6a", "M": "-0a 00 47 80 8a", "N": "-00 0a|-00 6a|-6a 60",
    "Q": "-20 02 08 2a 5a 68 62 40 20|-57 7b", "R": "-0a 00 50 62 45 05|-45 6a", "S": "-60 10 02 04 65 68 5a 0a",
    "T": "-00 70|-30 3a", "U": "-00 08 2a 4a 68 60", "W": "-00 0a 45 8a 80", "Y": "-00 35|-60 1a",
    "Z": "-00 60 0a 6a|-15 55",
    "a": "~14 34 55 5a|~56 26 08 2a 58", "b": "-00 0a 3a 58 56 35 05", "c": "-54 14 05 09 1a 5a",
    "d": "-50 5a 1a 08 06 15 55", "e": "-07 57 55 34 14 05 09 1a 5a", "f": "-50 20 11 1a|-05 45",
    "g": "-54 14 05 08 1a 59|-54 5c 3d 0d", "h": "-00 0a|-05 45 56 5a", "i": "-04 0a|-01 02",
    "j": "-34 3c 2d 0d|-31 32", "k": "-00 0a|-54 07 5a", "l": "~00 09 2a", "m": "-0a 04 47 84 8a",
    "n": "-0a 04 44 56 5a", "o": "-14 05 09 1a 4a 59 55 44 14", "p": "-04 0d|-04 44 55 58 4a 0a",
    "q": "-54 14 05 08 1a 5a|-54 5d", "r": "-04 0a|-06 14 44",
    "s": "-54 14 05 17 47 59 4a 0a", "t": "-20 2a|-04 44", "u": "~04 08 3a 58 54", "v": "~04 18 2a 38 54",
    "w": "~04 08 2a 48 45 48 6a 88 84", "x": "~04 26 3a 5a|-54 0a", "y": "~04 08 2a 58|~54 5b 3d 0c",
    "z": "-04 54 0a 5a|-17 47",
}  # fmt: skip


class FreePen(Pen):
    """A pen in another hand each time: steadier or less steady, letters round or in corners, close or wide apart."""

    def __init__(self, canvas: Image.Image, rng: random.Random) -> None:
        ink = rng.choice(((28, 44, 110), (34, 34, 40), (72, 74, 84), (0, 0, 0)))
        super().__init__(canvas, rng, ink, rng.choice((0.0065, rng.uniform(0.005, 0.018))))
        self.unsteady = rng.choice((0.0, 0.5, 1.0, 1.6))
        far = rng.choice((0.0, 0.004, 0.008, 0.014))
        self.waves = [
            (rng.uniform(0.5, 1) * far, rng.uniform(-14, 14), rng.uniform(-14, 14), rng.uniform(0, 7)) for _ in range(4)
        ]

    def curve(self, points: Sequence[Point], weight: float = 1.0) -> None:
        """As `Pen.curve`, on a sheet that is stretched here and pressed there, so that no two shapes are the same."""
        points = [
            (x + sum(far * math.sin(across * x + down * y + turn) for far, across, down, turn in self.waves[:2]),
             y + sum(far * math.sin(across * x + down * y + turn) for far, across, down, turn in self.waves[2:]))
            for x, y in points
        ]  # fmt: skip
        super().curve(points, weight)

    def outline(self, left: float, top: float, right: float, bottom: float) -> None:
        """A frame in one of the ways that people draw one: four strokes, one stroke, round corners, ends that miss."""
        rng, how = self.rng, self.rng.random()
        if how < 0.35:
            self.frame(left, top, right, bottom)
        elif how < 0.6:
            miss = rng.uniform(-0.02, 0.02)
            corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top + miss)]
            if rng.random() < 0.5:
                corners = [(left, top + miss), (left, bottom), (right, bottom), (right, top), (left, top)]
            self.curve([(x + rng.gauss(0, 0.004), y + rng.gauss(0, 0.004)) for x, y in corners])
        elif how < 0.8:
            over = [rng.uniform(-0.006, 0.015) for _ in range(4)]
            self.straight((left - over[0], top), (right + over[1], top))
            self.straight((left, top - over[2]), (left, bottom + over[3]))
            self.straight((left - over[3], bottom), (right + over[2], bottom))
            self.straight((right, top - over[1]), (right, bottom + over[0]))
        else:
            self.rounded(left, top, right, bottom, rng.uniform(0.15, 0.5))

    def rounded(self, left: float, top: float, right: float, bottom: float, share: float) -> None:
        """A frame with round corners, of `share` of its shorter side."""
        radius = share * min(right - left, bottom - top)
        turns = ((right, top, -90), (right, bottom, 0), (left, bottom, 90), (left, top, 180))
        edge = [
            point
            for x, y, first in turns
            for point in arc(
                x - radius if x == right else x + radius, y + radius if y == top else y - radius, radius, radius,
                first, first + 90, 5,
            )
        ]  # fmt: skip
        self.curve([*edge, edge[0]])

    def word(self, left: float, right: float, y: float, height: float) -> None:
        """A scribble that stands for words: waves, corners, or a line."""
        rng, how = self.rng, self.rng.random()
        if how < 0.35:
            self.wave(left, right, y, height)
        elif how < 0.75:
            count = max(3, round((right - left) / (height * rng.uniform(0.4, 1.2))))
            ups = [
                (left + (right - left) * i / count, y + (i % 2 - 0.5 + rng.uniform(-0.2, 0.2)) * height)
                for i in range(count + 1)
            ]
            self.curve(_smooth(ups) if rng.random() < 0.4 else ups)
        else:
            self.straight((left, y), (right, y))

    def write(self, text: str, left: float, top: float, right: float, bottom: float) -> None:
        """Writes a word as large as fits, in capitals at times: this hand's letters, as it spaces and leans them."""
        rng, others = self.rng, self.rng.choice((0.0, 0.4, 0.8))
        text = text.upper() if rng.random() < 0.1 else text
        cornered, off, shape = rng.random() < 0.4, rng.choice((0.0, 0.25, 0.5)), rng.choice((0.0, 0.08, 0.16))
        form = {letter: OTHERS[letter] if rng.random() < others and letter in OTHERS else LETTERS[letter]
                for letter in sorted(set(text))}  # fmt: skip
        letters = []
        for letter in text:
            slant, wide, high = (
                rng.uniform(-shape, shape),
                1 + rng.uniform(-shape, shape),
                1 + rng.uniform(-shape, shape),
            )
            strokes = []
            for line in form[letter].split("|"):
                points = [
                    (wide * int(x, 16) + slant * (7 - int(y, 16)), 10 + high * (int(y, 16) - 10))
                    for x, y in line[1:].split()
                ]
                points = [(x + rng.uniform(-off, off), y + rng.uniform(-off, off)) for x, y in points]
                strokes.append(points if cornered or line[0] == "-" else _smooth(points))
            edge = min(x for line in strokes for x, _ in line)
            letters.append([[(x - edge, y) for x, y in line] for line in strokes])
        gap, widths = rng.uniform(1.0, 3.2), [max(x for line in strokes for x, _ in line) for strokes in letters]
        columns = sum(widths) + gap * (len(letters) - 1)
        rows = max(y for strokes in letters for line in strokes for _, y in line)
        unit_y = (bottom - top) / (rows + 0.6)
        unit_x = min((right - left) / (columns + 1), rng.uniform(0.9, 1.7) * unit_y)
        unit_y = min(unit_y, 1.6 * unit_x)
        x, y = (left + right - columns * unit_x) / 2, (top + bottom - rows * unit_y) / 2
        slant, rise, weight = rng.uniform(-0.06, 0.2), rng.uniform(-0.04, 0.04), rng.choice((1.0, 1.25))
        for strokes, width in zip(letters, widths, strict=True):
            lift = rng.uniform(-0.4, 0.4)
            for line in strokes:
                across = [x + (px + (7 - py) * slant) * unit_x for px, py in line]
                down = [y + (py + lift) * unit_y + rise * (at - left) for at, (_, py) in zip(across, line, strict=True)]
                self.curve(list(zip(across, down, strict=True)), weight)
            x += (width + gap) * unit_x

    def straight(self, start: Point, end: Point, weight: float = 1.0) -> None:
        """As `Pen.straight`, or a line between exactly these points."""
        if self.unsteady == 0:
            self.curve([start, end], weight)
        else:
            off = [0.006 * self.unsteady * self.rng.uniform(-1, 1) for _ in range(6)]
            (x0, y0), (x1, y1) = start, end
            middle = ((x0 + x1) / 2 + off[4], (y0 + y1) / 2 + off[5])
            self.curve([(x0 + off[0], y0 + off[1]), middle, (x1 + off[2], y1 + off[3])], weight)


def layout(seed: int) -> tuple[Picture, Box]:
    """A draft, and the box of its title. Its items stand in the order of `ELEMENTS`, wherever they are drawn."""
    rng = random.Random(f"free-{seed}")
    drawn = rng.sample(ELEMENTS, rng.choice((2, 3, 3, 4, 4, 5, 6)))
    if rng.random() < 0.5:
        drawn.sort(key=ELEMENTS.index)
    if rng.random() < 0.35:  # as the sheet's button writes it
        title = (0.1, 0.05, 0.9, 0.22)
    else:
        width, height, top = rng.uniform(0.35, 0.85), rng.uniform(0.08, 0.17), rng.uniform(0.015, 0.1)
        left = rng.choice((rng.uniform(0.03, 0.1), (1 - width) / 2, rng.uniform(0.03, 0.97 - width)))
        title = (left, top, left + width, top + height)
    heights = {name: rng.uniform(*HEIGHTS[name]) for name in drawn}
    widest_gap, top = rng.choice((0.05, 0.12)), title[3] + rng.uniform(0.015, 0.12)
    rows: list[list[str]] = []
    for name in drawn:  # an element stands alone, or beside the one before
        if rows and len(rows[-1]) == 1 and rng.random() < 0.25:
            rows[-1].append(name)
        else:
            rows.append([name])
    gaps = [rng.uniform(0.015, widest_gap) for _ in rows]
    scale = min(
        1.0, (0.97 - top) / sum(max(heights[name] for name in row) + gap for row, gap in zip(rows, gaps, strict=True))
    )
    aligned, boxes = rng.uniform(0.03, 0.3) if rng.random() < 0.4 else None, {}
    for row, gap in zip(rows, gaps, strict=True):
        share = 0.94 / len(row)
        for place, name in enumerate(row):
            first, widest = 0.03 + place * share, share - 0.03 * (len(row) > 1)
            width = widest * (rng.uniform(0.25, 0.6) if name == "button" else rng.uniform(0.4, 1.0))
            if name == "list":
                width = max(width, 0.25)
            left = first + rng.uniform(0, widest - width)
            if aligned is not None and not place:
                left = min(aligned, first + widest - width)
            boxes[name] = (left, top, left + width, top + scale * heights[name] * rng.uniform(0.9, 1))
        top += scale * (gap + max(heights[name] for name in row))
    items = tuple(Thing(name, boxes=(boxes[name],)) for name in sorted(drawn, key=ELEMENTS.index))
    return Picture("draft", rng.choice(TITLES), items, seed), title


def _lines(pen: Pen, box: Box, count: int, draw: Callable[[float, float, float], None]) -> None:
    step = (box[3] - box[1]) / count
    for number in range(count):
        draw(box[1] + (number + 0.5) * step, step, 0.6 if number == count - 1 else 1.0)


def draw_freely(pen: FreePen, name: str, box: Box) -> None:
    """The element as the training drafts have it, or as others draw it: other frames, words, points and hatching."""
    rng, (left, top, right, bottom) = pen.rng, box
    width, height = right - left, bottom - top
    if rng.random() < 0.35:
        draw_element(pen, name, box)
    elif name == "navigation":
        count, share, worded = rng.choice((2, 3, 3, 4, 4, 5)), rng.uniform(0.65, 0.92), rng.random() < 0.8
        for number in range(count):
            start = left + number * width / count
            end = start + share * width / count
            pen.outline(start, top, end, bottom)
            if worded:
                inset = rng.uniform(0.12, 0.3) * (end - start)
                pen.word(start + inset, end - inset, (top + bottom) / 2, rng.uniform(0.2, 0.45) * height)
    elif name == "image":
        pen.outline(left, top, right, bottom)
        if rng.random() < 0.6:
            inset = rng.uniform(0, 0.03)
            pen.straight((left + inset, top + inset), (right - inset, bottom - inset))
            pen.straight((left + inset, bottom - inset), (right - inset, top + inset))
        else:
            peak, foot = left + rng.uniform(0.25, 0.6) * width, bottom - rng.uniform(0, 0.1) * height
            ridge = [(left, foot), (peak, top + rng.uniform(0.2, 0.5) * height)]
            if rng.random() < 0.6:
                second = peak + rng.uniform(0.35, 0.7) * (right - peak)
                dip = (peak + rng.uniform(0.4, 0.6) * (second - peak), top + 0.75 * height)
                ridge += [dip, (second, top + rng.uniform(0.35, 0.6) * height)]
            pen.curve([*ridge, (right, foot)])
            if rng.random() < 0.6:
                radius, middle = rng.uniform(0.08, 0.18) * min(width, height), rng.uniform(0.7, 0.85)
                pen.curve(arc(left + middle * width, top + 0.24 * height, radius, radius, 0, 360, 12))
    elif name == "text":
        rows = max(2, min(6, round(height / rng.uniform(0.035, 0.075))))
        how, high, even = rng.choice(("word", "straight", "straight", "zigzag")), rng.uniform(0.25, 0.6), rng.random()
        high = min(high * height / rows, 0.04)

        def line(y: float, step: float, share: float) -> None:
            end = left + share * width * (1 if even < 0.5 else rng.uniform(0.85, 1))
            if how == "zigzag":
                count = max(4, round((end - left) / rng.uniform(0.015, 0.05)))
                sides = [(left + (end - left) * i / count, y + (i % 2 - 0.5) * high) for i in range(count + 1)]
                pen.curve(_smooth(sides) if even < 0.25 else sides)
            elif how == "word":
                pen.wave(left, end, y, high)
            else:
                pen.straight((left, y), (end, y))

        _lines(pen, box, rows, line)
    elif name == "list":
        rows = max(2, min(5, round(height / rng.uniform(0.05, 0.09))))
        worded, mark, inset = (
            rng.random() < 0.5,
            rng.choice(("box", "dash", "ring", "ring", "dot")),
            rng.uniform(0.05, 0.1),
        )
        size, longest = rng.uniform(0.008, 0.02), rng.uniform(0.45, 1)

        def point(y: float, step: float, share: float) -> None:
            radius = min(size, 0.3 * step)
            if mark == "box":
                pen.frame(left, y - radius, left + 2 * radius, y + radius)
            elif mark == "dash":
                pen.straight((left, y), (left + 0.02, y), 2.0)
            else:
                round_ = arc(left + radius, y, radius, radius, 0, rng.uniform(330, 400), 12)
                pen.curve(round_, 1.0)
                if mark == "dot":
                    pen.curve(arc(left + radius, y, 0.5 * radius, 0.5 * radius, 0, 360, 8), 1.5)
            end = left + inset + longest * rng.uniform(0.75, 1) * (width - inset)
            if worded:
                pen.word(left + inset, end, y, rng.uniform(0.25, 0.4) * step)
            else:
                pen.straight((left + inset, y), (end, y))

        _lines(pen, box, rows, point)
    elif name == "input":
        pen.outline(left, top, right, bottom)
        at, high = left + rng.uniform(0.02, 0.05), rng.uniform(0.1, 0.3) * height
        pen.straight((at, top + high), (at, bottom - high))
    else:
        if rng.random() < 0.5:
            pen.rounded(left, top, right, bottom, rng.uniform(0.2, 0.5))
        else:
            pen.outline(left, top, right, bottom)
        lean, gap, inset = (
            min(rng.uniform(0.2, 1) * height, 0.4 * width),
            rng.uniform(0.025, 0.06),
            rng.uniform(0, 0.12) * height,
        )
        x, back = left + rng.uniform(0, 0.3) * height, rng.random() < 0.2
        while x + lean < right:
            ends = (x + lean, x) if back else (x, x + lean)
            pen.straight((ends[0], bottom - inset), (ends[1], top + inset), 0.8)
            x += gap * rng.uniform(0.85, 1.15)


def image_of(picture: Picture, title: Box, size: int = 288) -> Image.Image:
    """The draft, RGB, `size` x `size`; always the same for the same seed."""
    rng = random.Random(f"draw-{picture.seed}")
    canvas = paper(2 * size, rng) if rng.random() < 0.3 else Image.new("RGB", (2 * size, 2 * size), "white")
    pen = FreePen(canvas, rng)
    pen.write(picture.setting, *title)
    for item in picture.items:
        draw_freely(pen, item.kind, item.boxes[0])
    return canvas.reduce(2)


def _patches(picture: Picture, title: Box) -> Tensor:
    """The concept number of each patch, as `patch_truth` gives it, with the title's where it stands."""
    side = IMAGE_SIZE // PATCH_SIZE
    at = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(at, at, indexing="ij")
    found = torch.zeros(side, side, dtype=torch.long)
    for concept, box in ((picture.setting, title), *((item.kind, item.boxes[0]) for item in picture.items)):
        left, top, right, bottom = box
        found[(x > left) & (x < right) & (y > top) & (y < bottom)] = _INDEX[concept]
    return found.flatten()


class Drafts:
    """Batch number `n`: drafts that follow from `n` alone."""

    def __init__(self, tokenizer: Callable[..., object], first: int, size: int = BATCH) -> None:
        self.tokenizer, self.first, self.size = tokenizer, first, size

    def __call__(self, number: int) -> PictureBatch:
        first = self.first + number * self.size
        drafts = [layout(seed) for seed in range(first, first + self.size)]
        said = [torch.tensor(self._caption(picture)) for picture, _ in drafts]
        size = (IMAGE_SIZE, IMAGE_SIZE)
        images = [np.asarray(image_of(*draft).resize(size, Image.Resampling.BICUBIC)) for draft in drafts]
        concepts = torch.stack([_patches(*draft) for draft in drafts])
        return PictureBatch(
            normalise(images),
            concepts,
            torch.zeros_like(concepts),
            torch.tensor([query_truth(picture) for picture, _ in drafts]),
            pad_sequence(said, batch_first=True, padding_value=self.tokenizer.pad_token_id),
            pad_sequence(said, batch_first=True, padding_value=_IGNORED),
        )

    def _caption(self, picture: Picture) -> Sequence[int]:
        said, end = self.tokenizer(
            [caption(picture, random.Random(f"say-{picture.seed}")), "\n"], add_special_tokens=False
        ).input_ids
        return [*said, *end]


def write_pairs(out: Path, first: int, count: int) -> None:
    """Drafts with captions as tar shards in `out/stage1`, a tenth as many with descriptions in `out/stage2`."""
    (out / "stage1").mkdir(parents=True, exist_ok=True)
    (out / "stage2" / "image").mkdir(parents=True, exist_ok=True)
    annotations = []
    with tarfile.open(out / "stage1" / "00000.tar", "w") as shard:
        for seed in range(first, first + count):
            picture, title = layout(seed)
            buffer = BytesIO()
            image_of(picture, title).save(buffer, "JPEG", quality=92)
            if seed % 10 == 0:
                (out / "stage2" / "image" / f"{seed}.jpg").write_bytes(buffer.getvalue())
                text = description(picture, random.Random(f"description-{seed}"))
                annotations.append({"image_id": str(seed), "caption": text})
            record = json.dumps({"caption": caption(picture, random.Random(f"caption-{seed}")), "key": str(seed)})
            for name, content in ((f"{seed}.jpg", buffer.getvalue()), (f"{seed}.json", record.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, BytesIO(content))
    (out / "stage2" / "filter_cap.json").write_text(json.dumps({"annotations": annotations}, indent=1))


def ship(work: Path) -> None:
    """Puts what was trained into the package, its encoder in 8 bits, as `pocket-drafts`."""
    model = MiniGPT4.from_pretrained(work / "two" / "alignment", dtype=torch.float32, device="cpu")
    vision, place = parts.load_vision_qformer(work / "vision"), HERE / "drafts"
    tensors = dict(vision.tensors)
    for layer in layers_in("int8", model.blip2.vision_model):
        name = f"{parts.ENCODER_PREFIX}{layer}.weight"
        tensors[name], tensors[scale_name(name)] = quantize(tensors[name].float(), torch.int8)
    with new_directory(place / "vision", overwrite=True, marker="config.json") as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / "model.safetensors")
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copy(work / "vision" / name, new / name)
    shipped = MiniGPT4.assemble(place / "vision", "pocket/language", template="pocket", dtype=torch.float32)
    shipped.blip2.language_projection.load_state_dict(model.blip2.language_projection.state_dict())
    shipped.origin, shipped.stage = replace(shipped.origin, vision_qformer="pocket/drafts"), 2
    shipped.save_pretrained(place / "alignment", overwrite=True)


def measure(count: int = 40) -> None:
    """Prints how many drafts become pages with their title and elements: asked at once, and described first."""
    seeds = range(SEEDS["development"][0] + 500_000, SEEDS["development"][0] + 500_000 + count)
    world = [(sample(seed, "draft"), draw(sample(seed, "draft"), 384)) for seed in seeds]
    free = [
        (layout(seed)[0], image_of(*layout(seed), 384)) for seed in range(LOOKED_AT + 1000, LOOKED_AT + 1000 + count)
    ]
    greedy = {"do_sample": False, "repetition_penalty": 1.0}
    for name in ("pocket", "pocket-drafts"):
        model = MiniGPT4.from_pretrained(name, device="cpu")
        for kind, drafts in (("the world's drafts", world), ("drafts in other layouts", free)):
            right = [0, 0]
            for picture, image in drafts:
                for described in (False, True):
                    chat = model.start_chat()
                    if described:
                        chat.ask("Describe this image in detail.", image=image, **greedy)
                    page = chat.ask("Write the HTML for this website.", image=None if described else image, **greedy)
                    right[described] += check_page(page, picture.setting, [item.kind for item in picture.items]) is None
            print(f"{name}, {kind}: {right[0]} of {count} asked at once, {right[1]} described first", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seconds", type=float, help="ends training after so many")
    parser.add_argument("--pairs", type=int, default=3000, help="drafts for stage 1")
    parser.add_argument("--ship", action="store_true", help="put what was trained into the package")
    parser.add_argument("--measure", action="store_true", help="count the pages that the shipped models get right")
    arguments = parser.parse_args()
    if arguments.ship or arguments.measure:
        ship(arguments.work) if arguments.ship else measure()
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.manual_seed(0)
    begun = MiniGPT4.from_pretrained("pocket-blip2", dtype=torch.float32, device="cpu")
    blip2, tokenizer = begun.blip2, begun.tokenizer
    blip2.config.text_config._name_or_path = ""  # else it names a directory of the machine that made it
    blip2.requires_grad_(True)
    blip2.language_model.requires_grad_(False)
    for part in (blip2.language_model, blip2.vision_model):
        part.set_attn_implementation("eager")
    side = TowerAndQFormer(blip2)
    held_out = Drafts(tokenizer, LOOKED_AT, 128)(0)

    def loss(batch: PictureBatch) -> tuple[Tensor, dict[str, float]]:
        truth, queries, figures = truth_loss(side, batch)
        few = PictureBatch(*(tensor[:SPOKEN] for tensor in vars(batch).values()))
        captioning = caption_loss(blip2, queries[:SPOKEN], few, tokenizer.bos_token_id)
        return truth + captioning, {**figures, "caption": captioning.item()}

    @torch.inference_mode()
    def evaluate() -> dict[str, float]:
        _, queries, figures = truth_loss(side, held_out)
        said = side.query_concept(queries.float()).argmax(-1)
        whole = ((said == held_out.query_concept) | (held_out.query_concept == 0)).all(1).float().mean().item()
        return {f"held_out_{name}": round(figure, 4) for name, figure in {**figures, "whole": whole}.items()}

    plan = Pretraining(
        arguments.steps, muon_lr=0, adam_lr=5e-4, warmup=30, decay_share=0.5, checkpoint_every=25,
        seconds=arguments.seconds,
    )  # fmt: skip
    run = partial(pretrain, side, loss=loss, evaluate=evaluate, evaluate_every=50)
    run(batch=Drafts(tokenizer, TRAINED), plan=plan, out=arguments.work / "run")
    save_vision_side(blip2, begun.origin.llm, arguments.work)
    write_pairs(arguments.work, ALIGNED, arguments.pairs)


if __name__ == "__main__":
    main()
