"""Ten drafts of websites as a person draws them with a mouse: letters, signs and places are not the training drafts'.

They were written before the model that reads them had seen one, and have not been changed since. A line is a list of
points in fractions of the sheet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

Line = list[tuple[float, float]]

#: Letters in corners: x to the right, y down from the top of capitals (0) to the line (6), small ones from 2.
_LETTERS: dict[str, tuple[str, ...]] = {
    "C": ("41 20 01 05 26 45",), "F": ("06 00 40", "03 33"), "G": ("41 20 01 05 26 45 43 23",),
    "M": ("06 00 33 60 66",), "N": ("06 00 46 40",), "O": ("20 01 05 26 45 41 20",), "P": ("06 00 30 41 42 33 03",),
    "T": ("00 40", "20 26"),
    "Z": ("00 40 06 46",),
    "a": ("42 12 03 05 16 35 42 46",), "c": ("33 12 03 05 16 35",), "d": ("40 46", "43 12 03 05 16 45"),
    "e": ("04 44 42 12 03 05 16 36",), "h": ("00 06", "03 22 33 36"), "i": ("02 06", "00 01"), "l": ("00 06",),
    "m": ("02 06", "03 12 23 26", "23 42 53 56"), "n": ("02 06", "03 22 33 36"), "o": ("12 03 05 16 35 33 12",),
    "r": ("02 06", "03 22 32"), "s": ("32 12 03 34 35 06",), "t": ("10 16 36", "02 32"), "u": ("02 05 16 35", "32 36"),
    "v": ("02 16 32",), "w": ("02 16 24 36 52",), "z": ("02 32 06 36",),
}  # fmt: skip


def _written(text: str, left: float, top: float, unit: float) -> list[Line]:
    lines = []
    for letter in text:
        strokes = [[(int(x), int(y)) for x, y in stroke.split()] for stroke in _LETTERS[letter]]
        lines += [[(left + unit * x, top + unit * y) for x, y in stroke] for stroke in strokes]
        left += unit * (max(x for stroke in strokes for x, _ in stroke) + 1.6)
    return lines


def _box(left: float, top: float, right: float, bottom: float) -> Line:
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def _navigation(left: float, top: float, right: float, bottom: float) -> list[Line]:
    wide, lines = (right - left) / 3, []
    for number in range(3):
        start = left + number * wide
        lines.append(_box(start, top, start + 0.8 * wide, bottom))
        lines.append([(start + 0.2 * wide, (top + bottom) / 2), (start + 0.6 * wide, (top + bottom) / 2)])
    return lines


def _image(left: float, top: float, right: float, bottom: float) -> list[Line]:
    return [_box(left, top, right, bottom), [(left, top), (right, bottom)], [(right, top), (left, bottom)]]


def _text(left: float, top: float, right: float, bottom: float) -> list[Line]:
    lines = []
    for number in range(3):
        y, end = top + (number + 0.5) * (bottom - top) / 3, right - (0.1 if number == 2 else 0)
        steps = int((end - left) / 0.035)
        lines.append([(left + i * 0.035, y + (0.012 if i % 2 else -0.012)) for i in range(steps)])
    return lines


def _list(left: float, top: float, right: float, bottom: float) -> list[Line]:
    lines = []
    for number in range(3):
        y = top + (number + 0.5) * (bottom - top) / 3
        lines += [_box(left, y - 0.01, left + 0.02, y + 0.01), [(left + 0.07, y), (right - 0.04 * number, y)]]
    return lines


def _input(left: float, top: float, right: float, bottom: float) -> list[Line]:
    return [_box(left, top, right, bottom), [(left + 0.03, top + 0.015), (left + 0.03, bottom - 0.015)]]


def _button(left: float, top: float, right: float, bottom: float) -> list[Line]:
    hatched: list[Line] = []
    x = left + 0.02
    while x + 0.03 < right:
        hatched.append([(x, bottom), (x + 0.03, top)])
        x += 0.045
    return [_box(left, top, right, bottom), *hatched]


_SIGNS = {
    "navigation": _navigation, "image": _image, "text": _text, "list": _list, "input": _input, "button": _button,
}  # fmt: skip

#: Title with its left upper corner and the height of a sixth of a capital, then each sign with its box, from top down.
_DRAWN: list[tuple[str, tuple[float, float, float], list[tuple[str, tuple[float, float, float, float]]]]] = [
    ("Pizza", (0.2, 0.06, 0.026), [("navigation", (0.1, 0.28, 0.85, 0.35)), ("image", (0.1, 0.4, 0.7, 0.62)),
                                   ("text", (0.1, 0.66, 0.85, 0.82)), ("button", (0.1, 0.86, 0.45, 0.94))]),
    ("Travel", (0.08, 0.05, 0.022), [("image", (0.08, 0.25, 0.9, 0.5)), ("text", (0.08, 0.54, 0.9, 0.7)),
                                     ("input", (0.08, 0.74, 0.8, 0.82)), ("button", (0.08, 0.86, 0.4, 0.94))]),
    ("Music", (0.25, 0.04, 0.02), [("list", (0.15, 0.22, 0.7, 0.42)), ("button", (0.3, 0.5, 0.65, 0.6))]),
    ("Zoo", (0.35, 0.05, 0.025), [("navigation", (0.06, 0.26, 0.94, 0.34)), ("image", (0.06, 0.4, 0.5, 0.66)),
                                  ("text", (0.56, 0.42, 0.94, 0.62))]),
    ("Garden", (0.1, 0.05, 0.022), [("text", (0.1, 0.24, 0.86, 0.4)), ("image", (0.1, 0.44, 0.74, 0.7)),
                                    ("button", (0.5, 0.78, 0.86, 0.88))]),
    ("Chess", (0.12, 0.08, 0.025), [("input", (0.12, 0.3, 0.88, 0.39)), ("button", (0.12, 0.44, 0.42, 0.53)),
                                    ("list", (0.12, 0.6, 0.8, 0.82))]),
    ("News", (0.05, 0.04, 0.02), [("navigation", (0.05, 0.2, 0.75, 0.27)), ("text", (0.05, 0.32, 0.9, 0.5)),
                                  ("list", (0.05, 0.55, 0.7, 0.75))]),
    ("Cats", (0.3, 0.05, 0.026), [("image", (0.2, 0.28, 0.8, 0.6)), ("text", (0.12, 0.68, 0.88, 0.86))]),
    ("Ocean", (0.15, 0.06, 0.024), [("button", (0.15, 0.28, 0.5, 0.37)), ("navigation", (0.1, 0.44, 0.88, 0.52)),
                                    ("input", (0.1, 0.6, 0.8, 0.69))]),
    ("Farm", (0.22, 0.05, 0.028), [("navigation", (0.08, 0.28, 0.9, 0.36)), ("list", (0.1, 0.42, 0.72, 0.6)),
                                   ("input", (0.1, 0.66, 0.8, 0.74)), ("button", (0.1, 0.8, 0.44, 0.89))]),
]  # fmt: skip


def drawings() -> list[tuple[str, list[str], list[Line]]]:
    """Title, signs from top to bottom, and lines of each draft; a hand is off by up to a hundredth."""
    found = []
    for number, (title, at, signs) in enumerate(_DRAWN):
        rng = random.Random(number)
        lines = _written(title, *at) + [line for name, box in signs for line in _SIGNS[name](*box)]
        found.append((title, [name for name, _ in signs], [_shaken(line, rng) for line in lines]))
    return found


def _shaken(line: Sequence[tuple[float, float]], rng: random.Random) -> Line:
    return [(x + rng.uniform(-0.005, 0.005), y + rng.uniform(-0.005, 0.005)) for x, y in line]
