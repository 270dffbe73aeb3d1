"""Faults of a text that its words show: measured by the filter rules, and checked in refined texts."""

import re
from pathlib import Path

from minigpt4.documents import read_yaml
from minigpt4.text_failures import words

_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?…]+[\"')\]”’]*(?=\s|$)|$)", re.M)
PHRASES = read_yaml(Path(__file__).with_name("phrases.yaml"))
APOLOGIES, ASSISTANT_TALK, MARKUP = (
    re.compile("|".join(PHRASES[kind]), re.IGNORECASE | re.MULTILINE)
    for kind in ("apologies", "assistant_talk", "markup")
)


def sentences(text: str) -> list[tuple[int, int]]:
    """(start, end) of every sentence or line of `text` that holds a word."""
    return [match.span() for match in _SENTENCE.finditer(text) if words(match.group())]


def is_whole(sentence: str) -> bool:
    """Whether a piece of prose begins and ends like a sentence."""
    return bool(re.match(r"[\"'“‘(]*[^\W_a-z]", sentence)) and bool(re.search(r"[.!?…][\"')\]”’]*$", sentence))


def count_fragments(text: str) -> int:
    """The number of incomplete sentences: stray words, lines of a list, a lower-case beginning."""
    return sum(not is_whole(text[start:end]) for start, end in sentences(text))


def count_repeated_sentences(text: str) -> int:
    """The number of sentences that repeat an earlier one word for word."""
    said = [" ".join(words(text[start:end])) for start, end in sentences(text)]
    return len(said) - len(set(said))


def repeated_share(text: str) -> float:
    """The share of runs of four words that repeat an earlier run, 0 to 1."""
    spoken = words(text)
    runs = list(zip(spoken, spoken[1:], spoken[2:], spoken[3:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def similarity(text: str, other: str) -> float:
    """The share of vocabulary of two texts: Dice's coefficient of their sets of words, so repetitions do not count."""
    mine, theirs = set(words(text)), set(words(other))
    return 2 * len(mine & theirs) / (len(mine) + len(theirs)) if mine or theirs else 1.0
