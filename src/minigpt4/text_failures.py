"""Does an answer fail as language, as the paper counts: repetition, fragment, nothing said, no end, other language?"""

import re
import unicodedata
from pathlib import Path

from minigpt4.documents import read_yaml

#: What `failure` can find, and the version of its rules, which results record.
KINDS = ("empty", "no end", "repetition", "fragment", "language drift")
RULES_VERSION = 2
MAX_FOREIGN = 0.1  # a larger share of letters outside the Latin alphabet is another language
#: Lists of words, by name.
WORDS = {name: {*text.split()} for name, text in read_yaml(Path(__file__).with_name("words.yaml")).items()}
_STOP = re.compile(r"[.!?…][\"')\]”’]*$")
#: A sentence that was closed before the text goes on; "1." of a numbered list is none.
_CLOSED_BEFORE = re.compile(r"(?<!\d)[.!?…][\"')\]”’]*\s+\S")
_SENTENCE_ENDS = re.compile(r"(?<=[.!?…])[\"')\]”’]*\s+|\n+")


def words(text: str) -> list[str]:
    """The words of `text` in lower case."""
    return re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*|\d+", text.lower())


def failure(text: str, ended: bool) -> str | None:
    """What is wrong with `text` (plain or HTML) as language: the first of `KINDS` that fits; None if nothing is."""
    text = text.strip()
    said = re.findall(r"[^\W_]+(?:['-]+[^\W_]+)*", text.lower())
    if not said:
        return "empty"
    if not ended:
        return "no end"
    if text.startswith("<"):
        # Markup repeats its tags by design, so only an outright loop counts.
        if _loops(re.findall(r"<[^>]*>|[^<>\s]+", text)):
            return "repetition"
        unclosed = "<html" in text and not text.endswith("</html>")
        return "fragment" if unclosed or not text.endswith(">") else None
    if _says_twice(text) or _loops(said):
        return "repetition"
    if _breaks_off(text, said[-1]):
        return "fragment"
    return "language drift" if _drifts(text) else None


def _drifts(text: str) -> bool:
    """Whether the text is not English, or turns to another language for three sentences or lines in a row."""
    pieces = [piece for piece in _SENTENCE_ENDS.split(text) if piece.strip()]
    runs = [" ".join(pieces[start : start + 3]) for start in range(max(1, len(pieces) - 2))]
    return (
        _foreign_letters(text) > MAX_FOREIGN
        or _lacks_english(text, 16)  # shorter ones may do without: "Order them today!"
        or any(_foreign_letters(run) > 0.5 or _is_foreign(run) for run in runs)
    )


def _is_foreign(text: str) -> bool:
    """Whether more words of other languages than of English hold it together."""
    spoken = re.findall(r"[^\W\d_]+", text.lower())
    foreign = sum(word in WORDS["foreign"] for word in spoken)
    return foreign >= 3 and foreign > sum(word in WORDS["function"] for word in spoken)


def _foreign_letters(text: str) -> float:
    letters = [letter for letter in text if letter.isalpha()]
    return sum("LATIN" not in unicodedata.name(letter, "") for letter in letters) / len(letters) if letters else 0.0


def _lacks_english(text: str, least: int) -> bool:
    """Whether a text of `least` words or more has next to no English function words."""
    spoken = words(text)
    return len(spoken) >= least and sum(word in WORDS["function"] for word in spoken) < 0.08 * len(spoken)


def foreign_share(text: str) -> float:
    """The share of letters outside the Latin alphabet, or 1 for eight words or more with next to no English ones."""
    return 1.0 if _lacks_english(text, 8) else _foreign_letters(text)


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
            if words[start : start + size * times] == times * words[start : start + size]:
                return True
    return False


def _breaks_off(text: str, last_word: str) -> bool:
    """Whether the last sentence is unfinished: open, unlike others, or cut at a comma or a word that asks for more."""
    if _STOP.search(text):
        # "I can see a." is unfinished too; "The ball is red." is not.
        return last_word in {"a", "an", "the", "and", "or", "of"}
    return text[-1] in ",;:-–—" or bool(_CLOSED_BEFORE.search(text)) or last_word in WORDS["dangling"]
