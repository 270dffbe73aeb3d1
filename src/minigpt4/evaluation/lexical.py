"""Whether a description has the words of a caption: the check that needs no judge, and is measured against one.

Words are compared by their stems, after leaving out those that carry no content. Knows no synonyms: "couch" and "sofa"
are different words here, which is why a judge is asked, and why its agreement with this check is below 1.
"""

from __future__ import annotations

import re

#: Share of a caption's content words that a description must have to cover it.
THRESHOLD = 0.75
_NO_CONTENT = (
    "a an the this that these those there here it its he she they them his her their and or but nor of in on at by to "
    "from for with without into onto over under near next beside behind above below up down out off as is are was were "
    "be been being am has have had do does did can could will would may might some any each very while who which what "
    "where when how than then so such also not no image picture photo photograph shows showing shown seen see"
)
_EMPTY = set(_NO_CONTENT.split())
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def stem(word: str) -> str:
    """A lower-case word without its ending: "riding", "rides" and "ride" are "rid", "boxes" and "box" are "box"."""
    word = word.removesuffix("'s").replace("'", "")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if re.search(r"(?:s|x|z|ch|sh)es$", word) else word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) >= 2 and re.search(r"[aeiouy]", rest):
            word = rest[:-1] if re.search(r"([^aeioulsz])\1$", rest) else rest
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


def content_words(text: str) -> set[str]:
    """The stems of the words of a text that carry content."""
    return {stem(word) for word in _WORD.findall(text.lower().replace("\u2019", "'")) if word not in _EMPTY}


def overlap(caption: str, description: str) -> float:
    """The share of the caption's content words that the description has; 1 for a caption without any."""
    wanted = content_words(caption)
    return len(wanted & content_words(description)) / len(wanted) if wanted else 1.0


def covers(caption: str, description: str) -> bool:
    """Whether the description has at least `THRESHOLD` of the caption's content words."""
    return overlap(caption, description) >= THRESHOLD
