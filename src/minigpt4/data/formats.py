"""The formats of pairs, in shards that other processes can read. A bad record yields its cause; memory is bounded."""

import base64
import csv
import functools
import io
import json
import math
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import IO, Any, AnyStr, BinaryIO, TextIO

import fsspec
import pyarrow
import pyarrow.parquet

from minigpt4.data import pairs
from minigpt4.data.pairs import Cause, Pair, Record, lowered, make_pairs, parse_record, read_beside, split_of
from minigpt4.data.workers import datasets_library
from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.files import TooLargeError, decode_text, encoding_of, is_leftover, read_file
from minigpt4.images import IMAGE_ENDINGS, LARGEST_IMAGE, find_image, read_image

IMAGE_KEYS = (*pairs.FIELDS["images"], *IMAGE_ENDINGS)
BROKEN_SHARD = "broken shard, its remaining pairs"
FOLDER_SHARD = 1000  # images of a folder
LINES_SHARD = 4 << 20  # bytes of a JSONL file
PIECE = 1 << 20  # characters of a JSON array that are read at a time
WAITING = 100_000  # records of a tar whose image and text stand far from each other
_IMAGE = "<image>"  # where the members of a record of a tar keep its image: no file ends so
UNPACKS = "in a part of a table that unpacks to far more than its size"
MOST_VALUES = 1000  # of a parquet file's column, for each row: a conversation's turns
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip
_PAX_PATH = re.compile(rb"(?:^|\n)\d+ path=([^\n]*)\n")
Row = tuple[str, Mapping[str, Any], Path]  # name, record, directory from which paths count


@dataclass(frozen=True)
class Reader(ABC):
    """One format. A shard is whatever `shards` lists: small, and good to be sent to another process."""

    files: tuple[Path, ...]
    caption_key: str | None = None
    notes: tuple[str, ...] = ()  # what is read and what is not, for people

    def shards(self) -> list[Any]:
        """The parts that can be read apart from each other."""
        return list(self.files)

    @abstractmethod
    def records(self, shard: Any, part: int, parts: int) -> Iterator[Record | Cause]:
        """Every `parts`-th record of a shard from number `part` on, or the cause why there is none."""

    def read(self, shard: Any, part: int, parts: int, stage: int) -> Iterator[Pair | Cause]:
        """The pairs of every `parts`-th record of a shard from number `part` on, or the causes why there are none."""
        for record in self.records(shard, part, parts):
            yield from [record] if isinstance(record, Cause) else make_pairs(record, stage, self.caption_key)

    def count(self) -> int | None:
        """How many records there are, if that can be known in a moment."""
        return None

    def keys(self) -> list[str]:
        """Keys of the first record."""
        records = (record for shard in self.shards()[:1] for record in self.records(shard, 0, 1))
        return next((list(record.fields) for record in records if isinstance(record, Record)), [])


def load_image(path: Path) -> bytes | Cause:
    """The bytes of an image's file, or why there are none."""
    try:
        return read_image(path)
    except UserError as error:
        return Cause(pairs.TOO_LARGE if isinstance(error, TooLargeError) else pairs.NO_IMAGE, error)


def locate(record: Mapping[str, Any], directory: Path, name: str) -> Path | bytes | Cause:
    """The path of a record's image or its bytes, or why there is none."""
    value = named(record)
    if isinstance(value, list):
        return Cause("several images", f"{name}: names {len(value)} images; a pair has one")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        there = ", ".join(sorted({key.lower() for key in islice(record, 20)})) or "nothing"
        return Cause(pairs.NO_IMAGE, f"{name}: no image under {', '.join(IMAGE_KEYS[:6])}, ...; there is: {there}")
    if value.startswith("data:"):
        with suppress(ValueError):
            return base64.b64decode("".join(value.partition(",")[2].split()), validate=True)
        return Cause(pairs.NO_IMAGE, f"{name}: {value[:80]!r} is not an image in base64")
    if value.startswith("hf://"):
        try:  # a file of a hub dataset
            with fsspec.open(value, "rb") as file:
                return bytes(file.read(LARGEST_IMAGE + 1))
        except (OSError, ValueError) as error:
            return Cause(pairs.NO_IMAGE, f"{value}: {error}")
    if re.match(r"https?:", value):
        return Cause(pairs.NO_IMAGE, f"{name}: {value[:80]} is not a file; download the images first (img2dataset)")
    inner = record.get("filepath")
    if isinstance(inner, str) and value == record.get("filename") and os.path.isdir(directory / inner):  # noqa: PTH112
        directory /= inner  # a folder, in Karpathy's files
    try:
        return find_image(directory, value)
    except UserError as error:
        return Cause(pairs.NO_IMAGE, f"{name}: {error}")


def named(record: Mapping[str, Any]) -> Any:
    """What stands where a record's image is looked for: a text or bytes, a list if it is several, None without it."""
    value = next((record[key] for key in IMAGE_KEYS if record.get(key)), None) or _image_in_turns(record)
    value = (value[0] if value else None) if isinstance(value, list) and len(value) < 2 else value
    return value.get("bytes") or value.get("path") or value.get("url") if isinstance(value, Mapping) else value


def _image_in_turns(record: Mapping[str, Any]) -> Any:
    """The image in a message's parts, as OpenAI's fine-tuning has it."""
    turns: Any = next((record[key] for key in pairs.TURN_KEYS if isinstance(record.get(key), list)), [])
    parts = (turn.get("content") for turn in turns if isinstance(turn, Mapping))
    found = [part for each in parts if isinstance(each, list) for part in each if isinstance(part, Mapping)]
    return [value for part in found if (value := part.get("image_url") or part.get("image"))]


class Tars(Reader):
    """img2dataset's tar shards: `key.jpg` (or another image) beside `key.json` or `key.txt`; streamed, not unpacked."""

    def records(self, shard: Path, part: int, parts: int) -> Iterator[Record | Cause]:
        with shard.open("rb") as file:
            for number, (stem, members) in enumerate(_tar_records(file)):
                if stem is None:
                    if part == 0:
                        yield Cause(BROKEN_SHARD, f"{shard}: cut off or broken; fetch it again")
                elif number % parts == part:
                    yield self._record(file, f"{shard}/{stem}", members)

    def _record(self, file: BinaryIO, name: str, members: dict[str, tuple[int, int]]) -> Record | Cause:
        image: bytes | Cause = Cause(pairs.NO_IMAGE, f"{name}: the archive holds no image of that name")
        if place := members.pop(_IMAGE, None):
            if place[1] > LARGEST_IMAGE:
                return Cause(pairs.TOO_LARGE, f"{name}: more than {LARGEST_IMAGE:,} bytes")
            image = _read(file, *place)
        if any(size > pairs.LARGEST_RECORD for _, size in members.values()):
            return Cause(pairs.TOO_LONG, f"{name}: more than {pairs.LARGEST_RECORD:,} bytes")
        texts = {ending: partial(_read, file, *place) for ending, place in members.items()}
        return Record(name, image, *read_beside(texts, name, self.caption_key))

    def count(self) -> int | None:
        """The sum of the `00000_stats.json` that img2dataset leaves beside its shards, if all are there."""
        try:
            files = [file.with_name(f"{file.stem}_stats.json") for file in self.files]
            return sum(int(read_document(file, pairs.LARGEST_RECORD)["successes"]) for file in files)
        except (UserError, ValueError, KeyError, TypeError):
            return None


def holds_pairs(path: Path) -> bool:
    """Whether a tar has an image."""
    try:
        with path.open("rb") as file:
            names = islice((name for name, *_ in tar_members(file)), WAITING)
            return any(name.rpartition(".")[2].lower() in IMAGE_ENDINGS for name in names)
    except (tarfile.TarError, OSError):
        return True  # reading it says what is wrong


def _tar_records(file: BinaryIO) -> Iterator[tuple[str | None, dict[str, tuple[int, int]]]]:
    """(key, place and size of members by ending) of each record, wherever its halves are; key None if it is broken."""
    key = ""
    waiting: dict[str, dict[str, tuple[int, int]]] = {}

    def ended() -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
        members = waiting.get(key, {})
        if (_IMAGE in members and len(members) > 1) or len(waiting) > WAITING:
            yield key, waiting.pop(key)

    broken = False
    try:
        for name, place, size in tar_members(file):
            stem, _, ending = name.rpartition(".")
            if not stem or is_leftover(name):
                continue
            if stem != key:
                yield from ended()
                key = stem
            members = waiting.setdefault(key, {})
            ending = _IMAGE if ending.lower() in IMAGE_ENDINGS and size else ending.lower()
            if ending in (_IMAGE, *pairs.TEXT_ENDINGS):
                members.setdefault(ending, (place, size))
    except tarfile.TarError:
        broken = True
    yield from ended()
    yield from waiting.items()
    if broken:
        yield None, {}


def tar_members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """(name, place, bytes) of each regular file; `tarfile` would hold what headers declare. Raises TarError."""
    end = file.seek(0, io.SEEK_END)
    place, long_name = 0, b""
    while any(header := _read(file, place, tarfile.BLOCKSIZE)):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        place += tarfile.BLOCKSIZE
        size = 0 if member.type in _WITHOUT_CONTENT else member.size
        if size < 0 or place + size > end:
            raise tarfile.ReadError("a member is cut off")
        if member.type == tarfile.GNUTYPE_LONGNAME:  # of the next member, as pax' path is
            long_name = _read(file, place, min(size, pairs.LARGEST_RECORD)).rstrip(b"\0")
        elif member.type == tarfile.XHDTYPE:
            found = _PAX_PATH.search(_read(file, place, min(size, pairs.LARGEST_RECORD)))
            long_name = found[1] if found else long_name
        elif member.type != tarfile.GNUTYPE_LONGLINK:
            if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                yield long_name.decode("utf-8", "surrogateescape") or member.name, place, size
            long_name = b""
        place += -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    if len(header) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end is missing")


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


class Descriptions(Reader):
    """cc_sbu_align: `filter_cap.json` beside `image/`."""

    def records(self, shard: Path, part: int, parts: int) -> Iterator[Record | Cause]:
        images = shard.parent / "image"
        for image_id, caption in read_annotations(shard.parent)[part::parts]:
            try:
                path = find_image(images, image_id, inside=True)
                yield Record(str(path), load_image(path), {"image_id": image_id, "caption": caption})
            except UserError as error:
                yield Cause(pairs.NO_IMAGE, f"{images}/{image_id}: {error}")

    def count(self) -> int:
        return sum(len(read_annotations(file.parent)) for file in self.files)


def read_annotations(directory: str | Path) -> list[tuple[str, str]]:
    """`(image_id, caption)` of every annotation of a cc_sbu_align. Raises UserError for a directory that is none."""
    path = Path(directory) / "filter_cap.json"
    if not Path(directory).is_dir():
        raise UserError(f"data {directory}: no such directory; the head of the recipe says where its data come from")
    if not path.is_file():
        raise UserError(f"data {directory}: holds no filter_cap.json, which cc_sbu_align's layout has")
    try:
        annotations = read_document(path)["annotations"]
        rows = [(str(annotation["image_id"]), annotation["caption"]) for annotation in annotations]
        return [(image_id, caption if isinstance(caption, str) else "") for image_id, caption in rows]
    except (UserError, KeyError, TypeError) as error:
        form = '{"annotations": [{"image_id": ..., "caption": ...}, ...]}'
        raise UserError(f"data {path}: expected {form} ({error!r})") from error


@dataclass(frozen=True)
class Folder(Reader):
    """Images, each beside a `.json`, `.txt` or `.caption` of the same name, in any depth; `files` can stay empty."""

    beside: tuple[list[str], ...] = ()  # each image's path and those of its texts; a shard is a part of it

    def shards(self) -> list[tuple[list[str], ...]]:
        return [self.beside[i : i + FOLDER_SHARD] for i in range(0, len(self.beside), FOLDER_SHARD)]

    def records(self, shard: tuple[list[str], ...], part: int, parts: int) -> Iterator[Record | Cause]:
        for image, *paths in shard[part::parts]:
            texts: dict[str, Callable[[], bytes]] = {}
            for path in paths:
                ending = path.rpartition(".")[2].lower()
                texts.setdefault(ending, partial(read_file, Path(path), pairs.LARGEST_RECORD, "a text"))
            try:
                record, trouble = read_beside(texts, image.rpartition(".")[0], self.caption_key)
            except TooLargeError as error:
                yield Cause(pairs.TOO_LONG, error)
                continue
            trouble = trouble or ("" if texts else f"{image}: no .txt or .json of the same name beside it")
            yield Record(image, load_image(Path(image)), record, trouble)

    def count(self) -> int:
        return len(self.beside)


@dataclass(frozen=True)
class Table(Reader):
    """What formats with a row for each pair have in common. `train_alone` leaves rows of held-out splits out."""

    train_alone: bool = False

    @abstractmethod
    def rows(self, shard: Any) -> Iterator[Row | Cause]:
        """Each row, with its keys `lowered`, or the cause why there is none."""

    def records(self, shard: Any, part: int, parts: int) -> Iterator[Record | Cause]:
        for row in islice(filter(self._is_read, self.rows(shard)), part, None, parts):
            if isinstance(row, Cause):
                yield row
            else:
                name, fields, directory = row
                found = locate(fields, directory, name)
                yield Record(name, load_image(found) if isinstance(found, Path) else found, fields)

    def _is_read(self, row: Row | Cause) -> bool:
        return not self.train_alone or isinstance(row, Cause) or split_of(row[1].get(pairs.SPLIT_KEY)) in ("", "train")

    def splits(self) -> Iterator[str]:
        """The split of each row, as its column names it."""
        rows = (row for shard in self.shards() for row in self.rows(shard))
        return (split_of(row[1].get(pairs.SPLIT_KEY)) for row in rows if not isinstance(row, Cause))

    def count(self) -> int | None:
        return None if self.train_alone else self.count_rows()

    def count_rows(self) -> int | None:
        """`count` with the rows of all splits."""
        return None


class JsonLines(Table):
    """A JSON object on each line, with an image and a text. A shard is the lines that start in a stretch of bytes."""

    def shards(self) -> list[tuple[Path, int]]:
        return [(file, start) for file in self.files for start in range(0, file.stat().st_size, LINES_SHARD)]

    def rows(self, shard: tuple[Path, int]) -> Iterator[Row | Cause]:
        path, start = shard
        for number, line in read_lines(path, start, start + LINES_SHARD):
            name = f"{path}:{number}" + (f" from byte {start} on" if start else "")
            record = parse_record(line, name)
            yield record if isinstance(record, Cause) else (name, lowered(record), path.parent)

    def count_rows(self) -> int:
        return sum(1 for path, start in self.shards() for _ in read_lines(path, start, start + LINES_SHARD))


def read_lines(path: Path, start: int = 0, end: float = math.inf) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that start in this stretch of a file's bytes; those of a file in UTF-16 all start in the first."""
    with path.open("rb") as file:
        if encoding_of(file.read(2)) == "utf-16":
            with _open_text(path, "replace") as text:
                lines = enumerate(iter(partial(read_line, text), ""), 1) if not start else ()
                yield from ((number, line.encode("utf-8", "replace")) for number, line in lines if line.strip())
            return
        file.seek(max(start - 1, 0))
        if start:
            read_line(file, end)  # the one that starts before
        number = 0
        while file.tell() < end and (line := read_line(file, end)):
            number += 1
            if line.strip():
                yield number, line


def read_line(file: IO[AnyStr], end: float = math.inf) -> AnyStr:
    """The next line; of one longer than LARGEST_RECORD only the start. It is not followed further than to `end`."""
    longest = pairs.LARGEST_RECORD
    line = part = file.readline(longest + 1)
    while len(part) > longest and part[-1:] not in ("\n", "\r", b"\n") and (end == math.inf or file.tell() < end):
        part = file.readline(longest + 1)
    return line


class Json(Table):
    """A JSON array of objects, as LLaVA's lists are, or one under `images`, as in Karpathy's. A shard is a file."""

    def rows(self, shard: Path) -> Iterator[Row | Cause]:
        for number, record in enumerate(json_records(shard)):
            name = f"{shard}, record {number}"
            if isinstance(record, dict):
                yield name, lowered(record), shard.parent
            else:
                yield Cause(pairs.BROKEN_LINE, f"{name}: a JSON object was expected")


def json_records(path: Path) -> Iterator[Any]:
    """The values in a JSON array (or that of an object that begins with `images`), or on lines. Raises UserError."""
    decoder, text, at = json.JSONDecoder(), "", 0
    try:
        with _open_text(path) as file:
            named = re.match(r'\s*\{\s*"images"\s*:\s*\[(?=\s*\{)', file.read(200))
            file.seek(0)
            if named:
                file.read(named.end())
            while more := file.read(PIECE):
                text, at = text[at:] + more, 0
                while True:
                    while at < len(text) and text[at] in " \t\r\n,[]":
                        if named and text[at] == "]":
                            return
                        at += 1
                    try:
                        value, at = decoder.raw_decode(text, at)
                    except (ValueError, RecursionError):
                        break  # the rest of it is in the next piece
                    yield value
                if len(text) - at > pairs.LARGEST_RECORD + PIECE:
                    break
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if at < len(text):
        told = f"is no JSON, or a record of more than {pairs.LARGEST_RECORD:,} characters, from here on"
        raise UserError(f"{path}: {told}: {text[at : at + 40]!r}")


def _open_text(path: Path, errors: str = "strict") -> TextIO:
    with path.open("rb") as file:
        encoding = encoding_of(file.read(2))
    return path.open(encoding=encoding, errors=errors, newline="")


class Csv(Table):
    """Separated values with a header: a column for the image's path and one for its text. A shard is a file."""

    def rows(self, shard: Path) -> Iterator[Row | Cause]:
        taken = 0  # characters of this record, which may have several lines

        def next_line() -> str:
            nonlocal taken
            line = read_line(file)
            taken += len(line)
            if taken > pairs.LARGEST_RECORD:
                raise csv.Error(pairs.TOO_LONG)
            return line

        with _open_text(shard, "surrogateescape") as file:
            lines = iter(next_line, "")
            first = read_line(file)
            named = re.match(r"sep=(.)\s*$", first, re.IGNORECASE)
            separator = named[1] if named else max(",;\t|", key=first.count)  # the most frequent
            rows = csv.reader(lines if named else chain([first], lines), delimiter=separator, skipinitialspace=True)
            head: list[str] | None = None
            while True:
                taken = 0
                try:
                    row = next(rows, None)
                    if row is None:
                        return
                    name = f"{shard}:{rows.line_num}"
                    if head and any(row[len(head) :]):
                        raise csv.Error("more cells than the header has; put texts with separators in quotes")
                    for cell in row if head else ():
                        if not cell.isascii():
                            decode_text(cell.encode("utf-8", "surrogateescape"), name)
                except csv.Error as error:
                    yield Cause(pairs.BROKEN_LINE, f"{shard}:{rows.line_num}: {error}")
                except UserError as error:
                    yield Cause(pairs.BROKEN_LINE, error)
                except UnicodeError as error:
                    yield Cause(BROKEN_SHARD, f"{shard}: {error}")
                    return
                else:
                    if row and head:
                        yield name, lowered(dict(zip(head, row))), shard.parent  # noqa: B905 - short ones too
                    head = head or [cell.strip() for cell in row]

    def count_rows(self) -> int:
        return sum(1 for file in self.files for _ in self.rows(file))


class Parquet(Table):
    """Parquet files; a shard is a row group."""

    def shards(self) -> list[tuple[Path, int]]:
        return [(file, group) for file in self.files for group in range(_parquet(file).num_row_groups)]

    def rows(self, shard: tuple[Path, int]) -> Iterator[Row | Cause]:
        path, group = shard
        columns = {*IMAGE_KEYS, *pairs.TEXT_KEYS, self.caption_key, (self.caption_key or "").lower()}
        try:
            for number, row in enumerate(parquet_rows(path, columns, group=group)):
                name = f"{path}, row {number} of group {group}"
                yield row if isinstance(row, Cause) else (name, lowered(row), path.parent)
        except UserError as error:
            yield Cause(BROKEN_SHARD, error)

    def splits(self) -> Iterator[str]:
        rows = (row for file in self.files for row in parquet_rows(file, {pairs.SPLIT_KEY}))
        return (split_of(lowered(row).get(pairs.SPLIT_KEY)) for row in rows if not isinstance(row, Cause))

    def count_rows(self) -> int:
        return sum(_parquet(file).metadata.num_rows for file in self.files)

    def keys(self) -> list[str]:
        return list(_parquet(self.files[0]).schema_arrow.names)


@dataclass(frozen=True)
class Hub(Table):
    """A dataset of the Hugging Face hub, or a directory that `datasets` can load, streamed."""

    name: str = ""
    split: str = "train"

    def shards(self) -> list[int]:
        return list(range(_load_hub(self.name, self.split).num_shards))

    def rows(self, shard: int) -> Iterator[Row | Cause]:
        dataset = _load_hub(self.name, self.split)
        # In batches: row by row, `datasets` would share this shard out once more over the workers of a DataLoader.
        batches = dataset.shard(num_shards=dataset.num_shards, index=shard).iter(batch_size=16)
        rows = (dict(zip(b, values, strict=True)) for b in batches for values in zip(*b.values(), strict=True))
        try:
            for number, row in enumerate(rows):
                yield f"hub:{self.name}:{self.split}, row {number} of shard {shard}", lowered(row), Path()
        except ConnectionError:
            raise
        except (OSError, ValueError, RuntimeError, EOFError, tarfile.TarError) as error:  # of a broken file
            yield Cause(BROKEN_SHARD, f"hub:{self.name}:{self.split}: {' '.join(str(error).split())}")

    def count_rows(self) -> int | None:
        splits = _load_hub(self.name, self.split).info.splits or {}
        return splits[self.split].num_examples if self.split in splits else None


def _parquet(path: Path) -> Any:
    try:
        # Pages are read when they are needed: a row group may hold thousands of images.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except (pyarrow.ArrowException, OSError, MemoryError) as error:
        raise UserError(f"data {path}: cannot be read as parquet ({' '.join(str(error).split())})") from None


def parquet_rows(path: Path, columns: Collection[Any], group: int | None = None) -> Iterator[dict[str, Any] | Cause]:
    """Rows of one row group, or of all: those of `columns` there, or a cause. Raises UserError."""
    file = _parquet(path)
    names = [name for name in file.schema_arrow.names if name in columns or name.lower() in columns]
    try:
        for number in range(file.num_row_groups) if group is None else [group]:
            yield from _group_rows(file, number, names, str(path))
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError, MemoryError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({' '.join(str(error).split())})") from None


def _group_rows(file: Any, group: int, names: list[str], path: str) -> Iterator[dict[str, Any] | Cause]:
    part = file.metadata.row_group(group)
    chunks = [part.column(i) for i in range(part.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
    # Images do not shrink by much, and texts no fiftyfold; a list of millions of values can take a few bytes.
    if any(
        chunk.total_uncompressed_size > max(LARGEST_IMAGE, 50 * chunk.total_compressed_size)
        or chunk.num_values > MOST_VALUES * part.num_rows
        for chunk in chunks
    ):
        yield from repeat(Cause(UNPACKS, f"{path}, group {group}"), part.num_rows)
        return
    largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    for batch in file.iter_batches(max(1, min(64, 2**26 // max(largest, 1))), row_groups=[group], columns=names):
        for row in (batch.slice(i, 1) for i in range(batch.num_rows)):
            small = row.nbytes <= LARGEST_IMAGE + pairs.LARGEST_RECORD
            yield row.to_pylist()[0] if small else Cause(pairs.TOO_LARGE, f"{path}, group {group}")


@functools.lru_cache(maxsize=8)
def _load_hub(name: str, split: str) -> Any:
    try:
        dataset = datasets_library().load_dataset(name, split=split, streaming=True)
    except Exception as error:  # whatever hub, network and dataset scripts raise
        raise UserError(f"data hub:{name}:{split}: cannot be loaded ({' '.join(str(error).split())})") from None
    return dataset.decode(False) if dataset.features else dataset


TABLES: dict[str, type[Table]] = {"jsonl": JsonLines, "json": Json, "csv": Csv, "tsv": Csv, "parquet": Parquet}
