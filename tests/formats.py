"""The same numbered pairs in every format that the package reads: for tests of the readers and of the stream."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from PIL import Image

from minigpt4.data.pairs import Pair
from minigpt4.data.sources import Source, open_source
from tiny import write_shard


def read(path: object, stage: int = 1, key: str | None = None) -> tuple[list[Pair], Counter[str]]:
    """All pairs of a source, in order, and how often each cause left one out."""
    reader, pairs, skipped = open_source(Source(str(path), caption_key=key)), list[Pair](), Counter[str]()
    for item in (item for shard in reader.shards() for item in reader.read(shard, 0, 1, stage)):
        if isinstance(item, Pair):
            pairs.append(item)
        else:
            skipped[item] += 1
    return pairs, skipped


def picture(number: int) -> bytes:
    """A small PNG of its own for every number."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def text(number: int) -> str:
    return f"picture number {number}"


def tars(directory: Path, numbers: Iterable[int], per_shard: int = 7) -> str:
    numbers = list(numbers)
    directory.mkdir(parents=True)
    for shard, start in enumerate(range(0, len(numbers), per_shard)):
        members = {}
        for i in numbers[start : start + per_shard]:
            members |= {f"{i:09d}.png": picture(i), f"{i:09d}.json": json.dumps({"caption": text(i)}).encode()}
        write_shard(directory / f"{shard:05d}.tar", members)
    return str(directory)


def descriptions(directory: Path, numbers: Iterable[int]) -> str:
    (directory / "image").mkdir(parents=True)
    rows = [{"image_id": str(i), "caption": text(i)} for i in numbers]
    for row in rows:
        (directory / "image" / f"{row['image_id']}.png").write_bytes(picture(int(row["image_id"])))
    (directory / "filter_cap.json").write_text(json.dumps({"annotations": rows}))
    return str(directory)


def folder(directory: Path, numbers: Iterable[int]) -> str:
    for i in numbers:
        place = directory / f"{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:05d}.png").write_bytes(picture(i))
        (place / f"{i:05d}.txt").write_text(text(i))
    return str(directory)


def _pictures(directory: Path, numbers: Iterable[int]) -> list[tuple[str, str]]:
    (directory / "pictures").mkdir(parents=True)
    for i in numbers:
        (directory / "pictures" / f"{i}.png").write_bytes(picture(i))
    return [(f"pictures/{i}.png", text(i)) for i in numbers]


def jsonl(directory: Path, numbers: Iterable[int]) -> str:
    rows = _pictures(directory, list(numbers))
    path = directory / "pairs.jsonl"
    path.write_text("".join(json.dumps({"image": name, "caption": words}) + "\n" for name, words in rows))
    return str(path)


def csv_folder(directory: Path, numbers: Iterable[int]) -> str:
    rows = _pictures(directory, list(numbers))
    with (directory / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    return str(directory)


def parquet(directory: Path, numbers: Iterable[int]) -> str:
    import pyarrow
    import pyarrow.parquet

    numbers = list(numbers)
    directory.mkdir(parents=True)
    images = [{"bytes": picture(i), "path": None} for i in numbers]
    table = pyarrow.table({"image": images, "caption": [text(i) for i in numbers], "other": numbers})
    pyarrow.parquet.write_table(table, directory / "train.parquet", row_group_size=6)
    return str(directory / "train.parquet")


def hub(directory: Path, numbers: Iterable[int]) -> str:
    """A dataset as it lies on a hub: two parquet files whose features say that `image` is a picture."""
    import datasets

    numbers = list(numbers)
    columns = {"image": [{"bytes": picture(i), "path": None} for i in numbers], "caption": [text(i) for i in numbers]}
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    dataset = datasets.Dataset.from_dict(columns, features=features)
    directory.mkdir(parents=True)
    for half in range(2):
        dataset.shard(2, half).to_parquet(directory / f"train-{half:05d}-of-00002.parquet")
    return f"hub:{directory}:train"


FORMATS: dict[str, Callable[[Path, Iterable[int]], str]] = {
    "tars": tars,
    "descriptions": descriptions,
    "folder": folder,
    "jsonl": jsonl,
    "csv": csv_folder,
    "parquet": parquet,
    "hub": hub,
}
