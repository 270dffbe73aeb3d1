"""Whether a description covers a pocket caption, exactly: every fact that the caption states is read in both.

The ground truth that a judge of captions can be measured against: no model, no threshold. Facts are the kinds that the
caption names, with the colours, sizes and places that it gives them, and the setting.
"""

from __future__ import annotations

import re

from pocket.measure.truth import NOUNS, SETTINGS, read

_NOUNS = tuple(dict.fromkeys(noun for kind, nouns in NOUNS.items() if kind != "draft" for noun in nouns))
_SETTINGS = {word for kind, words in SETTINGS.items() if kind != "draft" for word in words}


def missing_fact(caption: str, description: str) -> str | None:
    """The first fact of the caption that the description does not state, or gives otherwise; None if it has all.

    A description that gives a thing another colour beside the right one ("the red ball is blue") does not state it.
    """
    told = read(description, _NOUNS)
    for kind, wanted in read(caption, _NOUNS).items():
        if kind not in told:
            return f"does not name {kind}"
        for asked, given in (
            (wanted.colours, told[kind].colours),
            (wanted.sizes, told[kind].sizes),
            (wanted.places, told[kind].places),
        ):
            if asked and asked != given:
                return f"does not say that {kind} is {', '.join(sorted(asked))}"
    lost = _settings(caption) - _settings(description)
    return f"does not name {min(lost)}" if lost else None


def _settings(text: str) -> set[str]:
    return _SETTINGS & set(re.findall(r"[a-z]+", text.lower()))
