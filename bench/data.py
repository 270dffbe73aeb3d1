"""How fast pairs are read, the loader alone: `python bench/data.py [--quick] [--pairs 2000] [--workers 0 1 2]`.

Writes the same pocket pictures (192 px JPEG) with captions in every format that stage 1 reads, and prints one table:
pairs per second of the stream as files' bytes, as pixel values of the paper's 224 px (decoded, resized and normalised),
and as what a training step takes (`StreamedLoader`: those pixels and tokens, in batches of like length, put together of
lanes), for each number of worker processes; every figure is the median of several runs, from the first pair on;
that of batches counts the workers' start too. Then what it takes to resume a shuffled stream at a pair in its middle.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from minigpt4.data.batches import tokenise
from minigpt4.data.mixture import PairStream, Source
from minigpt4.data.pairs import Pair
from minigpt4.images import open_image, to_pixels
from minigpt4.model.parts import image_token, load_tokenizer
from minigpt4.training.loader import POOL, StreamedLoader
from minigpt4.training.recipe import Recipe

PIXELS = {"height": 224, "width": 224}
BATCH, BUFFER = 32, 1000


def write(directory: Path, count: int) -> dict[str, Source]:
    """The same pairs as tar shards, parquet, JSONL, CSV and an image folder."""
    import pyarrow
    import pyarrow.parquet

    from pocket.data.training_sets import write_stage1

    tars = write_stage1(directory / "tars", count)
    pairs = list(PairStream([Source(str(tars))], stage=1, seed=0, shuffle_buffer=0, repeat=False))
    folder, pictures = directory / "folder", directory / "pictures"
    folder.mkdir()
    pictures.mkdir()
    for i, pair in enumerate(pairs):
        (folder / f"{i}.jpg").write_bytes(pair.image)
        (folder / f"{i}.txt").write_text(pair.text)
        (pictures / f"{i}.jpg").write_bytes(pair.image)
    rows = [{"image": f"{i}.jpg", "caption": pair.text} for i, pair in enumerate(pairs)]
    (pictures / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (pictures / "metadata.csv").open("w", newline="") as file:
        csv.DictWriter(file, ["image", "caption"]).writerows([{"image": "image", "caption": "caption"}, *rows])
    columns = {"image": [{"bytes": p.image, "path": None} for p in pairs], "caption": [p.text for p in pairs]}
    pyarrow.parquet.write_table(pyarrow.table(columns), directory / "pairs.parquet", row_group_size=500)
    places = {
        "tar shards": tars,
        "parquet": directory / "pairs.parquet",
        "JSONL": pictures / "pairs.jsonl",
        "CSV": pictures / "metadata.csv",
        "image folder": folder,
    }
    return {name: Source(str(place)) for name, place in places.items()}


def pixels_of(processor: Any, pair: Pair) -> Any:
    """What training needs of a picture, (3, 224, 224) float32."""
    return to_pixels(processor, [open_image(pair.image)])[0]


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


def batch_rate(source: Source, processor: Any, workers: int, count: int, runs: int) -> float:
    """Pairs per second in training's batches, from when the first is asked for, the workers' start included."""
    tokenizer = load_tokenizer("pocket/language")
    tokenised = partial(
        tokenise, tokenizer, instructions=(), max_text_tokens=32, num_query_tokens=32,
        image_token_id=image_token(tokenizer),
    )  # fmt: skip
    values = [f"data={source.path}", f"batch_size={BATCH}", f"shuffle_buffer={BUFFER}", f"workers={workers}"]
    recipe = Recipe.load("pocket-stage1", [*values, "stream=true"])
    stream = partial(PairStream, [source], stage=1, seed=0)
    rates = []
    for _ in range(runs):
        batches = StreamedLoader(stream, processor, tokenised, recipe).start(0)
        start = time.perf_counter()
        whole = -(-count // (POOL * BATCH)) * POOL  # lanes read whole pools
        for _ in range(whole):
            next(batches)
        rates.append(whole * BATCH / (time.perf_counter() - start))
        batches.close()
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="400 pairs, once")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.runs = 400, 1
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    processor = BlipImageProcessorPil(size=PIXELS)
    pixels = partial(pixels_of, processor)
    table = Table(title=f"Pairs per second, {arguments.pairs} pairs, buffer of {BUFFER:,}, by workers")
    table.add_column("format")
    for workers in arguments.workers:
        table.add_column(f"bytes, {workers}", justify="right")
    for workers in arguments.workers:
        table.add_column(f"pixels, {workers}", justify="right")
    for workers in arguments.workers:
        table.add_column(f"batches, {workers}", justify="right")
    with tempfile.TemporaryDirectory() as directory:
        sources = write(Path(directory), arguments.pairs)
        for name, source in track(sources.items(), "formats"):
            cells = []
            for prepare, count in ((None, arguments.pairs), (pixels, arguments.pairs // 4)):
                for workers in arguments.workers:
                    stream = partial(
                        PairStream, [source], stage=1, seed=0, shuffle_buffer=BUFFER, workers=workers, prepare=prepare
                    )
                    cells.append(f"{rate(stream, count, arguments.runs):,.0f}")
            for workers in arguments.workers:
                found = batch_rate(source, processor, workers, arguments.pairs, arguments.runs)
                cells.append(f"{found:,.0f}")
            table.add_row(name, *cells)
        Console().print(table)
        stream = PairStream([sources["tar shards"]], stage=1, seed=0, shuffle_buffer=BUFFER)
        list(itertools.islice(stream, arguments.pairs + 500))
        resumed = PairStream([sources["tar shards"]], stage=1, seed=0, shuffle_buffer=BUFFER)
        resumed.load_state_dict(stream.state_dict())
        start = time.perf_counter()
        next(iter(resumed))
        seconds, size = time.perf_counter() - start, len(json.dumps(stream.state_dict()))
        print(f"resumed in the middle of a block of 1,000 (tar shards): {seconds:.2f} s, from a state of {size} bytes")


if __name__ == "__main__":
    main()
