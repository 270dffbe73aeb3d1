"""Image-text pairs, and stage 1's first format: the tar shards that img2dataset writes.

A shard `NNNNN.tar` holds `key.jpg` (or another picture format) beside `key.json` with a `caption`, or `key.txt`. Shards
are streamed, never unpacked. What gives no pair is left out and counted by cause; one record, however hostile, takes a
bounded memory. Whether a picture can be decoded shows when it is opened. Other formats are in `sources.py`.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.errors import UserError
from minigpt4.files import TooLargeError
from minigpt4.images import LARGEST_IMAGE, PICTURE_ENDINGS, read_image
from minigpt4.prompts.templates import Message

#: Where a record's text is looked for, unless the source names its key.
CAPTION_KEYS = ("caption", "text", "TEXT", "answer", "description")
BROKEN_SHARD = "broken shard, its remaining pairs"
TOO_LARGE, TOO_LONG = "picture too large", "text too long"
#: Bytes of a record's text (a line, a JSON beside a picture), and characters of what is learnt of it.
LARGEST_RECORD, LONGEST_TEXT = 1_000_000, 100_000
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE,
)  # fmt: skip
_PAX_PATH = re.compile(rb"(?:^|\n)\d+ path=([^\n]*)\n")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class Pair:
    """A picture, as the bytes of its file, and the text that belongs to it. `name` says where it came from.

    For stage 2 there may be the question that `text` answers, or a whole conversation, of which `text` is the last
    answer: user and assistant in turns (after a system message, if there is one), the picture in the first question.
    """

    name: str
    picture: bytes
    text: str
    instruction: str | None = None
    messages: tuple[Message, ...] = ()


def find_shards(source: str, ending: str = "tar") -> list[Path]:
    """The files that `source` names: a directory, one file, or a pattern: `{00000..00012}.tar`, or with `*` or `?`.

    Raises:
        UserError: nothing there, or a shard of the range is missing.
    """
    numbers = _RANGE.search(source)
    if numbers:
        first, last = numbers.groups()
        names = [_RANGE.sub(str(n).zfill(len(first)), source, count=1) for n in range(int(first), int(last) + 1)]
        missing = [name for name in names if not Path(name).is_file()]
        if missing or not names:
            raise UserError(
                f"data {source}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing[:5])}"
                + (", ..." if len(missing) > 5 else "")
                if names
                else f"data {source}: the range is empty; write the smaller number first"
            )
        return [Path(name) for name in names]
    path = Path(source)
    if path.is_file():
        return [path]
    if any(sign in source for sign in "*?"):
        root = Path(path.anchor)
        found = sorted(file for file in root.glob(str(path.relative_to(root))) if file.is_file())
        if not found:
            raise UserError(f"data {source}: the pattern matches no file")
        return found
    if not path.is_dir():
        raise UserError(
            f"data {source}: no such file or directory; the head of the recipe says where its data come from"
        )
    shards = sorted(path.glob(f"*.{ending}"))
    if not shards:
        raise UserError(
            f"data {source}: holds no .{ending}; img2dataset's shards (00000.tar, 00001.tar, ...) were expected"
        )
    return shards


def read_pairs(source: str, skipped: Counter[str]) -> Iterator[Pair]:
    """The pairs of all tar shards, in order. Causes of those that are left out are counted in `skipped`."""
    yield from counted((item for shard in find_shards(source) for item in read_tar(shard)), skipped)


def counted(items: Iterator[Pair | str], skipped: Counter[str]) -> Iterator[Pair]:
    """The pairs among `items`; the others are causes for which there is no pair, and are counted."""
    for item in items:
        if isinstance(item, Pair):
            yield item
        else:
            skipped[item] += 1


def read_tar(
    shard: Path, part: int = 0, parts: int = 1, *, stage: int = 1, caption_key: str | None = None
) -> Iterator[Pair | str]:
    """Every `parts`-th pair of one shard from number `part` on, or the cause why there is none.

    Members of a pair stand next to each other, as img2dataset writes them.
    """
    key, number = "", -1
    members = dict[str, tuple[int, int]]()  # place and size of each
    whole = True
    with shard.open("rb") as file:

        def item() -> Pair | str:
            ending = next((ending for ending in ("json", "txt") if ending in members), "")
            picture, text = members.get("picture", (0, 0)), members.get(ending, (0, 0))
            if picture[1] > LARGEST_IMAGE or text[1] > LARGEST_RECORD:
                return TOO_LARGE if picture[1] > LARGEST_IMAGE else TOO_LONG
            record = parse_record(_read(file, *text), ending) or {}
            return make_pair(f"{shard}/{key}", _read(file, *picture), record, stage, caption_key)

        try:
            for name, place, size in tar_members(file):
                stem, _, ending = name.rpartition(".")
                if not stem:
                    continue
                if stem != key:
                    if number >= 0 and number % parts == part:
                        yield item()
                    key, number = stem, number + 1
                    members.clear()
                ending = "picture" if ending.lower() in PICTURE_ENDINGS and size else ending.lower()
                if ending in ("picture", "json", "txt"):
                    members.setdefault(ending, (place, size))
        except tarfile.TarError:
            whole = False
        if number >= 0 and number % parts == part:
            yield item()
    if not whole and part == 0:
        yield BROKEN_SHARD


def tar_members(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """(name, place, size in bytes) of each regular file in a tar; contents are leapt over, whatever their size.

    `tarfile` itself would hold in memory what some headers declare, and follow chains of them. Raises TarError if the
    file is cut off or broken.
    """
    end = file.seek(0, io.SEEK_END)
    place, long_name = 0, b""
    while any(header := _read(file, place, tarfile.BLOCKSIZE)):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        place += tarfile.BLOCKSIZE
        size = 0 if member.type in _WITHOUT_CONTENT else member.size
        if size < 0 or place + size > end:
            raise tarfile.ReadError("a member is cut off")
        if member.type == tarfile.GNUTYPE_LONGNAME:  # of the next member, as pax' path is
            long_name = _read(file, place, min(size, LARGEST_RECORD)).rstrip(b"\0")
        elif member.type == tarfile.XHDTYPE:
            found = _PAX_PATH.search(_read(file, place, min(size, LARGEST_RECORD)))
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


def parse_record(data: bytes, ending: str = "json") -> dict[str, Any] | None:
    """The JSON object of a record (or its caption, if `ending` is txt); None if it is broken, or something else."""
    try:
        record = json.loads(data) if ending == "json" else {"caption": data.decode()}
    except (ValueError, RecursionError):  # not JSON, not UTF-8, or nested thousands deep
        return None
    return record if isinstance(record, dict) else None


def load_picture(path: Path | None) -> bytes | str:
    """The bytes of a picture's file, or the cause why there are none."""
    try:
        return read_image(path) if path else "no picture"
    except UserError as error:
        return TOO_LARGE if isinstance(error, TooLargeError) else "no picture"


def make_pair(
    name: str, picture: bytes | str | None, record: Mapping[str, Any], stage: int, caption_key: str | None = None
) -> Pair | str:
    """The pair of a picture's bytes (or the cause why there are none) and the text in `record`, or the cause why not.

    Stage 1 has the text on one line. Stage 2 takes `instruction` and `messages` from the record too.
    """
    if not picture or isinstance(picture, str):
        return picture or "no picture"
    if len(picture) > LARGEST_IMAGE:
        return TOO_LARGE
    if stage == 2 and record.get("messages") is not None:
        messages = _conversation(record["messages"])
        if sum(len(message.text) for message in messages) > LONGEST_TEXT:
            return TOO_LONG
        return Pair(name, picture, messages[-1].text, messages=messages) if messages else "no conversation"
    text, instruction = record.get(caption_key) if caption_key else _first_text(record), record.get("instruction")
    if not isinstance(text, str) or not text.strip():
        return "no caption" if stage == 1 else "no description"
    if not isinstance(instruction, str) or stage == 1:
        instruction = ""
    if len(text) + len(instruction) > LONGEST_TEXT:
        return TOO_LONG
    if stage == 1:
        return Pair(name, picture, " ".join(text.split()))
    return Pair(name, picture, text.strip(), instruction.strip() or None)


def _first_text(record: Mapping[str, Any]) -> Any:
    return next((record[key] for key in CAPTION_KEYS if record.get(key) is not None), None)


def _conversation(turns: Any) -> tuple[Message, ...]:
    """The messages of a conversation about one picture; empty if it is none that a model could learn from."""
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        return ()
    roles, texts = [turn.get("role") for turn in turns], [turn.get("content") for turn in turns]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return ()
    first = int(roles[:1] == ["system"])
    if len(roles) - first < 2 or roles[first:] != ["user", "assistant"] * ((len(roles) - first) // 2):
        return ()
    return tuple(
        Message(role, text.strip(), images=int(i == first))
        for i, (role, text) in enumerate(zip(roles, texts, strict=True))
    )
