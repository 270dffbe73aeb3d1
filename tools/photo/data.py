"""Step 4 of the photo model: what both stages are trained on, as parquet files of images with texts.

python tools/photo/data.py --flickr8k DIR --imagenet DIR --out runs/photo/data

Stage 1: the 6,000 photographs of Flickr8k's train split with five captions each (the space before the full stop taken
out), the ImageNet samples with their class in words, and drawn website drafts. Stage 2: the texts of
datasets/photo-descriptions and datasets/photo-answers, with the photographs that they name.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from features import draft, drawn  # beside this file
from qformer import CLASS_FORMS, class_caption, tidy  # beside this file

from minigpt4.files import new_directory
from pocket.text.phrases import caption

DRAFTS = 2000

DATASETS = Path(__file__).parents[2] / "datasets"


def stage1(flickr8k: Path, imagenet: Path) -> Iterator[dict[str, Any]]:
    """Every image with its captions."""
    for file in sorted(flickr8k.glob("**/train-*.parquet")):
        for row in pq.read_table(file).to_pylist():
            yield {"image": row["image"], "captions": [tidy(row[f"caption_{k}"]) for k in range(5)]}
    for file in sorted(imagenet.glob("**/*.parquet")):
        for row in pq.read_table(file).to_pylist():
            rng = random.Random(row["wnid"])
            said = dict.fromkeys(class_caption(row["label"], rng) for _ in range(2 * len(CLASS_FORMS)))
            yield {"image": row["image"], "captions": list(said)[:4]}
    for number in range(DRAFTS):
        buffer = io.BytesIO()
        drawn(number).save(buffer, "JPEG", quality=92)
        said = tidy(caption(draft(number), random.Random(f"caption-{number}")))
        yield {"image": {"bytes": buffer.getvalue(), "path": f"{number}.jpg"}, "captions": [said]}


def stage2(flickr8k: Path) -> Iterator[dict[str, Any]]:
    """Photographs with a detailed description, or with a request and its answer."""
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, text in (("photo-descriptions/descriptions.jsonl", "text"), ("photo-answers/answers.jsonl", "answer")):
        for row in map(json.loads, (DATASETS / name).read_text(encoding="utf-8").splitlines()):
            told[row["file_name"]].append({"instruction": row.get("question"), "text": row[text]})
    for file in sorted(flickr8k.glob("**/train-*.parquet")):
        for row in pq.read_table(file, columns=["image"]).to_pylist():
            for text in told[row["image"]["path"]]:
                yield {"image": row["image"], **text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--imagenet", type=Path, required=True, help="directory of the ImageNet samples' parquet file")
    parser.add_argument("--out", type=Path, default=Path("runs/photo/data"))
    arguments = parser.parse_args()
    sets = {"stage1": stage1(arguments.flickr8k, arguments.imagenet), "stage2": stage2(arguments.flickr8k)}
    for name, rows in sets.items():
        with new_directory(arguments.out / name, overwrite=True, marker="pairs.parquet") as directory:
            pq.write_table(pa.Table.from_pylist(list(rows)), directory / "pairs.parquet", row_group_size=200)


if __name__ == "__main__":
    main()
