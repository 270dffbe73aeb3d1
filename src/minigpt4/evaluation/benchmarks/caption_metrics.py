"""CIDEr, BLEU, METEOR and ROUGE of captions, by pycocoevalcap (`pip install 'minigpt4[eval]'`).

Published scores use Stanford's tokenizer. It and METEOR are Java programs that come with pycocoevalcap. Without `java`,
METEOR is left out and a plain rule splits words; the result says so, since its figures are then close to published ones
but not the same. SPICE is never run, because it downloads models.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from minigpt4.errors import UserError

STANFORD, PLAIN = "Stanford's PTBTokenizer", "lower-case words (no Java)"
_WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class CaptionScores:
    """Scores and how they were made.

    `each`: "METEOR", "ROUGE-L" and "CIDEr" of every image, in the order of the answers; their mean is the metric.
    `corpus`: "BLEU-1" to "BLEU-4", which are of all answers together. `left_out` says of a missing metric why it is.
    """

    each: dict[str, list[float]]
    corpus: dict[str, float]
    tokenizer: str
    left_out: dict[str, str] = field(default_factory=dict)


def caption_scores(answers: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """The metrics of `answers` (by image) against the captions that people wrote.

    Raises:
        UserError: pycocoevalcap is not installed, there are no answers, or an image has no reference.
    """
    if not answers:
        raise UserError("there is no answer to score captions by")
    for name in answers:
        if not references.get(name):
            raise UserError(f"image {name} has no reference caption, so its answer cannot be scored")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
    except ModuleNotFoundError as missing:
        raise UserError(f"caption metrics need {missing.name}: pip install 'minigpt4[eval]'") from None
    wanted = {name: list(references[name]) for name in answers}
    java = shutil.which("java") is not None
    tokenize = _stanford if java else _lower_case
    said, meant = tokenize({name: [text] for name, text in answers.items()}), tokenize(wanted)
    corpus, _ = Bleu(4).compute_score(meant, said, verbose=0)
    each: dict[str, list[float]] = {}
    left_out = {} if java else {"METEOR": "needs the command java (a Java runtime, version 8 or newer)"}
    for name, scorer in {"METEOR": Meteor, "ROUGE-L": Rouge, "CIDEr": Cider}.items():
        if name in left_out:
            continue
        try:
            each[name] = [float(score) for score in scorer().compute_score(meant, said)[1]]
        except (OSError, ValueError) as error:
            if name != "METEOR":
                raise
            left_out[name] = f"its Java program failed ({error})"
    bleu = {f"BLEU-{n}": float(value) for n, value in enumerate(corpus, start=1)}
    return CaptionScores(each, bleu, STANFORD if java else PLAIN, left_out)


def _stanford(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # One line for each text goes through the program: line breaks of any sort inside would shift all that follow.
    rows = {name: [{"caption": " ".join(text.split())} for text in each] for name, each in texts.items()}
    try:
        return PTBTokenizer().tokenize(rows)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"Stanford's tokenizer of pycocoevalcap does not run ({error}); is java complete?") from None


def _lower_case(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    return {name: [" ".join(_WORD.findall(text.lower())) for text in each] for name, each in texts.items()}
