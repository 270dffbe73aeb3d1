"""A web page on which people judge answers without knowing which model gave them (paper, section 4.2).

For each question they see the image, the prompt, what counts as success, and the answers of all models: without names,
in a random order for each rater, equal answers once. They say of each whether it succeeds, and which is best, ties
allowed. Judgements go to a journal at once. `rating.html` is the page.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.journal import Journal, digest
from minigpt4.evaluation.judges import RATINGS, agreement, answer_key
from minigpt4.evaluation.results import RESULTS
from minigpt4.files import only_process
from minigpt4.labelling import LabellingDesk, labelling_app, serve_app

logger = logging.getLogger(__name__)

VERDICTS = {"yes": True, "no": False, "unsure": None}


@dataclass(frozen=True)
class RatedQuestion:
    """The different answers that models gave to one question, by their keys."""

    item: str
    sample: int
    task: str
    image: Path
    prompt: str
    success: str
    answers: dict[str, str]


class RatingDesk(LabellingDesk):
    """Hands out questions and takes judgements. Images are shown from the folder `images` alone."""

    title, thing, judge = "Judge answers", "question", "rater"
    html = "minigpt4.evaluation", "rating.html"

    def __init__(self, questions: Sequence[RatedQuestion], journal: Journal, images: Path) -> None:
        super().__init__()
        self.questions, self.journal, self.images = questions, journal, images

    def __len__(self) -> int:
        return len(self.questions)

    def image(self, index: int) -> Path:
        image = self.questions[index].image
        if not lies_in(image, self.images):
            raise UserError("it lies outside of the folder given with --images")
        return image

    def order(self, rater: str) -> list[int]:
        """The questions in this rater's own order, so that a few raters who stop early cover all tasks alike."""
        order = list(range(len(self.questions)))
        random.Random(f"order {rater}").shuffle(order)
        return order

    def back(self, rater: str, index: int | None) -> int:
        """The question before this one in the rater's order."""
        order = self.order(rater)
        return order[max(0, (len(order) if index is None else order.index(index)) - 1)]

    def _key(self, rater: str, index: int) -> str:
        question = self.questions[index]
        return digest([rater, question.item, question.sample, sorted(question.answers)])

    def waits(self, rater: str, index: int) -> bool:
        return self._key(rater, index) not in self.journal

    def look(self, rater: str, index: int) -> dict[str, Any]:
        question = self.questions[index]
        shown = sorted(question.answers.items())  # by digests, so that the order before the shuffle tells nothing
        random.Random(f"answers {rater} {question.item} {question.sample}").shuffle(shown)
        with self.lock:
            mine = self.journal[key] if (key := self._key(rater, index)) in self.journal else None
        words = {verdict: word for word, verdict in VERDICTS.items()}
        return {
            "index": index,
            "task": question.task,
            "prompt": question.prompt,
            "success": question.success,
            "answers": [
                {"key": key, "text": text, "mine": words[mine["answers"][key]] if mine else None} for key, text in shown
            ],
            "best": mine["best"] if mine else [],
        }

    def decide(self, rater: str, index: int, answers: Mapping[str, str], best: list[str]) -> None:
        """Record a judgement; it replaces an earlier one of the same rater. `best` holds several answers in a tie.

        Raises ValueError if it does not judge exactly the answers that are shown.
        """
        question = self.questions[index]
        if answers.keys() != question.answers.keys() or not set(answers.values()) <= VERDICTS.keys():
            raise ValueError(f"each answer must be judged once: {', '.join(VERDICTS)}")
        if not set(best) <= question.answers.keys():
            raise ValueError("the best answer must be one of those shown")
        with self.lock:
            self.journal.add([{
                "key": self._key(rater, index), "rater": rater, "item": question.item, "sample": question.sample,
                "answers": {key: VERDICTS[word] for key, word in answers.items()}, "best": sorted(set(best)),
                "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            }])  # fmt: skip

    def times(self, rater: str) -> list[str]:
        return [row["at"] for row in self.journal if row["rater"] == rater]

    def agreement(self) -> list[dict[str, Any]]:
        return agreement(list(self.journal))


def read_questions(directory: Path) -> list[RatedQuestion]:
    """The questions of a suite's results, each with its different answers.

    Raises UserError if `directory` holds no results whose answers people can judge.
    """
    path = directory / RESULTS
    if not path.is_file():
        raise UserError(f"{directory}: holds no {RESULTS}; run `minigpt4 eval abilities` first, and give DIR/abilities")
    results = read_document(path)
    success = results.get("success") if isinstance(results, dict) else None
    if not isinstance(success, dict):
        raise UserError(f"{path}: does not say what counts as success; people judge the suite `abilities`")
    found: dict[tuple[str, int], RatedQuestion] = {}
    try:
        for row in results["answers"]:
            texts = [row[name] for name in ("item", "task", "image", "prompt", "answer")] + [
                success.get(row["item"], "")
            ]
            item, task, image, prompt, answer, wanted = (text.encode("utf-8", "replace").decode() for text in texts)
            question = RatedQuestion(item, row["sample"], task, Path(image), prompt, wanted, {})
            answers = found.setdefault((item, row["sample"]), question).answers
            answers[answer_key(item, row["prompt"], row["answer"])] = answer
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not as minigpt4 writes it ({type(error).__name__}: {error})") from None
    if not found:
        raise UserError(f"{path}: holds no answers to judge")
    return list(found.values())


def lies_in(image: Path, folder: Path) -> bool:
    """Whether the image is a file in the folder or below it, after following links."""
    try:
        return image.resolve().is_relative_to(folder.resolve()) and image.is_file()
    except (OSError, ValueError, RuntimeError):  # names that no file can have, links in a circle
        return False


def serve_rating(directory: Path, images: Path | None, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `ready` is given its address.

    A stranger's results may name any file, so images are shown from the folder `images` alone (default: `directory`).
    Raises UserError for a wrong directory, or if the port is taken.
    """
    questions, images = read_questions(directory), images or directory
    if hidden := [question.image for question in questions if not lies_in(question.image, images)]:
        logger.warning(
            "%d images are not shown, because they are not in %s (the first is %r); give their folder with --images",
            len(hidden), images, str(hidden[0]),
        )  # fmt: skip
    with only_process(directory, "rating"), Journal(directory / RATINGS) as journal:
        serve_app(labelling_app(RatingDesk(questions, journal, images), host), host, port, ready)
