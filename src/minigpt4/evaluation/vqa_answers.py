"""When a short answer counts as right: the normalisation and the accuracies of the VQA benchmarks.

Written from their published definitions: VQA v2's evaluation (Goyal et al. 2017; visualqa.org/evaluation),
A-OKVQA's (Schwenk et al. 2022) and GQA's (Hudson and Manning 2019). Knows nothing about files or models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Number words become digits.
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
#: Contractions that get back an apostrophe that was left out. Those that are a word without it are not among them:
#: "were", "well", "hell", "shell", "ill", "wed", "shed", "id", "its", "lets".
_CONTRACTED = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm "
    "i've isn't it'd it'll ma'am might've mightn't must've mustn't needn't o'clock oughtn't shan't she's should've "
    "shouldn't somebody's someone's something's that'd that'll that's there'd there'll there're there's they'd they'll "
    "they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'll who's who've why'd why'll why's won't would've wouldn't y'all you'd you'll you're you've"
)
_APOSTROPHE = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_PERIOD = re.compile(r"(?<!\d)\.|\.(?!\d)")
#: All punctuation but the apostrophe (possessives), the colon (times), and the period inside a number.
_PUNCTUATION = re.compile(r"[^\w\s':.]|_")


def normalize_answer(text: str) -> str:
    """An answer as the VQA metrics compare it.

    Lower case; periods go unless they stand inside a number; a comma between digits goes; all other punctuation but the
    apostrophe and the colon becomes a space; number words become digits; articles go; contractions get back their
    apostrophe.
    """
    text = text.lower().replace("\u2019", "'")
    text = _PERIOD.sub("", _PUNCTUATION.sub(" ", _BETWEEN_DIGITS.sub("", text)))
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_APOSTROPHE.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, human: Sequence[str]) -> float:
    """VQA v2's accuracy of one answer, between 0 and 1: min(matches / 3, 1), averaged over leaving out each human.

    `human` are the annotators' answers, usually ten.

    Raises:
        ValueError: there is no human answer.
    """
    if not human:
        raise ValueError("an accuracy needs at least one human answer")
    said = normalize_answer(answer)
    matches = [normalize_answer(one) == said for one in human]
    total = sum(matches)
    return sum(min((total - left_out) / 3, 1.0) for left_out in matches) / len(matches)


def aokvqa_accuracy(answer: str, direct: Sequence[str]) -> float:
    """A-OKVQA's accuracy of a direct answer: min(matches / 3, 1) among the ten direct answers, none left out."""
    said = normalize_answer(answer)
    return min(sum(normalize_answer(one) == said for one in direct) / 3, 1.0)


def gqa_accuracy(answer: str, right: str) -> float:
    """GQA's accuracy: 1 if the answer is the right one, else 0; both normalised."""
    return float(normalize_answer(answer) == normalize_answer(right))


def contained(reply: str, candidates: Sequence[str]) -> list[str]:
    """Those of `candidates` that a reply in whole sentences says, as whole words, after normalising both.

    Models that talk ("The ball is red.") never match a one-word answer; what this finds is reported beside the official
    figure, never in its place. A candidate inside a longer one ("red" in "dark red") is not said where the longer one
    is. "Yes" and "no" must be the reply's first word.
    """
    said = normalize_answer(reply)
    found: dict[str, str] = {}
    for candidate in candidates:
        words = normalize_answer(candidate)
        if words in ("yes", "no"):
            if said.split()[:1] == [words]:
                found[words] = candidate
        elif words and re.search(rf"(?<!\S){re.escape(words)}(?!\S)", said):
            found[words] = candidate
    return [
        candidate
        for words, candidate in found.items()
        if not any(words != other and f" {words} " in f" {other} " for other in found)
    ]
