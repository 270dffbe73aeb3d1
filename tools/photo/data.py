"""Step 4 of the photo model: what both stages are trained on, as parquet files of images with texts.

python tools/photo/data.py --flickr8k DIR --imagenet DIR --out runs/photo/data

Stage 1: the 6,000 photographs of Flickr8k's train split with five captions each (the space before the full stop taken
out), the ImageNet samples with our captions and their class in words, and drawn website drafts. Stage 2: the texts of
datasets/photo-descriptions, photo-answers and photo-classes, with the photographs that they name, and pages of drafts.
"""

from __future__ import annotations

import argparse
import io
import random
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from generative import PAGES  # beside this file
from images import draft, drawn, written
from qformer import class_caption, tidy

from minigpt4.files import new_directory
from pocket.text.answers import website
from pocket.text.phrases import caption

DRAFTS, PAGE_DRAFTS = 2000, 400


def stage1(flickr8k: Path, imagenet: Path) -> Iterator[dict[str, Any]]:
    """Every image with its captions."""
    for file in sorted(flickr8k.glob("**/train-*.parquet")):
        for row in pq.read_table(file).to_pylist():
            yield {"image": row["image"], "captions": [tidy(row[f"caption_{k}"]) for k in range(5)]}
    ours = {row["file_name"]: row["captions"] for row in written("classes")}
    for file in sorted(imagenet.glob("**/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            rng = random.Random(row["wnid"])
            said = [*ours.get(row["image"]["path"], []), class_caption(row["label"], rng)]
            yield {"image": row["image"], "captions": list(dict.fromkeys(said))}
    for number, image in enumerate(sheets(DRAFTS)):
        said = tidy(caption(draft(number), random.Random(f"caption-{number}")))
        yield {"image": image, "captions": [said]}


def sheets(count: int) -> Iterator[dict[str, Any]]:
    """The first drafts as JPEG files."""
    with ProcessPoolExecutor() as pool:
        for number, data in enumerate(pool.map(sheet, range(count), chunksize=16)):
            yield {"bytes": data, "path": f"{number}.jpg"}


def sheet(number: int) -> bytes:
    buffer = io.BytesIO()
    drawn(number).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def stage2(flickr8k: Path, imagenet: Path) -> Iterator[dict[str, Any]]:
    """Photographs with a detailed description, or with a request and its answer; drafts with their page."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in written("descriptions", "answers"):
        told[row["file_name"]].append({"instruction": row.get("question"), "text": row.get("answer") or row["text"]})
    for row in written("classes"):
        told[row["file_name"]] += [
            {"instruction": None, "text": row["description"]}, {"instruction": row["question"], "text": row["answer"]},
        ]  # fmt: skip
    for file in [*sorted(flickr8k.glob("**/train-*.parquet")), *sorted(imagenet.glob("**/*.parquet"))]:
        for row in pq.read_table(file, columns=["image"]).to_pylist():
            for text in told[row["image"]["path"]]:
                yield {"image": row["image"], **text}
    for number, image in enumerate(sheets(PAGE_DRAFTS)):
        rng = random.Random(f"page {number}")
        yield {"image": image, "instruction": rng.choice(PAGES), "text": website(draft(number), rng)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--imagenet", type=Path, required=True, help="directory of the ImageNet samples' parquet file")
    parser.add_argument("--out", type=Path, default=Path("runs/photo/data"))
    arguments = parser.parse_args()
    sets = {
        "stage1": stage1(arguments.flickr8k, arguments.imagenet),
        "stage2": stage2(arguments.flickr8k, arguments.imagenet),
    }
    for name, rows in sets.items():
        with new_directory(arguments.out / name, overwrite=True, marker="pairs.parquet") as directory:
            pq.write_table(pa.Table.from_pylist(list(rows)), directory / "pairs.parquet", row_group_size=200)


if __name__ == "__main__":
    main()
