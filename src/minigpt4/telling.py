"""Text from outside on a terminal, in a log or a table: what could act there is shown as an escape sequence."""

import logging
import re
import sys
from collections.abc import Iterable, Sequence

# Control characters (terminals obey them, also C1), line and paragraph separators, marks that turn the direction of
# writing (what is read is then not what is there), and lone surrogates, which cannot be written.
_UNSAFE = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
LONGEST_LINE = 4000
#: Of an image for which `VisionSide.is_unfamiliar` holds.
UNFAMILIAR = "This image is unlike those that the model learnt from: much of what it says of it may be invented"
_ONE_LINE = re.compile(f"[{_UNSAFE}]")
_LINES = re.compile(f"(?![\n\t])[{_UNSAFE}]")


def shown(text: object, *, lines: bool = False) -> str:
    r"""`text`, safe to print: "\x1b[2J" is `\x1b[2J` in plain letters, cut at 4,000; `lines` keeps breaks and tabs."""
    text = str(text)
    if not lines and len(text) > LONGEST_LINE:
        text = f"{text[:LONGEST_LINE]}... ({len(text):,} characters)"
    return (_LINES if lines else _ONE_LINE).sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: object, *, err: bool = False, end: str = "\n") -> None:
    """Print `text`, which may have several lines, to standard output, or with `err` to standard error."""
    print(shown(text, lines=True), end=end, file=sys.stderr if err else sys.stdout, flush=True)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; nothing in a cell can end it."""
    lines = [[shown(text.replace("\n", " ")).replace("|", "\\|") for text in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


class LogFormatter(logging.Formatter):
    """Log records that are safe to print; those of this package are one line each, but for a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.startswith("minigpt4") and not record.exc_info
        return shown(super().format(record), lines=not ours)
