"""Does an answer fail as language: repetition, fragment, nothing said, or no end?

These are the failures that the paper counts before and after its second stage. Whether the answer is *true* is the
business of `abilities.py`: nothing here knows the picture.
"""

from __future__ import annotations

import re

#: No English sentence or line of verse stops on one of these.
_DANGLING = {
    "a", "an", "the", "and", "or", "but", "nor", "of", "with", "from", "into", "its", "their", "his", "our", "your",
    "my", "is", "are", "was", "were", "very", "small", "large",
    "red", "orange", "yellow", "green", "blue", "purple", "white", "black",
}  # fmt: skip
_STOP = re.compile(r"[.!?…][\"')\]”’]*$")
#: A sentence that was closed before the text goes on; "1." of a numbered list is none.
_CLOSED_BEFORE = re.compile(r"(?<!\d)[.!?…][\"')\]”’]*\s+\S")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])[\"')\]”’]*\s+|\n+")


def failure(text: str, ended: bool) -> str | None:
    """What is wrong with `text` as language: "empty", "no end", "repetition", "fragment"; None if nothing is.

    Args:
        text: An answer, plain text or HTML.
        ended: Whether the model stopped by itself, rather than at the limit of new tokens.
    """
    text = text.strip()
    words = re.findall(r"[a-z0-9'-]+", text.lower())
    if not words:
        return "empty"
    if not ended:
        return "no end"
    if text.startswith("<"):
        # Markup repeats its tags by design, so only an outright loop counts.
        if _loops(re.findall(r"<[^>]*>|[^<>\s]+", text)):
            return "repetition"
        unclosed = "<html" in text and not text.endswith("</html>")
        return "fragment" if unclosed or not text.endswith(">") else None
    if _says_twice(text) or _loops(words):
        return "repetition"
    return "fragment" if _breaks_off(text, words[-1]) else None


def _says_twice(text: str) -> bool:
    """Whether a sentence or line of three words or more comes twice, whatever its case and punctuation."""
    pieces = [" ".join(re.findall(r"[a-z0-9'-]+", piece.lower())) for piece in _SENTENCE_ENDS.split(text)]
    long = [piece for piece in pieces if piece.count(" ") >= 2]
    return len(set(long)) < len(long)


def _loops(words: list[str]) -> bool:
    """Whether the same words follow on themselves: up to four words three times over, or five and more twice."""
    for size in range(1, len(words) // 2 + 1):
        times = 3 if size < 5 else 2
        for start in range(len(words) - size * times + 1):
            unit = words[start : start + size]
            if all(words[start + k * size : start + (k + 1) * size] == unit for k in range(1, times)):
                return True
    return False


def _breaks_off(text: str, last_word: str) -> bool:
    """Whether the last sentence is unfinished.

    An answer that closes any of its sentences must close the last one as well. One that never does (a caption, verse
    without punctuation) must at least not stop at a comma or on a word that asks for another.
    """
    if _STOP.search(text):
        # "I can see a." is unfinished too; "The ball is red." is not.
        return last_word in {"a", "an", "the", "and", "or", "of"}
    if text[-1] in ",;:-–—":
        return True
    return bool(_CLOSED_BEFORE.search(text)) or last_word in _DANGLING
