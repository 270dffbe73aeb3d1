"""Tables of pairs: formats with a row for each pair, which names or holds its picture."""

from __future__ import annotations

import csv
import functools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from minigpt4.data.pairs import BROKEN_SHARD, CAPTION_KEYS, Pair, make_pair
from minigpt4.errors import UserError
from minigpt4.images import PICTURE_ENDINGS

#: Where a row's picture is looked for: a path (from the file's own directory), bytes, or datasets' {"bytes", "path"}.
PICTURE_KEYS = ("image", "file_name", "image_path", "path", *PICTURE_ENDINGS)
LINES_SHARD = 4 << 20  # bytes of a JSONL file


class Table(ABC):
    """What they have in common: a `Reader` (see `sources.py`) by its shards and the rows of each."""

    caption_key: str | None

    def read(self, shard: Any, part: int, parts: int, stage: int) -> Iterator[Pair | str]:
        for row in islice(self._rows(shard), part, None, parts):
            if isinstance(row, str):
                yield row
            else:
                name, record, directory = row
                if isinstance(record.get("json"), Mapping):  # a tar shard of the hub
                    record = {**record, **record["json"]}
                yield make_pair(name, _picture(record, directory), record, stage, self.caption_key)

    def keys(self) -> list[str]:
        rows = (row for shard in self.shards()[:1] for row in self._rows(shard))
        return next((list(row[1]) for row in rows if not isinstance(row, str)), [])

    @abstractmethod
    def shards(self) -> list[Any]:
        """The parts that can be read apart from each other."""

    @abstractmethod
    def _rows(self, shard: Any) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        """(name, record, directory from which paths count) for each row, or the cause why there is none."""


@dataclass(frozen=True)
class JsonLines(Table):
    """A JSON object on each line, with `image` and a text. A shard is the lines that start in a stretch of bytes."""

    files: tuple[Path, ...]
    caption_key: str | None = None

    def shards(self) -> list[tuple[Path, int]]:
        return [(file, start) for file in self.files for start in range(0, file.stat().st_size, LINES_SHARD)]

    def _rows(self, shard: tuple[Path, int]) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        path, start = shard
        for number, line in self._lines(path, start):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                yield f"{path}:{number}" + (f" from byte {start} on" if start else ""), record, path.parent
            else:
                yield "broken line"

    @staticmethod
    def _lines(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
        """Numbered lines that start in this stretch of the file, but for empty ones."""
        with path.open("rb") as file:
            if start:
                file.seek(start - 1)
                file.readline()  # the line that the shard before ends with
            number, place = 0, file.tell()
            while place < start + LINES_SHARD and (line := file.readline()):
                number, place = number + 1, place + len(line)
                if line.strip():
                    yield number, line

    def count(self) -> int:
        return sum(1 for shard in self.shards() for _ in self._lines(*shard))


@dataclass(frozen=True)
class Csv(Table):
    """Comma-separated values with a header: a column for the picture's path and one for its text."""

    files: tuple[Path, ...]
    caption_key: str | None = None

    def shards(self) -> list[Path]:
        return list(self.files)

    def _rows(self, shard: Path) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        with shard.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.DictReader(file)
            while True:
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error:
                    yield "broken line"
                    continue
                yield f"{shard}:{rows.line_num}", row, shard.parent

    def count(self) -> int:
        return sum(1 for file in self.files for _ in self._rows(file))


@dataclass(frozen=True)
class Parquet(Table):
    """Parquet files; a shard is a row group."""

    files: tuple[Path, ...]
    caption_key: str | None = None

    def shards(self) -> list[tuple[Path, int]]:
        return [(file, group) for file in self.files for group in range(_parquet(file).num_row_groups)]

    def _rows(self, shard: tuple[Path, int]) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        import pyarrow

        path, group = shard
        number = 0
        file = _parquet(path)
        used = {*PICTURE_KEYS, *CAPTION_KEYS, self.caption_key, "instruction", "messages", "json"}
        columns = [name for name in file.schema_arrow.names if name in used]
        try:
            for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    yield f"{path}, row {number} of group {group}", row, path.parent
                    number += 1
        except (pyarrow.ArrowException, OSError):
            yield BROKEN_SHARD

    def count(self) -> int:
        return sum(_parquet(file).metadata.num_rows for file in self.files)

    def keys(self) -> list[str]:
        return list(_parquet(self.files[0]).schema_arrow.names)


@dataclass(frozen=True)
class Hub(Table):
    """A dataset of the Hugging Face hub, or a directory that `datasets` can load, streamed."""

    name: str
    split: str
    caption_key: str | None = None

    def shards(self) -> list[int]:
        return list(range(_load_hub(self.name, self.split).num_shards))

    def _rows(self, shard: int) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        dataset = _load_hub(self.name, self.split)
        number = 0
        # In batches: row by row, `datasets` would share this shard out once more over the workers of a DataLoader.
        for batch in dataset.shard(num_shards=dataset.num_shards, index=shard).iter(batch_size=16):
            for values in zip(*batch.values(), strict=True):
                row = dict(zip(batch, values, strict=True))
                yield f"hub:{self.name}:{self.split}, row {number} of shard {shard}", row, Path()
                number += 1

    def count(self) -> int | None:
        splits = _load_hub(self.name, self.split).info.splits or {}
        return splits[self.split].num_examples if self.split in splits else None


def _parquet(path: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"data {path}: cannot be read as parquet ({' '.join(str(error).split())})") from None


@functools.lru_cache(maxsize=8)
def _load_hub(name: str, split: str) -> Any:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split, streaming=True)
    except Exception as error:  # whatever hub, network and dataset scripts raise
        raise UserError(f"data hub:{name}:{split}: cannot be loaded ({' '.join(str(error).split())})") from None
    return dataset.decode(False) if dataset.features else dataset


def _picture(record: Mapping[str, Any], directory: Path) -> bytes | None:
    value = next((record[key] for key in PICTURE_KEYS if record.get(key)), None)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return None
    try:
        if value.startswith("hf://"):  # a file of a hub dataset
            import fsspec

            with fsspec.open(value, "rb") as file:
                return bytes(file.read())
        return (directory / Path(value).expanduser()).read_bytes()
    except (OSError, ValueError):
        return None
