"""COCO's annotation files, and which of its objects a text names.

`captions_val2017.json`: `{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}`.
`instances_val2017.json`: the same with `{"id", "image_id", "category_id"}` and `"categories": [{"id", "name"}]`.
Records that are wrong, or have the id of another, are left out and named. "Hot dog", a longer name, is no dog.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document, read_yaml
from minigpt4.errors import UserError
from minigpt4.evaluation.items import DUPLICATE, Fault, field_of, text_of, well_formed

ImageId = int | str


@dataclass(frozen=True)
class Annotations:
    """What a file says of every image, in the file's order: its captions, or its objects' categories, once each."""

    file_names: dict[ImageId, str]
    of_image: Mapping[ImageId, Sequence[str]]
    categories: Sequence[str] = ()  # all that the file lists
    faults: list[Fault] = field(default_factory=list)


def read_coco(path: str | Path, *, instances: bool) -> Annotations:
    """A file of instances, or of captions. Raises UserError if it is missing or not of this format as a whole."""
    whole, faults = read_document(path), list[Fault]()

    def named(key: str, name: str) -> dict[ImageId, str]:
        rows = rows_of(path, whole, key, "id", faults)
        return dict(well_formed(rows, lambda _, row: (row["id"], field_of(row, name, str)), faults))

    def known(row: Mapping[str, Any], key: str, names: Mapping[ImageId, str]) -> ImageId:
        identity: ImageId = field_of(row, key, (int, str))
        if identity not in names:
            raise ValueError(f"{key!r} is {identity!r}, which is not among the {plural(key.removesuffix('_id'))}")
        return identity

    def annotation(_: str, row: Mapping[str, Any]) -> tuple[ImageId, str]:
        image = known(row, "image_id", names)
        if instances:
            return image, categories[known(row, "category_id", categories)]
        return image, " ".join(text_of(row, "caption").split())

    names = named("images", "file_name")
    categories = named("categories", "name") if instances else {}
    found: dict[ImageId, list[str]] = {image: [] for image in names}
    for image, text in well_formed(rows_of(path, whole, "annotations", "id", faults), annotation, faults):
        if not (instances and text in found[image]):
            found[image].append(text)
    return Annotations(names, found, tuple(categories.values()), faults)


def rows_of(
    path: str | Path, whole: Any, key: str | None, id_field: str, faults: list[Fault]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, record) of each object in the list `whole[key]`, or `whole`; others, and doubles, go to `faults`."""
    rows = whole if key is None else whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list):
        raise UserError(f"{path}: holds no list {key!r}; is it the annotation file that this suite reads?")
    seen: dict[Any, str] = {}
    placed = ((f"{path}: {key or ''}[{number}]", row) for number, row in enumerate(rows))
    named = well_formed(placed, lambda where, row: (where, row, field_of(row, id_field, (int, str))), faults)
    for where, row, identity in named:
        if identity in seen:
            reason = f"its {id_field} {identity!r} is that of {seen[identity]}, which is kept"
            faults.append(Fault(DUPLICATE, where, reason))
        else:
            seen[identity] = where.removeprefix(f"{path}: ")
            yield where, row


_NOUNS = read_yaml(Path(__file__).parents[1] / "nouns.yaml")
_IRREGULAR = _NOUNS["plurals"] | {word: word for word in _NOUNS["same_in_plural"]}
#: Fruit and colour in one word: in the singular it is the fruit only after a determiner and before a pause or a verb.
_PAUSE = r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:on|in|at|is|was|sits|lies|next|beside|near|with|that)\b)"
_FRUIT = rf"(?:(?<=\ban )|(?<=\bof )|(?<=\bone )|(?<=\bthe )|(?<=\bcut ))orange{_PAUSE}"


def plural(word: str) -> str:
    """The plural of a noun: "hot dogs", "glasses of wine"."""
    head, of, rest = word.partition(" of ")
    before, space, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif re.search(r"(?:s|x|z|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return before + space + last + of + rest


class Vocabulary:
    """How categories (None: all) are found in a text: COCO's and `more` tables' by many words, others by names."""

    def __init__(self, categories: Collection[str] | None, *more: str) -> None:
        coco = coco_names(*more)
        categories = {*filter(None, coco.values())} if categories is None else categories
        names: dict[str, str | None] = {category: category for category in categories}
        if {*categories} <= {*coco.values()}:
            # The other names stay, without a category: a hot dog is not a dog, even if only dogs are wanted.
            names = {name: category if category in categories else None for name, category in coco.items()}
        self._category: dict[str, str | None] = {}
        for name, category in names.items():
            for form in (name, plural(name)):
                self._category[" ".join(form.lower().replace("-", " ").split())] = category
        forms = sorted(self._category, key=len, reverse=True)
        patterns = [_FRUIT if form == "orange" else re.escape(form) for form in forms]
        self._pattern = re.compile(rf"\b(?:{'|'.join(patterns)})\b")

    def mentions(self, text: str) -> list[str]:
        """The category of every mention in a text, in order, with repetitions."""
        plain = re.sub(r"[\s-]+", " ", text.lower().replace("\u2019", "'"))
        found = (self._category[match.group()] for match in self._pattern.finditer(plain))
        return [category for category in found if category is not None]


@cache
def coco_names(*more: str) -> dict[str, str | None]:
    """Every name of `coco_objects.tsv` (and of `more` such tables) with its category, None for compounds of none."""
    names: dict[str, str | None] = {}
    tables = [Path(__file__).parents[1] / f"{table}.tsv" for table in ("coco_objects", *more)]
    for line in (line for table in tables for line in table.read_text(encoding="utf-8").splitlines()):
        if line and not line.startswith("#"):
            category, _, words = line.partition("\t")
            known = None if category == "-" else category
            for word in filter(None, (known, *map(str.strip, words.split(",")))):
                names[word] = known
    return names


def with_article(kind: str) -> str:
    """A category as a question names it: "a dog", "an oven", "a pair of skis", "broccoli"."""
    if kind in _NOUNS["without_article"]:
        return kind
    if kind in _NOUNS["same_in_plural"] and kind.endswith("s"):
        return f"a pair of {kind}"
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
