"""Where pairs come from: every format behind one face, cut into shards that can be read apart from each other.

A reader knows its shards and reads one of them, or every n-th pair of one; what gives no pair is told by cause, in its
place. Readers hold no open files, so they travel to other processes. Knows nothing about order, mixing or models.
"""

from __future__ import annotations

import functools
import math
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from minigpt4.data.descriptions import read_annotations, read_items
from minigpt4.data.pairs import (
    CAPTION_KEYS,
    LARGEST_RECORD,
    TOO_LONG,
    Pair,
    find_shards,
    load_picture,
    make_pair,
    parse_record,
    read_tar,
    tar_members,
)  # fmt: skip
from minigpt4.data.tables import Csv, Hub, JsonLines, Parquet
from minigpt4.errors import UserError
from minigpt4.files import TooLargeError, expanded, read_file
from minigpt4.images import is_picture

_USUAL_KEYS = "under the usual keys (" + ", ".join(CAPTION_KEYS) + ")"
FOLDER_SHARD = 1000  # pictures of a folder
TRIED = 100  # pairs that are looked at before a run


@dataclass(frozen=True)
class Source:
    """One source of pairs, as a recipe names it.

    Attributes:
        path: tar shards (`{00000..10488}.tar`), a directory (tar or parquet shards, cc_sbu_align, an image folder), a
            `.jsonl`, `.csv` or `.parquet` file or a pattern of them, or `hub:owner/name[:split]`.
        weight: share of the pairs drawn, relative to the other sources.
        caption_key: column or JSON key of the text; None takes the usual ones.
    """

    path: str
    weight: float = 1.0
    caption_key: str | None = None

    @property
    def caption_at(self) -> str:
        """Where the text is looked for, in words."""
        return f"under {self.caption_key!r}" if self.caption_key else _USUAL_KEYS


class Reader(Protocol):
    """One format. A shard is whatever `shards` lists: small, and good to be sent to another process."""

    def shards(self) -> list[Any]:
        """The parts that can be read apart from each other."""

    def read(self, shard: Any, part: int, parts: int, stage: int) -> Iterator[Pair | str]:
        """Every `parts`-th pair of a shard from number `part` on, or the cause why there is none."""

    def count(self) -> int | None:
        """How many pairs there are at most, if that can be known in a moment."""

    def keys(self) -> list[str]:
        """Keys of the first record, for a message."""


def open_source(source: Source) -> Reader:
    """The reader for the format of `source`. Raises UserError if nothing is there, or nothing in a known format."""
    name, path = source.path, Path(expanded(source.path))
    if name.startswith("hub:"):
        repository, _, split = name.removeprefix("hub:").partition(":")
        return Hub(repository, split or "train", source.caption_key)
    for ending, reader in _BY_ENDING.items():
        if path.suffix == f".{ending}":
            return reader(tuple(find_shards(str(path), ending)), source.caption_key)
    if path.is_dir():
        for place in (path, path / "train"):  # curation's export with a validation split, and Hugging Face's layout
            if (place / "filter_cap.json").is_file():
                return Descriptions(place)
            tables = [place / f"metadata.{ending}" for ending in ("jsonl", "csv", "parquet")]
            for table in filter(Path.is_file, tables):
                return _BY_ENDING[table.suffix[1:]]((table,), source.caption_key)
            for ending in ("tar", "parquet"):
                if any(place.glob(f"*.{ending}")):
                    return _BY_ENDING[ending](tuple(find_shards(str(place), ending)), source.caption_key)
        if any(is_picture(file) for file in path.rglob("*")):
            return Folder(path, source.caption_key)
        raise UserError(
            f"data {name}: holds none of: *.tar, *.parquet, filter_cap.json with image/, metadata.csv, metadata.jsonl, "
            "or pictures with a .txt of the same name"
        )
    if not path.exists():
        find_shards(str(path))  # says what is missing
    raise UserError(f"data {name}: unknown format; a directory, .tar, .jsonl, .csv, .parquet or hub:NAME was expected")


def check_source(source: Source, stage: int) -> None:
    """Read the first pairs. Raises UserError for what is missing, or if none of them has a text where it should be."""
    if not 0 < source.weight < math.inf:
        raise UserError(f"data {source.path}: weight {source.weight}: expected a number above 0")
    reader = open_source(source)
    causes = set()
    items = (item for shard in reader.shards() for item in reader.read(shard, 0, 1, stage))
    for item in islice(items, TRIED):
        if isinstance(item, Pair):
            return
        causes.add(item)
    if causes & {"no caption", "no description"}:
        keys = ", ".join(reader.keys()) or "none"
        raise UserError(
            f"data {source.path}: none of the first pairs has a text {source.caption_at}; "
            f"the keys there are: {keys}; name the right one as caption_key"
        )
    raise UserError(f"data {source.path}: no usable pair at its start ({', '.join(sorted(causes)) or 'it is empty'})")


@dataclass(frozen=True)
class Tars:
    """img2dataset's tar shards."""

    files: tuple[Path, ...]
    caption_key: str | None = None

    def shards(self) -> list[Path]:
        return list(self.files)

    def read(self, shard: Path, part: int, parts: int, stage: int) -> Iterator[Pair | str]:
        return read_tar(shard, part, parts, stage=stage, caption_key=self.caption_key)

    def count(self) -> int | None:
        """The sum of the `00000_stats.json` that img2dataset leaves beside its shards, if all are there."""
        try:
            files = [file.with_name(f"{file.stem}_stats.json") for file in self.files]
            stats = [parse_record(read_file(file, LARGEST_RECORD)) or {} for file in files]
            return sum(int(shard["successes"]) for shard in stats)
        except (ValueError, KeyError, TypeError):
            return None

    def keys(self) -> list[str]:
        with self.files[0].open("rb") as file, suppress(tarfile.TarError):
            for name, place, size in tar_members(file):
                if name.endswith(".json") and size <= LARGEST_RECORD:
                    file.seek(place)
                    return list(parse_record(file.read(size)) or {})
        return []


@dataclass(frozen=True)
class Descriptions:
    """cc_sbu_align: one shard, for it is small."""

    directory: Path

    def shards(self) -> list[int]:
        return [0]

    def read(self, shard: int, part: int, parts: int, stage: int) -> Iterator[Pair | str]:
        return read_items(str(self.directory), part, parts, stage=stage)

    def count(self) -> int:
        return len(read_annotations(str(self.directory)))

    def keys(self) -> list[str]:
        return ["image_id", "caption"]


@dataclass(frozen=True)
class Folder:
    """Pictures, each beside a `.txt` or `.json` of the same name, in any depth."""

    directory: Path
    caption_key: str | None = None

    @functools.cached_property
    def _names(self) -> list[str]:
        found = (file for file in self.directory.rglob("*") if is_picture(file) and file.is_file())
        return sorted(str(file.relative_to(self.directory)) for file in found)

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "caption_key": self.caption_key}  # the names travel in the shards

    def shards(self) -> list[tuple[str, ...]]:
        names = self._names
        return [tuple(names[i : i + FOLDER_SHARD]) for i in range(0, len(names), FOLDER_SHARD)]

    def read(self, shard: tuple[str, ...], part: int, parts: int, stage: int) -> Iterator[Pair | str]:
        for name in shard[part::parts]:
            path = self.directory / name
            picture = load_picture(path)
            try:
                record = self._record(path)
            except UserError as error:
                yield TOO_LONG if isinstance(error, TooLargeError) else "no caption"
                continue
            yield make_pair(str(path), picture, record, stage, self.caption_key)

    def count(self) -> int:
        return len(self._names)

    def keys(self) -> list[str]:
        return list(self._record(self.directory / self._names[0]))

    @staticmethod
    def _record(path: Path) -> Mapping[str, Any]:
        for ending in (".json", ".txt"):
            beside = path.with_suffix(ending)
            if beside.is_file():
                return parse_record(read_file(beside, LARGEST_RECORD), ending[1:]) or {}
        return {}


_BY_ENDING: dict[str, Any] = {"tar": Tars, "jsonl": JsonLines, "csv": Csv, "parquet": Parquet}
