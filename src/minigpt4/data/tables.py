"""Tables of pairs: formats with a row for each pair, which names or holds its picture."""

from __future__ import annotations

import csv
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import IO, Any, AnyStr, TextIO

from minigpt4.data.pairs import (
    BROKEN_SHARD,
    CAPTION_KEYS,
    LARGEST_RECORD,
    TOO_LARGE,
    TOO_LONG,
    Pair,
    load_picture,
    make_pair,
    parse_record,
)  # fmt: skip
from minigpt4.data.workers import datasets_library
from minigpt4.errors import UserError
from minigpt4.images import LARGEST_IMAGE, PICTURE_ENDINGS

#: Where a row's picture is looked for: a path (from the file's own directory), bytes, or datasets' {"bytes", "path"}.
PICTURE_KEYS = ("image", "file_name", "image_path", "path", *PICTURE_ENDINGS)
LINES_SHARD = 4 << 20  # bytes of a JSONL file
UNPACKS = "in a part of a table that unpacks to far more than its size"
MOST_VALUES = 1000  # of a parquet file's column, for each row: a conversation's turns


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
        for number, line in read_lines(path, start, start + LINES_SHARD):
            record = parse_line(line)
            if isinstance(record, str):
                yield record
            else:
                yield f"{path}:{number}" + (f" from byte {start} on" if start else ""), record, path.parent

    def count(self) -> int:
        return sum(1 for path, start in self.shards() for _ in read_lines(path, start, start + LINES_SHARD))


def read_lines(path: Path, start: int = 0, end: float = math.inf) -> Iterator[tuple[int, bytes]]:
    """Numbered lines of a file that start in this stretch of its bytes, but for empty ones; see `read_line`."""
    with path.open("rb") as file:
        if start:
            file.seek(start - 1)
            read_line(file, end)  # the one that starts before
        number = 0
        while file.tell() < end and (line := read_line(file, end)):
            number += 1
            if line.strip():
                yield number, line


def read_line(file: IO[AnyStr], end: float = math.inf) -> AnyStr:
    """The next line. Of one that is longer than LARGEST_RECORD only the start is in memory, and returned.

    Such a line is not followed further than to the place `end`.
    """
    line = part = file.readline(LARGEST_RECORD + 1)
    while len(part) > LARGEST_RECORD and part[-1:] not in ("\n", "\r", b"\n") and file.tell() < end:
        part = file.readline(LARGEST_RECORD + 1)
    return line


def parse_line(line: bytes) -> dict[str, Any] | str:
    """The record on a line of JSONL, or the cause why there is none."""
    if len(line) > LARGEST_RECORD:
        return TOO_LONG
    record = parse_record(line)
    return "broken line" if record is None else record


@dataclass(frozen=True)
class Csv(Table):
    """Comma-separated values with a header: a column for the picture's path and one for its text."""

    files: tuple[Path, ...]
    caption_key: str | None = None

    def shards(self) -> list[Path]:
        return list(self.files)

    def _rows(self, shard: Path) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        with shard.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            lines = _CsvLines(file)
            rows = csv.reader(lines)
            head: list[str] | None = None
            while True:
                lines.taken = 0
                try:
                    row = next(rows, None)
                except csv.Error:
                    yield "broken line"
                    continue
                if row is None:
                    return
                if row and head:
                    yield f"{shard}:{rows.line_num}", dict(zip(head, row)), shard.parent  # noqa: B905 - short ones too
                head = head or row

    def count(self) -> int:
        return sum(1 for file in self.files for _ in self._rows(file))


@dataclass
class _CsvLines:
    """The lines of a CSV file; a record (of one or more) that is too long ends in an error, and the next follows."""

    file: TextIO
    taken: int = 0  # characters of this record

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        line = read_line(self.file)
        self.taken += len(line)
        if self.taken > LARGEST_RECORD:
            raise csv.Error(TOO_LONG)
        if not line:
            raise StopIteration
        return line


@dataclass(frozen=True)
class Parquet(Table):
    """Parquet files; a shard is a row group."""

    files: tuple[Path, ...]
    caption_key: str | None = None

    def shards(self) -> list[tuple[Path, int]]:
        return [(file, group) for file in self.files for group in range(_parquet(file).num_row_groups)]

    def _rows(self, shard: tuple[Path, int]) -> Iterator[tuple[str, Mapping[str, Any], Path] | str]:
        path, group = shard
        used = {*PICTURE_KEYS, *CAPTION_KEYS, self.caption_key, "instruction", "messages", "json"}
        try:
            for number, row in enumerate(parquet_rows(path, used, group=group)):
                yield row if isinstance(row, str) else (f"{path}, row {number} of group {group}", row, path.parent)
        except UserError:
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
        # Pages are read when they are needed: a row group may hold thousands of pictures.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise UserError(f"data {path}: cannot be read as parquet ({' '.join(str(error).split())})") from None


def parquet_rows(
    path: Path, columns: Collection[str | None], group: int | None = None, first: int = 0
) -> Iterator[dict[str, Any] | str]:
    """The rows of one row group, or of all, with those of `columns` that are there, or the cause why a row has none.

    In memory there is a page of the file and a few rows: fewer, the more the group could unpack to. A group that is
    left out counts as its number of rows. Rows before `first` are left out. Raises UserError for a broken file.
    """
    import pyarrow

    file = _parquet(path)
    names = [name for name in file.schema_arrow.names if name in columns]
    try:
        for number in range(file.num_row_groups) if group is None else [group]:
            size = file.metadata.row_group(number).num_rows
            if first < size:
                yield from islice(_group_rows(file, number, names), first, None)
            first = max(0, first - size)
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())})") from None


def _group_rows(file: Any, group: int, names: list[str]) -> Iterator[dict[str, Any] | str]:
    part = file.metadata.row_group(group)
    chunks = [part.column(i) for i in range(part.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
    # Pictures do not shrink by much, and texts no fiftyfold; a list of millions of values can take a few bytes.
    if any(
        chunk.total_uncompressed_size > max(LARGEST_IMAGE, 50 * chunk.total_compressed_size)
        or chunk.num_values > MOST_VALUES * part.num_rows
        for chunk in chunks
    ):
        yield from repeat(UNPACKS, part.num_rows)
        return
    largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    for batch in file.iter_batches(max(1, min(64, 2**26 // max(largest, 1))), row_groups=[group], columns=names):
        for row in (batch.slice(i, 1) for i in range(batch.num_rows)):
            yield row.to_pylist()[0] if row.nbytes <= LARGEST_IMAGE + LARGEST_RECORD else TOO_LARGE


@functools.lru_cache(maxsize=8)
def _load_hub(name: str, split: str) -> Any:
    try:
        dataset = datasets_library().load_dataset(name, split=split, streaming=True)
    except Exception as error:  # whatever hub, network and dataset scripts raise
        raise UserError(f"data hub:{name}:{split}: cannot be loaded ({' '.join(str(error).split())})") from None
    return dataset.decode(False) if dataset.features else dataset


def _picture(record: Mapping[str, Any], directory: Path) -> bytes | str | None:
    value = next((record[key] for key in PICTURE_KEYS if record.get(key)), None)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return None
    if not value.startswith("hf://"):
        return load_picture(Path(value) if value.startswith("~") else directory / value)
    import fsspec  # a file of a hub dataset

    try:
        with fsspec.open(value, "rb") as file:
            return bytes(file.read(LARGEST_IMAGE + 1))
    except (OSError, ValueError):
        return None
