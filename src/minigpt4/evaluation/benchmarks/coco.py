"""COCO's annotation files, and which of its objects a text names.

`captions_val2017.json`: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`.
`instances_val2017.json`: the same with `{"id", "image_id", "category_id"}` and `"categories": [{"id", "name"}]`.
Boxes and segments are not read. A record that is wrong, or has the id of another, is left out and named.

The words for COCO's 80 categories come from `coco_objects.tsv`, a list of our own; other categories are found by their
names alone. The longest name wins, so "hot dog" does not count as a dog, nor "toilet brush" as a toilet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.items import DUPLICATE, MALFORMED, Fault, field_of

ImageId = int | str
T = TypeVar("T")


@dataclass(frozen=True)
class Captions:
    """The captions of every image, in the file's order; an image without captions has no entry."""

    file_names: dict[ImageId, str]
    captions: dict[ImageId, tuple[str, ...]]
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class Instances:
    """The objects of every image, empty if nothing is annotated there; `categories` are in the file's order."""

    categories: tuple[str, ...]
    file_names: dict[ImageId, str]
    objects: dict[ImageId, frozenset[str]]
    faults: list[Fault] = field(default_factory=list)


def read_captions(path: str | Path) -> Captions:
    """A captions file. Raises UserError if it is missing or not of this format as a whole."""
    whole, faults = read_document(path), list[Fault]()
    names = _names(path, whole, "images", "file_name", faults)
    captions: dict[ImageId, list[str]] = {}

    def caption(_: str, row: Mapping[str, Any]) -> tuple[ImageId, str]:
        image, text = _image_of(row, names), " ".join(field_of(row, "caption", str).split())
        if not text:
            raise ValueError("'caption' is empty")
        return image, text

    for image, text in well_formed(rows_of(path, whole, "annotations", "id", faults), caption, faults):
        captions.setdefault(image, []).append(text)
    return Captions(names, {image: tuple(captions[image]) for image in names if image in captions}, faults)


def read_instances(path: str | Path) -> Instances:
    """An instances file; errors as `read_captions`."""
    whole, faults = read_document(path), list[Fault]()
    names = _names(path, whole, "images", "file_name", faults)
    categories = _names(path, whole, "categories", "name", faults)
    objects: dict[ImageId, set[str]] = {image: set() for image in names}

    def instance(_: str, row: Mapping[str, Any]) -> tuple[ImageId, str]:
        image, category = _image_of(row, names), field_of(row, "category_id", (int, str))
        if category not in categories:
            raise ValueError(f"'category_id' is {category!r}, which is not among the categories")
        return image, categories[category]

    for image, kind in well_formed(rows_of(path, whole, "annotations", "id", faults), instance, faults):
        objects[image].add(kind)
    found = {image: frozenset(kinds) for image, kinds in objects.items()}
    return Instances(tuple(categories.values()), names, found, faults)


def well_formed(rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], T], faults: list[Fault]) -> Iterator[T]:
    """`make(where, record)` of each record; if it raises ValueError, the record goes to `faults`."""
    for where, row in rows:
        try:
            yield make(where, row)
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))


def rows_of(
    path: str | Path, whole: Any, key: str | None, id_field: str, faults: list[Fault]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) for each record of the list `whole[key]`, or of `whole` itself.

    Records that are not objects, or whose id is missing or a duplicate, go to `faults`. Raises UserError if there is no
    such list.
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


def _names(path: str | Path, whole: Any, key: str, name: str, faults: list[Fault]) -> dict[ImageId, str]:
    """The names in the list `whole[key]` by their ids."""
    rows = rows_of(path, whole, key, "id", faults)
    return dict(well_formed(rows, lambda _, row: (row["id"], field_of(row, name, str)), faults))


def _image_of(row: Mapping[str, Any], names: dict[ImageId, str]) -> ImageId:
    image: ImageId = field_of(row, "image_id", (int, str))
    if image not in names:
        raise ValueError(f"'image_id' is {image!r}, which is not among the images")
    return image


#: Irregular plurals.
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese",
    "calf": "calves", "knife": "knives", "foot": "feet", "ox": "oxen", "policeman": "policemen",
    "businessman": "businessmen", "fisherman": "fishermen", "gentleman": "gentlemen", "bookshelf": "bookshelves",
}  # fmt: skip
#: The same in the plural, or plural already.
_UNCHANGED = {"sheep", "cattle", "luggage", "aircraft", "skis", "scissors", "broccoli", "headphones", "sunglasses"}
#: Without an article in a question.
_MASS = {"broccoli", "basil", "cheese", "corn", "bacon", "salmon"}
#: Fruit and colour in one word: in the singular it is the fruit only after a determiner and before a pause or a verb.
_PAUSE = r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:on|in|at|is|was|sits|lies|next|beside|near|with|that)\b)"
_FRUIT = rf"(?:(?<=\ban )|(?<=\bof )|(?<=\bone )|(?<=\bthe )|(?<=\bcut ))orange{_PAUSE}"


def plural(word: str) -> str:
    """The plural of a noun: "hot dogs", "glasses of wine"."""
    head, of, rest = word.partition(" of ")
    before, _, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last not in _UNCHANGED:
        if re.search(r"(?:s|x|z|ch|sh)$", last):
            last += "es"
        elif re.search(r"[^aeiou]y$", last):
            last = last[:-1] + "ies"
        else:
            last += "s"
    return " ".join(filter(None, (before, last))) + of + rest


class Vocabulary:
    """Names of categories, and how they are found in a text.

    Args:
        names: For each name in the singular, its category, or None for a compound that names no category.
    """

    def __init__(self, names: Mapping[str, str | None]) -> None:
        self._category: dict[str, str | None] = {}
        for name, category in names.items():
            for form in (name, plural(name)):
                self._category[" ".join(form.lower().replace("-", " ").split())] = category
        forms = sorted(self._category, key=len, reverse=True)
        self._pattern = re.compile(rf"\b(?:{'|'.join(map(_pattern, forms))})\b")

    def mentions(self, text: str) -> list[str]:
        """The category of every mention in a text, in order, with repetitions."""
        plain = re.sub(r"[\s-]+", " ", text.lower().replace("\u2019", "'"))
        found = (self._category[match.group()] for match in self._pattern.finditer(plain))
        return [category for category in found if category is not None]


def _pattern(form: str) -> str:
    return _FRUIT if form == "orange" else re.escape(form)


def vocabulary(categories: Sequence[str]) -> Vocabulary:
    """The vocabulary of an instances file's categories: COCO's if they are among its 80, else their names alone."""
    coco = coco_names()
    wanted = set(categories)
    if wanted <= {category for category in coco.values() if category is not None}:
        # The other names stay, without a category: a hot dog is not a dog, even if only dogs are wanted.
        return Vocabulary({name: category if category in wanted else None for name, category in coco.items()})
    return Vocabulary({category: category for category in categories})


@cache
def coco_names() -> dict[str, str | None]:
    """Every name of `coco_objects.tsv` with its category, None for compounds that name none."""
    lines = (files("minigpt4.evaluation") / "coco_objects.tsv").read_text(encoding="utf-8").splitlines()
    names: dict[str, str | None] = {}
    for line in lines:
        if line and not line.startswith("#"):
            category, _, words = line.partition("\t")
            listed = [word.strip() for word in words.split(",") if word.strip()]
            for word in [category, *listed] if category != "-" else listed:
                names[word] = category if category != "-" else None
    return names


def with_article(kind: str) -> str:
    """A category as a question names it: "a dog", "an oven", "a pair of skis", "broccoli"."""
    if kind in _MASS:
        return kind
    if kind in _UNCHANGED and kind.endswith("s"):
        return f"a pair of {kind}"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
