"""Image-text pairs, and stage 1's first format: the tar shards that img2dataset writes.

A shard `NNNNN.tar` holds `key.jpg` (or another picture format) beside `key.json` with a `caption`, or `key.txt`. Shards
are streamed, never unpacked. What gives no pair is left out and counted by cause. Knows nothing about models; whether a
picture can be decoded shows when it is opened. Other formats are in `sources.py`.
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
from typing import Any

from minigpt4.errors import UserError
from minigpt4.images import PICTURE_ENDINGS
from minigpt4.prompts.templates import Message

#: Where a record's text is looked for, unless the source names its key.
CAPTION_KEYS = ("caption", "text", "TEXT", "answer", "description")
BROKEN_SHARD = "broken shard, its remaining pairs"
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
    members = dict[str, bytes]()
    whole = _has_end(shard)

    def item() -> Pair | str:
        picture = next((members[ending] for ending in PICTURE_ENDINGS if members.get(ending)), None)
        return make_pair(f"{shard}/{key}", picture, _record(members), stage, caption_key)

    try:
        # Pairs of other parts are leapt over; a shard that is read whole is read as a stream.
        with tarfile.open(shard, "r|" if parts == 1 else "r:") as archive:
            for member in archive:
                stem, _, ending = member.name.rpartition(".")
                if not member.isfile() or not stem:
                    continue
                if stem != key:
                    if members:
                        yield item()
                    key, number = stem, number + 1
                    members.clear()
                if number % parts != part:
                    continue
                file = archive.extractfile(member)
                assert file is not None  # a regular file always has content
                members[ending.lower()] = file.read()
    except (tarfile.ReadError, EOFError):
        whole = False
    if members:
        yield item()
    if not whole and part == 0:
        yield BROKEN_SHARD


def _has_end(shard: Path) -> bool:
    """Whether the two empty blocks that end a tar file are there: `tarfile` passes over some places of a cut."""
    with shard.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return not any(file.read())


def _record(members: Mapping[str, bytes]) -> Mapping[str, Any]:
    """What stands beside the picture: the JSON object, or the text as `txt`."""
    try:
        record = json.loads(members["json"]) if "json" in members else {"caption": members["txt"].decode()}
    except (KeyError, ValueError):  # no member, not JSON or UTF-8
        return {}
    return record if isinstance(record, dict) else {}


def make_pair(
    name: str, picture: bytes | None, record: Mapping[str, Any], stage: int, caption_key: str | None = None
) -> Pair | str:
    """The pair of a picture's bytes and the text in `record`, or the cause why there is none.

    Stage 1 has the text on one line. Stage 2 takes `instruction` and `messages` from the record too.
    """
    if not picture:
        return "no picture"
    if stage == 2 and record.get("messages") is not None:
        messages = _conversation(record["messages"])
        return Pair(name, picture, messages[-1].text, messages=messages) if messages else "no conversation"
    text = record.get(caption_key) if caption_key else _first_text(record)
    if not isinstance(text, str) or not text.strip():
        return "no caption" if stage == 1 else "no description"
    if stage == 1:
        return Pair(name, picture, " ".join(text.split()))
    instruction = record.get("instruction")
    instruction = instruction.strip() if isinstance(instruction, str) else ""
    return Pair(name, picture, text.strip(), instruction or None)


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
