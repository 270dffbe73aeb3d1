"""A web page on which people judge answers without knowing whose they are (paper, section 4.2).

For each question they see the picture, what was asked, what counts as success, and the answers of all models: without
names, in an order of chance that differs from rater to rater, equal answers once. They say of each whether it succeeds,
and which is best, ties allowed. Every judgement is in a journal at once. `rating.html` is the page.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.journal import Journal, digest
from minigpt4.evaluation.judges import RATINGS, agreement, answer_key
from minigpt4.evaluation.results import RESULTS
from minigpt4.files import only_process
from minigpt4.labelling import Labelling, person, seconds_left
from minigpt4.local_web import serve_app

if TYPE_CHECKING:
    from fastapi import FastAPI

logger = logging.getLogger(__name__)

VERDICTS = {"yes": True, "no": False, "unsure": None}


@dataclass(frozen=True)
class Question:
    """What is judged at once: the different answers that models gave to one item, by their keys."""

    item: str
    sample: int
    task: str
    image: Path
    prompt: str
    success: str
    answers: dict[str, str]


class Desk:
    """Hands out questions and takes judgements. Safe to use from several threads.

    Images are shown from the folder `images` alone.
    """

    def __init__(self, questions: Sequence[Question], journal: Journal, images: Path) -> None:
        self.questions, self.images = questions, images
        self.journal = journal
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self.questions)

    def image(self, index: int) -> Path:
        """The image that was asked about. Raises UserError if it lies elsewhere."""
        image = self.questions[index].image
        if not lies_in(image, self.images):
            raise UserError("it lies outside of the folder given with --images")
        return image

    def order(self, rater: str) -> list[int]:
        """The questions in this rater's own order, so that a few raters who stop early cover all tasks alike."""
        order = list(range(len(self.questions)))
        random.Random(f"order {rater}").shuffle(order)
        return order

    def next(self, rater: str) -> int | None:
        """The first question that waits for this rater; None if there is none."""
        with self._lock:
            return next((i for i in self.order(rater) if self._key(rater, i) not in self.journal), None)

    def _key(self, rater: str, index: int) -> str:
        question = self.questions[index]
        return digest([rater, question.item, question.sample, sorted(question.answers)])

    def look(self, rater: str, index: int) -> dict[str, Any]:
        """What the page shows: nothing in it tells whose an answer is."""
        question = self.questions[index]
        shown = list(question.answers.items())
        shown.sort()  # by their digests, so that the order before the shuffle says nothing either
        random.Random(f"answers {rater} {question.item} {question.sample}").shuffle(shown)
        with self._lock:
            mine = self.journal[key] if (key := self._key(rater, index)) in self.journal else None
        words = {True: "yes", False: "no", None: "unsure"}
        return {
            "index": index,
            "place": self.order(rater).index(index) + 1,
            "task": question.task,
            "prompt": question.prompt,
            "success": question.success,
            "answers": [
                {"key": key, "text": text, "mine": words[mine["answers"][key]] if mine else None} for key, text in shown
            ],
            "best": mine["best"] if mine else [],
        }

    def decide(self, rater: str, index: int, answers: Mapping[str, str], best: list[str]) -> None:
        """Record a judgement; a later one of the same rater takes its place. `best` holds several answers in a tie.

        Raises ValueError if it does not judge exactly the answers that are shown.
        """
        question = self.questions[index]
        if answers.keys() != question.answers.keys() or not set(answers.values()) <= VERDICTS.keys():
            raise ValueError(f"each answer must be judged once: {', '.join(VERDICTS)}")
        if not set(best) <= question.answers.keys():
            raise ValueError("the best answer must be one of those shown")
        with self._lock:
            self.journal.add([{
                "key": self._key(rater, index), "rater": rater, "item": question.item, "sample": question.sample,
                "answers": {key: VERDICTS[word] for key, word in answers.items()}, "best": sorted(set(best)),
                "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            }])  # fmt: skip

    def progress(self, rater: str) -> dict[str, Any]:
        """Counts, the seconds that remain at this rater's pace, and how far the raters agree."""
        with self._lock:
            rows = list(self.journal)
            mine = [row for row in rows if row["rater"] == rater]
            waiting = sum(self._key(rater, i) not in self.journal for i in range(len(self.questions)))
        return {
            "total": len(self.questions),
            "waiting": waiting,
            "raters": len({row["rater"] for row in rows}),
            "seconds left": seconds_left((row["at"] for row in mine), waiting),
            "agreement": agreement(rows),
        }


def read_questions(directory: Path) -> list[Question]:
    """The questions of a suite's results, each with the different answers to it.

    Raises UserError if `directory` is not that of a suite whose answers people can judge.
    """
    path = directory / RESULTS
    if not path.is_file():
        raise UserError(f"{directory}: holds no {RESULTS}; run `minigpt4 eval abilities` first, and give DIR/abilities")
    results = read_document(path)
    success = results.get("success") if isinstance(results, dict) else None
    if not isinstance(success, dict):
        raise UserError(f"{path}: says nowhere what counts as success; people judge the suite `abilities`")
    try:
        found = _questions(results["answers"], success)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not as minigpt4 writes it ({type(error).__name__}: {error})") from None
    if not found:
        raise UserError(f"{path}: holds no answers to judge")
    return found


def _questions(rows: Sequence[Mapping[str, Any]], success: Mapping[str, str]) -> list[Question]:
    found: dict[tuple[str, int], Question] = {}
    for row in rows:
        texts = [row[name] for name in ("item", "task", "image", "prompt", "answer")]
        if not all(isinstance(text, str) for text in [*texts, success.get(row["item"], "")]):
            raise TypeError("an answer holds something else than texts")
        item, task, image, prompt, answer = (text.encode("utf-8", "replace").decode() for text in texts)
        question = Question(item, row["sample"], task, Path(image), prompt, success.get(item, ""), {})
        answers = found.setdefault((item, row["sample"]), question).answers
        answers[answer_key(item, row["prompt"], row["answer"])] = answer
    return list(found.values())


def create_app(desk: Desk, host: str) -> FastAPI:
    """The page, to be served on `host`, and its few requests."""
    page = Labelling(desk, "Judge answers", ("minigpt4.evaluation", "rating.html"), "question", "rater", host)
    from fastapi import Body

    @page.app.get("/api/before")
    def before(rater: str, index: int) -> dict[str, Any]:
        name, order = person(rater), desk.order(person(rater))
        at = order.index(page.within(index)) if index >= 0 else len(order)
        return page.shown(name, order[max(0, at - 1)])

    @page.app.post("/api/questions/{index}")
    def decide(
        index: int,
        rater: str = Body(),
        answers: dict[str, str] = Body(),  # noqa: B008
        best: list[str] = Body(),  # noqa: B008
    ) -> dict[str, Any]:
        name = person(rater)
        desk.decide(name, page.within(index), answers, best)
        return page.next(name)

    return page.app


def lies_in(image: Path, folder: Path) -> bool:
    """Whether the image is a file in the folder or below it, wherever links lead."""
    try:
        return image.resolve().is_relative_to(folder.resolve()) and image.is_file()
    except (OSError, ValueError, RuntimeError):  # names that no file can have, links in a circle
        return False


def serve(directory: Path, images: Path | None, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `ready` is given its address.

    The results may be someone else's and name any file, so images are shown from the folder `images` alone, by default
    `directory`. Raises UserError if the port is taken.
    """
    questions, images = read_questions(directory), images or directory  # a wrong directory is known before all else
    if hidden := [question.image for question in questions if not lies_in(question.image, images)]:
        logger.warning(
            "%d images are not shown, for they do not lie in %s (the first is %r); give their folder with --images",
            len(hidden), images, str(hidden[0]),
        )  # fmt: skip
    with only_process(directory, "rating"), Journal(directory / RATINGS) as journal:
        serve_app(create_app(Desk(questions, journal, images), host), host, port, ready)
