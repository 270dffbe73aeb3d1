"""How fast pairs are read, the loader alone: `python bench/data.py [--pairs 2000] [--workers 0 1 2]`.

Writes the same pocket pictures (192 px JPEG) with captions in every format that stage 1 reads, and prints one table:
pairs per second of the stream as files' bytes, and as pixel values of the paper's 224 px (decoded, resized and
normalised), for each number of worker processes; every figure is the median of several runs, from the first pair on.
Then what it takes to resume a shuffled stream at a pair in its middle.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from minigpt4.data.images import open_image
from minigpt4.data.mixture import PairStream, Source
from minigpt4.data.pairs import Pair, read_pairs

PIXELS = {"height": 224, "width": 224}


def write(directory: Path, count: int) -> dict[str, Source]:
    """The same pairs as tar shards, parquet, JSONL, CSV and an image folder."""
    import pyarrow
    import pyarrow.parquet

    from minigpt4.pocket.dataset import write_stage1

    tars = write_stage1(directory / "tars", count)
    pairs = list(read_pairs(str(tars), Counter()))
    folder, pictures = directory / "folder", directory / "pictures"
    folder.mkdir()
    pictures.mkdir()
    for i, pair in enumerate(pairs):
        (folder / f"{i}.jpg").write_bytes(pair.picture)
        (folder / f"{i}.txt").write_text(pair.text)
        (pictures / f"{i}.jpg").write_bytes(pair.picture)
    rows = [{"image": f"{i}.jpg", "caption": pair.text} for i, pair in enumerate(pairs)]
    (pictures / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (pictures / "metadata.csv").open("w", newline="") as file:
        csv.DictWriter(file, ["image", "caption"]).writerows([{"image": "image", "caption": "caption"}, *rows])
    columns = {"image": [{"bytes": p.picture, "path": None} for p in pairs], "caption": [p.text for p in pairs]}
    pyarrow.parquet.write_table(pyarrow.table(columns), directory / "pairs.parquet", row_group_size=500)
    places = {
        "tar shards": tars,
        "parquet": directory / "pairs.parquet",
        "JSONL": pictures / "pairs.jsonl",
        "CSV": pictures / "metadata.csv",
        "image folder": folder,
    }
    return {name: Source(str(place)) for name, place in places.items()}


def to_pixels(processor: Any, pair: Pair) -> Any:
    """What training needs of a picture, (3, 224, 224) float32."""
    return processor([open_image(pair.picture)], return_tensors="pt")["pixel_values"][0]


def rate(open_stream: Callable[[], PairStream], count: int, runs: int) -> float:
    """Pairs per second after the first pair, while `count` of them are read."""
    rates = []
    for _ in range(runs):
        stream = iter(open_stream())
        next(stream)
        start = time.perf_counter()
        read = sum(1 for _ in itertools.islice(stream, count))
        rates.append(read / (time.perf_counter() - start))
        del stream
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    pixels = partial(to_pixels, BlipImageProcessorPil(size=PIXELS))
    table = Table(title=f"Pairs per second, {arguments.pairs} pairs, buffer of 1,000")
    table.add_column("format")
    for workers in arguments.workers:
        table.add_column(f"bytes, {workers} workers", justify="right")
    for workers in arguments.workers:
        table.add_column(f"pixels, {workers} workers", justify="right")
    with tempfile.TemporaryDirectory() as directory:
        sources = write(Path(directory), arguments.pairs)
        for name, source in track(sources.items(), "formats"):
            cells = []
            for prepare, count in ((None, arguments.pairs), (pixels, arguments.pairs // 4)):
                for workers in arguments.workers:
                    stream = partial(
                        PairStream, [source], stage=1, seed=0, shuffle_buffer=1000, workers=workers, prepare=prepare
                    )
                    cells.append(f"{rate(stream, count, arguments.runs):,.0f}")
            table.add_row(name, *cells)
        Console().print(table)
        stream = PairStream([sources["tar shards"]], stage=1, seed=0, shuffle_buffer=1000)
        list(itertools.islice(stream, arguments.pairs + 500))
        resumed = PairStream([sources["tar shards"]], stage=1, seed=0, shuffle_buffer=1000)
        resumed.load_state_dict(stream.state_dict())
        start = time.perf_counter()
        next(iter(resumed))
        seconds, size = time.perf_counter() - start, len(json.dumps(stream.state_dict()))
        print(f"resumed in the middle of a block of 1,000 (tar shards): {seconds:.2f} s, from a state of {size} bytes")


if __name__ == "__main__":
    main()
