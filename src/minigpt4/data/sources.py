"""Where pairs come from: which of the files in a place are the data, and the reader for their format."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from minigpt4.data.formats import IMAGE_KEYS, TABLES, Descriptions, Folder, Hub, Reader, Table, Tars, holds_pairs
from minigpt4.data.pairs import CAPTION_KEYS, NO_TEXT, SPLIT_KEY, TEXT_ENDINGS, Cause, Pair, split_of
from minigpt4.errors import UserError
from minigpt4.files import expand, find_files, walk
from minigpt4.images import fold, sort_images, tell_left_out

logger = logging.getLogger(__name__)

TRIED = 100  # pairs that are looked at before a run
MANY = 50  # files of a folder, of which each is looked into to find stray ones
SPLIT_ROWS = 100_000  # rows of a table that are looked at for splits, if one for training is among them
_READERS: dict[str, type[Reader]] = {"tar": Tars, **TABLES}


@dataclass(frozen=True)
class Source:
    """One source of pairs, as a recipe names it."""

    path: str  # `{00000..10488}.tar`, a directory, a table, a pattern of files, or `hub:owner/name[:split]`
    weight: float = 1.0  # share of the pairs drawn, relative to the other sources
    caption_key: str | None = None  # column or JSON key of the text; None takes the usual ones


def open_source(source: Source) -> Reader:
    """The reader for the format of `source`. Raises UserError if nothing is there, or nothing in a known format."""
    if source.path.startswith("hub:"):
        repository, _, split = source.path.removeprefix("hub:").partition(":")
        notes = (f"reads {source.path}",)
        return _train_rows(Hub((), source.caption_key, notes, name=repository, split=split or "train"))
    path = expand(source.path)
    if path.is_dir():
        return _train_rows(_open_folder(path, source.caption_key))
    try:
        files, root = find_files(path, "; the head of the recipe says where its data come from")
    except UserError as error:
        raise UserError(f"data {error}") from None
    ending = files[0].suffix[1:].lower()
    if ending in _READERS:
        files, note = _train_files(files, root)
        what = f"reads {_named(files, root)}"
        return _train_rows(_READERS[ending](tuple(files), source.caption_key, (what, *note)))
    images, _ = sort_images(files)
    if not images:
        tables = ", ".join(f".{name}" for name in TABLES)
        raise UserError(f"data {path}: unknown format; give a directory, .tar, {tables}, images or hub:NAME")
    texts = [file for place in {image.parent for image in images} for file in walk(place)]
    return Folder((), source.caption_key, (), _with_texts(images, texts))


def _open_folder(folder: Path, key: str | None) -> Reader:
    """The reader of what a folder holds; a table or archive that is stray or without images is not read but named."""
    files = walk(folder)
    images, left_out = sort_images(files)
    notes = (tell_left_out(left_out),) if left_out else ()
    archives = [] if any(len(texts) > 1 for texts in _with_texts(images, files)) else files
    candidates: list[tuple[type[Reader], list[Path]]] = [
        (Descriptions, [file for file in files if file.name == "filter_cap.json"]),
        *((TABLES[ending], [file for file in files if file.name.lower() == f"metadata.{ending}"]) for ending in TABLES),
        (Tars, [file for file in archives if file.suffix.lower() == ".tar"]),
        (TABLES["parquet"], [file for file in archives if file.suffix.lower() == ".parquet"]),
    ]
    for reader, found in candidates:
        usable = [file for file in found if len(found) > MANY or _is_usable(reader, file)]
        if usable:
            chosen, note = _train_files(usable, folder)
            what = f"reads {_named(chosen, folder)}"
            key = None if reader is Descriptions else key  # it has no other
            return reader(tuple(chosen), key, (what, *note, *_not_read(files, usable, folder)))
    if not images:
        raise UserError(
            f"data {folder}: holds none of: *.tar or *.parquet with images, filter_cap.json with image/, "
            "metadata.csv or .jsonl, images with a .txt of the same name"
            + "".join(f"; {note}" for note in (*notes, *_not_read(files, (), folder)))
        )
    chosen, note = _train_files(images, folder, folders=True)
    chosen.sort(key=str)  # an order of release 0.1, in which its trainings go on
    what = f"reads {len(chosen)} images with the texts beside them"
    return Folder((), key, (what, *note, *notes, *_not_read(files, (), folder)), _with_texts(chosen, files))


def _with_texts(images: Iterable[Path], files: Iterable[Path]) -> tuple[list[str], ...]:
    """Each image, and those of `files` with a text that share its name: `a.txt` or `a.jpg.txt` beside `a.jpg`."""
    named: dict[str, list[str]] = {}
    for path in files:
        if path.suffix[1:].lower() in TEXT_ENDINGS:
            named.setdefault(fold(str(path.with_suffix(""))), []).append(str(path))
    return tuple(
        [str(image), *(named.get(fold(str(image.with_suffix("")))) or named.get(fold(str(image))) or ())]
        for image in images
    )


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
    others = [file for file in files if file.suffix[1:].lower() in {*_READERS} - {"json"} and file not in set(read)]
    return (f"not read: {_named(others, folder)}; to read one, name it as the source",) if others else ()


def _train_files(files: Sequence[Path], root: Path, folders: bool = False) -> tuple[list[Path], tuple[str, ...]]:
    """What training reads, by the splits that their names (or `folders`' names alone) speak of; and a note."""
    splits = [split_of(file.relative_to(root).parts[: -1 if folders else None]) for file in files]
    train_alone, note = _judge_splits(Counter(splits), "files")
    return [file for file, split in zip(files, splits, strict=True) if not train_alone or split in ("train", "")], note


def _train_rows(reader: Reader) -> Reader:
    """The reader that reads of a table what training reads, by the splits that a column names."""
    if not isinstance(reader, Table):
        return reader
    splits: Counter[str] = Counter()
    more = False  # rows than were looked at
    with suppress(UserError):  # reading it says what is wrong
        for split in reader.splits() if SPLIT_KEY in map(str.lower, reader.keys()) else ():
            splits[split] += 1
            more = splits.total() >= SPLIT_ROWS and splits["train"] > 0
            if more:
                break
    train_alone, note = _judge_splits(splits, f"rows of the column {SPLIT_KEY}")
    return replace(reader, train_alone=train_alone or more, notes=(*reader.notes, *note))


def _judge_splits(splits: Counter[str], what: str) -> tuple[bool, tuple[str, ...]]:
    """Whether training reads split train alone, since the names say so; what is left out, or which splits there are."""
    others = {split: number for split, number in splits.items() if split not in ("train", "")}
    if others and splits["train"]:
        left_out = ", ".join(f"{split} ({number} {what})" for split, number in others.items())
        return True, (f"split train; the splits that are left out: {left_out}",)
    return False, (f"reads what is named as split {', '.join(sorted(others))}",) if others else ()


def check_source(source: Source, stage: int) -> None:
    """Read the first pairs, and log what is read. Raises UserError if something is missing or no pair has a text."""
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
