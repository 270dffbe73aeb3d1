"""Stage 2's first format: detailed descriptions in the layout of the released `cc_sbu_align`.

A directory with `filter_cap.json`, `{"annotations": [{"image_id": "2", "caption": "..."}, ...]}`, and `image/2.jpg`.
Knows nothing about models or instructions.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from minigpt4.data.pairs import Pair, counted, load_picture, make_pair
from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.images import PICTURE_ENDINGS


def read_descriptions(directory: str, skipped: Counter[str]) -> Iterator[Pair]:
    """Pairs of picture and description, in the file's order. Causes of those left out are counted in `skipped`.

    Raises:
        UserError: the directory or `filter_cap.json` is missing or does not have the layout above.
    """
    yield from counted(read_items(directory), skipped)


def read_items(directory: str, part: int = 0, parts: int = 1, *, stage: int = 2) -> Iterator[Pair | str]:
    """Every `parts`-th pair from number `part` on, or the cause why there is none; errors as `read_descriptions`."""
    for image_id, caption in read_annotations(directory)[part::parts]:
        path = find_picture(Path(directory) / "image", image_id)
        yield make_pair(str(path), load_picture(path), {"caption": caption}, stage)


def read_annotations(directory: str) -> list[tuple[str, str]]:
    """`(image_id, caption)` of every annotation; see `read_descriptions`."""
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
        raise UserError(
            f'data {path}: expected {{"annotations": [{{"image_id": ..., "caption": ...}}, ...]}} ({error!r})'
        ) from error


def find_picture(directory: Path, image_id: str) -> Path | None:
    """The picture of an annotation in the `image` directory, or None.

    One outside of it, which `../` or a link leads to, is none: another's dataset takes no file of this machine along.
    """
    candidates = (directory / f"{image_id}.{ending}" for ending in PICTURE_ENDINGS)
    path = next((path for path in candidates if os.path.isfile(path)), None)  # noqa: PTH113 - names too long are False
    return path if path and path.resolve().is_relative_to(directory.resolve()) else None
