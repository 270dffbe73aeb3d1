"""Stage 1's data: image-text pairs in the tar shards that img2dataset writes.

A shard `NNNNN.tar` holds `key.jpg` (or another picture format) beside `key.json` with a `caption`, or `key.txt`. Shards
are streamed, never unpacked. Pairs that cannot be used are left out and counted by cause. Knows nothing about models;
whether a picture can be decoded shows when it is opened.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from minigpt4.errors import UserError
from minigpt4.prompts.templates import Message

PICTURE_ENDINGS = ("jpg", "jpeg", "png", "webp")
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


def find_shards(source: str) -> list[Path]:
    """The tar files that `source` names: a directory, one file, or a pattern with a range such as `{00000..00012}.tar`.

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
                f"data {source}: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}"
                if names
                else f"data {source}: the range is empty; write the smaller number first"
            )
        return [Path(name) for name in names]
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(
            f"data {source}: no such file or directory; the head of the recipe says where its data come from"
        )
    shards = sorted(path.glob("*.tar"))
    if not shards:
        raise UserError(f"data {source}: holds no .tar; img2dataset's shards (00000.tar, 00001.tar, ...) were expected")
    return shards


def read_pairs(source: str, skipped: Counter[str]) -> Iterator[Pair]:
    """The pairs of all shards, in order. Causes of pairs that are left out are counted in `skipped`."""
    for shard in find_shards(source):
        yield from _read_shard(shard, skipped)


def _read_shard(shard: Path, skipped: Counter[str]) -> Iterator[Pair]:
    """Pairs of one shard; members of a pair stand next to each other, as img2dataset writes them."""
    key, members = "", dict[str, bytes]()
    whole = _has_end(shard)
    try:
        with tarfile.open(shard, "r|") as archive:
            for member in archive:
                stem, _, ending = member.name.rpartition(".")
                if not member.isfile() or not stem:
                    continue
                if stem != key:
                    yield from _pair(f"{shard}/{key}", members, skipped)
                    key, members = stem, {}
                file = archive.extractfile(member)
                assert file is not None  # a regular file always has content
                members[ending.lower()] = file.read()
    except (tarfile.ReadError, EOFError):
        whole = False
    yield from _pair(f"{shard}/{key}", members, skipped)
    if not whole:
        skipped["broken shard, its remaining pairs"] += 1


def _has_end(shard: Path) -> bool:
    """Whether the two empty blocks that end a tar file are there: `tarfile` passes over some places of a cut."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return not any(file.read())


def _pair(name: str, members: dict[str, bytes], skipped: Counter[str]) -> Iterator[Pair]:
    """The pair that the members of one key make, if they make one."""
    if not members:
        return
    picture = next((members[ending] for ending in PICTURE_ENDINGS if members.get(ending)), None)
    text = _caption(members)
    if picture is None:
        skipped["no picture"] += 1
    elif not text:
        skipped["no caption"] += 1
    else:
        yield Pair(name, picture, text)


def _caption(members: dict[str, bytes]) -> str:
    """The caption on one line, or nothing."""
    try:
        caption = json.loads(members["json"]).get("caption") if "json" in members else members["txt"].decode()
    except (KeyError, ValueError, AttributeError):  # no member, not JSON or UTF-8, not an object
        return ""
    return " ".join(caption.split()) if isinstance(caption, str) else ""
