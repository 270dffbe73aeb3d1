"""COCO's annotation files: the captions and the objects of pictures.

`captions_val2017.json`: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`.
`instances_val2017.json`: the same with `{"id", "image_id", "category_id"}` and `"categories": [{"id", "name"}]`.
Boxes and segments are not read. A record that is wrong, or has the id of another, is left out and named. Knows nothing
about models or scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.items import DUPLICATE, MALFORMED, Fault, field_of

ImageId = int | str


@dataclass(frozen=True)
class Captions:
    """The captions of every picture, in the file's order; a picture without any has no entry."""

    file_names: dict[ImageId, str]
    captions: dict[ImageId, tuple[str, ...]]
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Instances:
    """The objects of every picture.

    `objects` has an entry for every picture of the file, empty for those without an annotated object. `categories` are
    in the file's order.
    """

    categories: tuple[str, ...]
    file_names: dict[ImageId, str]
    objects: dict[ImageId, frozenset[str]]
    faults: list[Fault] = field(default_factory=list)


def read_captions(path: str | Path) -> Captions:
    """A captions file. Raises UserError if it is missing or not of this format as a whole."""
    whole, faults = read_document(path), list[Fault]()
    names = _images(path, whole, faults)
    captions: dict[ImageId, list[str]] = {}
    for where, row in rows_of(path, whole, "annotations", "id", faults):
        try:
            image, caption = _image_of(row, names), " ".join(field_of(row, "caption", str).split())
            if not caption:
                raise ValueError("'caption' is empty")
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))
            continue
        captions.setdefault(image, []).append(caption)
    return Captions(names, {image: tuple(captions[image]) for image in names if image in captions}, faults)


def read_instances(path: str | Path) -> Instances:
    """An instances file; errors as `read_captions`."""
    whole, faults = read_document(path), list[Fault]()
    names = _images(path, whole, faults)
    categories: dict[ImageId, str] = {}
    for where, row in rows_of(path, whole, "categories", "id", faults):
        try:
            categories[row["id"]] = field_of(row, "name", str)
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))
    objects: dict[ImageId, set[str]] = {image: set() for image in names}
    for where, row in rows_of(path, whole, "annotations", "id", faults):
        try:
            image, category = _image_of(row, names), field_of(row, "category_id", (int, str))
            if category not in categories:
                raise ValueError(f"'category_id' is {category!r}, which is not among the categories")
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))
            continue
        objects[image].add(categories[category])
    found = {image: frozenset(kinds) for image, kinds in objects.items()}
    return Instances(tuple(categories.values()), names, found, faults)


def rows_of(
    path: str | Path, whole: Any, key: str | None, id_field: str, faults: list[Fault]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) for each record of the list `whole[key]`, or of `whole` itself.

    Those that are no objects, have no id, or the id of an earlier one are put to `faults`. Raises UserError if there is
    no such list.
    """
    rows = whole if key is None else whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        missing = "should be a list of records" if key is None else f"holds no list {key!r}"
        raise UserError(f"{path}: {missing}; is it the annotation file that this suite reads?")
    seen: dict[Any, str] = {}
    for number, row in enumerate(rows):
        where = f"{path}: {key or ''}[{number}]"
        try:
            identity = field_of(row, id_field, (int, str))
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))
            continue
        if identity in seen:
            reason = f"its {id_field} {identity!r} is that of {seen[identity]}, which is kept"
            faults.append(Fault(DUPLICATE, where, reason))
            continue
        seen[identity] = where.removeprefix(f"{path}: ")
        yield where, row


def _images(path: str | Path, whole: Any, faults: list[Fault]) -> dict[ImageId, str]:
    names: dict[ImageId, str] = {}
    for where, row in rows_of(path, whole, "images", "id", faults):
        try:
            names[row["id"]] = field_of(row, "file_name", str)
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))
    return names


def _image_of(row: Mapping[str, Any], names: dict[ImageId, str]) -> ImageId:
    image: ImageId = field_of(row, "image_id", (int, str))
    if image not in names:
        raise ValueError(f"'image_id' is {image!r}, which is not among the images")
    return image
