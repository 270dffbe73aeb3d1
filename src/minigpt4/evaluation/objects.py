"""Which objects a text names: words, plurals and compounds for the categories of an instances file.

For COCO's 80 categories the words come from `coco_objects.tsv`, a list of our own; any other categories are found by
their names alone. The longest name wins, so that a hot dog is no dog and a toilet brush no toilet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

#: Plurals that no rule makes.
_IRREGULAR = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese",
    "calf": "calves", "knife": "knives", "foot": "feet", "ox": "oxen", "policeman": "policemen",
    "businessman": "businessmen", "fisherman": "fishermen", "gentleman": "gentlemen", "bookshelf": "bookshelves",
}  # fmt: skip
#: Left as they are in the plural, or plural already.
_UNCHANGED = {"sheep", "cattle", "luggage", "aircraft", "skis", "scissors", "broccoli", "headphones", "sunglasses"}
#: Without an article in a question.
_MASS = {"broccoli", "basil", "cheese", "corn", "bacon", "salmon"}
#: Fruit and colour in one word: in the singular it is the fruit only after a determiner and before a pause or a verb.
_PAUSE = r"(?=\s*(?:[.,;:!?)]|$)|\s+(?:on|in|at|is|was|sits|lies|next|beside|near|with|that)\b)"
_FRUIT = rf"(?:(?<=\ban )|(?<=\bof )|(?<=\bone )|(?<=\bthe )|(?<=\bcut ))orange{_PAUSE}"


def plural(word: str) -> str:
    """The plural of a noun, of whose words the last is inflected: "hot dogs", "glasses of wine"."""
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
        """The category of every mention in a text, in order; one that is named twice is there twice."""
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
        # The names of the others stay, and name nothing: where only dogs are wanted, a hot dog is still none.
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
