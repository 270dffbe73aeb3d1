"""Where pairs come from: which of the files in a place are the data, and the reader for their format."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from minigpt4.data.formats import IMAGE_KEYS, TABLES, Descriptions, Folder, Hub, Reader, Tars, holds_pairs
from minigpt4.data.pairs import CAPTION_KEYS, NO_TEXT, TEXT_ENDINGS, Cause, Pair
from minigpt4.errors import UserError
from minigpt4.files import expand, find_files, walk
from minigpt4.images import sort_images, tell_left_out

__all__ = ["Reader", "Source", "check_source", "open_source"]

logger = logging.getLogger(__name__)

TRIED = 100  # pairs that are looked at before a run
MANY = 50  # files of a folder, of which each is looked into to find stray ones
_READERS: dict[str, type[Reader]] = {"tar": Tars, **TABLES}
_SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """One source of pairs, as a recipe names it.

    Attributes:
        path: tar shards (`{00000..10488}.tar`), a directory (tar or parquet shards, cc_sbu_align, an image folder), a
            `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, a pattern of files, or `hub:owner/name[:split]`.
        weight: share of the pairs drawn, relative to the other sources.
        caption_key: column or JSON key of the text; None takes the usual ones.
    """

    path: str
    weight: float = 1.0
    caption_key: str | None = None


def open_source(source: Source) -> Reader:
    """The reader for the format of `source`. Raises UserError if nothing is there, or nothing in a known format."""
    if source.path.startswith("hub:"):
        repository, _, split = source.path.removeprefix("hub:").partition(":")
        return Hub((), source.caption_key, (), repository, split or "train")
    path = expand(source.path)
    if path.is_dir():
        return _open_folder(path, source.caption_key)
    try:
        files, root = find_files(path, "; the head of the recipe says where its data come from")
    except UserError as error:
        raise UserError(f"data {error}") from None
    ending = files[0].suffix[1:].lower()
    if ending in _READERS:
        files, note = _train_alone(files, root)
        return _READERS[ending](tuple(files), source.caption_key, note)
    images, _ = sort_images(files)
    if not images:
        raise UserError(
            f"data {path}: unknown format; a directory, .tar, {', '.join(f'.{name}' for name in TABLES)}, images or "
            "hub:NAME was expected"
        )
    texts = [file for place in {image.parent for image in images} for file in walk(place) if _is_text(file)]
    return Folder(tuple(images), source.caption_key, (), tuple(texts))


def _open_folder(folder: Path, key: str | None) -> Reader:
    """The reader of what a folder holds: cc_sbu_align, tables named `metadata`, tars, parquet files, or images.

    A stray table or archive, without images or beside images that have texts of their own, is not read but named.
    """
    files = walk(folder)
    images, left_out = sort_images(files)
    notes = (tell_left_out(left_out),) if left_out else ()
    loose = Folder(tuple(images), key, (), tuple(filter(_is_text, files)))
    described = any(len(texts) > 1 for texts in loose.beside)
    candidates: list[tuple[type[Reader], Callable[[Path], bool]]] = [
        (Descriptions, lambda file: file.name == "filter_cap.json"),
        *((table, lambda file, e=ending: file.name.lower() == f"metadata.{e}") for ending, table in TABLES.items()),
        (Tars, lambda file: not described and file.suffix.lower() == ".tar"),
        (TABLES["parquet"], lambda file: not described and file.suffix.lower() == ".parquet"),
    ]  # fmt: skip
    for reader, is_one in candidates:
        found = list(filter(is_one, files))
        usable = [file for file in found if len(found) > MANY or _is_usable(reader, file)]
        if usable:
            chosen, note = _train_alone(usable, folder)
            what = f"reads {_named(chosen, folder)}"
            return reader(tuple(chosen), key, (what, *note, *_not_read(files, usable, folder)))
    if not images:
        raise UserError(
            f"data {folder}: holds none of: *.tar or *.parquet with pictures, filter_cap.json with image/, "
            "metadata.csv or .jsonl, pictures with a .txt of the same name"
            + "".join(f"; {note}" for note in (*notes, *_not_read(files, (), folder)))
        )
    chosen, note = _train_alone(images, folder, folders=True)
    chosen.sort(key=str)  # an order of release 0.1, in which its trainings go on
    what = f"reads {len(chosen)} images with the texts beside them"
    return Folder(tuple(chosen), key, (what, *note, *notes, *_not_read(files, (), folder)), loose.texts)


def _is_text(file: Path) -> bool:
    return file.suffix[1:].lower() in TEXT_ENDINGS


def _is_usable(reader: type[Reader], file: Path) -> bool:
    """Whether a file holds pairs of images: img2dataset, say, leaves tables without them beside its shards."""
    if reader is Descriptions:
        return True
    if reader is Tars:
        return holds_pairs(file)
    try:
        return any(key.lower() in IMAGE_KEYS for key in reader((file,)).keys())  # noqa: SIM118
    except UserError:
        return True  # reading it says what is wrong


def _named(files: Sequence[Path], folder: Path) -> str:
    names = ", ".join(str(file.relative_to(folder)) for file in files[:3])
    return names if len(files) <= 3 else f"{len(files)} files ({names}, ...)"


def _not_read(files: Iterable[Path], read: Sequence[Path], folder: Path) -> tuple[str, ...]:
    """Which tables and archives of a folder are left alone."""
    others = [file for file in files if file.suffix[1:].lower() in {*_READERS} - {"json"} and file not in set(read)]
    return (f"not read: {_named(others, folder)}; to read one, name it as the source",) if others else ()


def _train_alone(files: Sequence[Path], root: Path, folders: bool = False) -> tuple[list[Path], tuple[str, ...]]:
    """The files without those of held-out splits, if their names (or `folders`' names alone) say that some are for
    training; and what was left out, or which splits there are."""
    splits = [_split(file.relative_to(root).parts[: -1 if folders else None]) for file in files]
    there = Counter(split for split in splits if split)
    if "train" in there and len(there) > 1:
        left_out = ", ".join(f"{split} ({number} files)" for split, number in there.items() if split != "train")
        kept = [file for file, split in zip(files, splits, strict=True) if split in ("train", "")]
        return kept, (f"split train; the splits that are left out: {left_out}",)
    held_out = ", ".join(sorted(there.keys() - {"train"}))
    return list(files), (f"reads what is named as split {held_out}",) if held_out else ()


def _split(names: Iterable[str]) -> str:
    words = re.findall("[a-z]+", " ".join(names).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "")


def check_source(source: Source, stage: int) -> None:
    """Read the first pairs, and log what of a folder is read and what is not.

    Raises UserError for what is missing, or if none of the pairs has a text where it should be.
    """
    if not 0 < source.weight < math.inf:
        raise UserError(f"data {source.path}: weight {source.weight}: expected a number above 0")
    reader = open_source(source)
    if len(reader.notes) > 1:
        logger.warning("data %s: %s", source.path, "; ".join(reader.notes))
    causes: list[Cause] = []
    items = (item for shard in reader.shards() for item in reader.read(shard, 0, 1, stage))
    for item in islice(items, TRIED):
        if isinstance(item, Pair):
            return
        causes.append(item)
    told = "; ".join(f"{cause}: {cause.detail}" for cause in {str(cause): cause for cause in reversed(causes)}.values())
    if {*causes} & {*NO_TEXT}:
        at = repr(source.caption_key) if source.caption_key else f"under the usual keys ({', '.join(CAPTION_KEYS)})"
        raise UserError(
            f"data {source.path}: none of the first pairs has a text {'under ' if source.caption_key else ''}{at}; the "
            f"keys there are: {', '.join(reader.keys()) or 'none'}; name the right one as caption_key ({told})"
        )
    raise UserError(f"data {source.path}: no usable pair at its start ({told or 'it is empty'})")
