"""Faults of a text that its words show: measured by the filter rules, and checked in refined texts."""

from __future__ import annotations

import re

from minigpt4.text_failures import words

_SENTENCE = re.compile(r"\S[^\n]*?(?:[.!?…]+[\"')\]”’]*(?=\s|$)|$)", re.M)
#: Phrases about a mistake, or a refusal, instead of an image.
APOLOGIES = re.compile(
    r"(?i)\b(?:i(?:'m| am) (?:so |very |really )?sorry|(?:i |my )?apolog(?:y|ies|ise|ize)\w*|sorry,|my mistake|"
    r"i made (?:a|an|some) (?:mistake|error)s?|there (?:was|is) (?:a|an) (?:mistake|error) in my|"
    r"i (?:can(?:'|no)t|cannot|am (?:not able|unable) to|won't) (?:help|assist|see|view|fulfil\w*|comply|do that|mend|"
    r"process|provide)|unable to (?:assist|comply)|i must decline)"
)
#: Phrases that assistants put around the text they were asked for.
ASSISTANT_TALK = re.compile(
    r"(?i)(?:\bas an? (?:ai|artificial|language model|assistant)\b|\b(?:large )?language model\b|"
    r"^(?:sure|certainly|of course|okay|ok|absolutely)\b[,!.:]|\bhere(?:'s| is| are) (?:the|your|a|my) (?:\w+ )?"
    r"(?:corrected|mended|revised|rewritten|improved|edited|fixed|text|version)|\bi hope (?:this|that) helps|"
    r"\blet me know if\b|\bfeel free to\b|\bhow (?:can|may) i (?:help|assist)|\bcorrected (?:text|version)\s*:|"
    r"\b(?:human|user|assistant)\s*:)"
)
#: Tags, links, Markdown and the marks of chat formats.
MARKUP = re.compile(
    r"</?[a-z][^<>]{0,80}>|<!--|https?://|www\.|###|```|\*\*|^\s*#+ |\[[^\]]*\]\([^)]*\)|&[a-z]{2,6};|\{\\|<\|",
    re.I | re.M,
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


def count(pattern: re.Pattern[str], text: str) -> int:
    """How often one of the patterns above is found."""
    return len(pattern.findall(text))


def similarity(text: str, other: str) -> float:
    """The share of vocabulary of two texts: Dice's coefficient of their sets of words, so repetitions do not count."""
    mine, theirs = set(words(text)), set(words(other))
    return 2 * len(mine & theirs) / (len(mine) + len(theirs)) if mine or theirs else 1.0
