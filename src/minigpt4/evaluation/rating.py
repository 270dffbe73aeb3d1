"""A web page on which people judge answers without knowing whose they are (paper, 4.2); `PeopleJudge` reads that."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Case, Response, Verdict
from minigpt4.evaluation.judges import Judge
from minigpt4.evaluation.results import RESULTS, Journal, digest, read_rows
from minigpt4.files import only_process
from minigpt4.labelling import LabellingDesk, labelling_app, serve_app
from minigpt4.statistics import agreements, now

logger = logging.getLogger(__name__)
RATINGS = "ratings.jsonl"
VERDICTS = {"yes": True, "no": False, "unsure": None}


def _answer_key(item: str, prompt: str, answer: str) -> str:
    """The name of an answer on the page: equal answers to one question are one, whoever gave them."""
    return digest([item, prompt, answer])


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
        super().__init__(len(questions))
        self.questions, self.journal, self.images = questions, journal, images

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
        return self._key(rater, index) not in self.journal.rows

    def look(self, rater: str, index: int) -> dict[str, Any]:
        question = self.questions[index]
        shown = sorted(question.answers.items())  # by digests, so that the order before the shuffle tells nothing
        random.Random(f"answers {rater} {question.item} {question.sample}").shuffle(shown)
        mine = self.journal.rows.get(self._key(rater, index), {"answers": {}, "best": []})
        words = {verdict: word for word, verdict in VERDICTS.items()}
        said = {key: words[verdict] for key, verdict in mine["answers"].items()}
        return {
            "index": index, "task": question.task, "prompt": question.prompt, "success": question.success,
            "answers": [{"key": key, "text": text, "mine": said.get(key)} for key, text in shown],
            "best": mine["best"],
        }  # fmt: skip

    def decide(self, rater: str, index: int, answers: Mapping[str, str], best: list[str]) -> None:
        """Record a judgement, in place of the rater's earlier one; in a tie, several answers are `best`."""
        question = self.questions[index]
        if answers.keys() != question.answers.keys() or not set(answers.values()) <= VERDICTS.keys():
            raise ValueError(f"each answer must be judged once: {', '.join(VERDICTS)}")
        if not set(best) <= question.answers.keys():
            raise ValueError("the best answer must be one of those shown")
        with self.lock:
            self.journal.add({
                "key": self._key(rater, index), "rater": rater, "item": question.item, "sample": question.sample,
                "answers": {key: VERDICTS[word] for key, word in answers.items()}, "best": sorted(set(best)),
                "at": now(),
            })  # fmt: skip

    def times(self, rater: str) -> list[str]:
        return [row["at"] for row in self.journal.rows.values() if row["rater"] == rater]

    def agreement(self) -> list[dict[str, Any]]:
        return _agreement(self.journal.rows.values())


def questions_to_rate(directory: Path) -> list[RatedQuestion]:
    """The questions of a suite's results. Raises UserError if people can judge no answers in `directory`."""
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
            texts = [row["item"], row["task"], row["image"], row["prompt"], success.get(row["item"], ""), row["answer"]]
            item, task, image, prompt, wanted, answer = (text.encode("utf-8", "replace").decode() for text in texts)
            question = RatedQuestion(item, row["sample"], task, Path(image), prompt, wanted, {})
            answers = found.setdefault((item, row["sample"]), question).answers
            answers[_answer_key(item, row["prompt"], row["answer"])] = answer
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
    """Serve the page, with images of the folder `images` alone, until Ctrl-C; errors as the functions that it calls."""
    questions, images = questions_to_rate(directory), images or directory
    if hidden := [question.image for question in questions if not lies_in(question.image, images)]:
        logger.warning(
            "%d images are not shown, because they are not in %s (the first is %r); give their folder with --images",
            len(hidden), images, str(hidden[0]),
        )  # fmt: skip
    with only_process(directory, "rating"), Journal(directory / RATINGS) as journal:
        serve_app(labelling_app(RatingDesk(questions, journal, images), host), host, port, ready)


def _agreement(ratings: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often every two raters who judged the same answers gave the same verdict, and Cohen's kappa."""
    votes: dict[str, dict[str, bool]] = {}
    for row in ratings:
        for answer, success in row["answers"].items():
            if success is not None:
                votes.setdefault(answer, {})[row["rater"]] = success
    return agreements(votes.values())


class PeopleJudge(Judge):
    """The majority of raters in `directory/ratings.jsonl`; undecided if nobody judged an answer, or they are split."""

    def __init__(self, directory: Path) -> None:
        path = directory / RATINGS
        self.ratings = list({row["key"]: row for row in read_rows(path)}.values()) if path.exists() else []
        super().__init__({"judge": "people", "raters": len({row["rater"] for row in self.ratings})}, self._majority)

    def _newest(self, answers: set[str | None]) -> list[dict[str, Any]]:
        """What each rater said last of these answers together: with another model beside them they are asked again."""
        return list({row["rater"]: row for row in self.ratings if answers <= row["answers"].keys()}.values())

    def _majority(self, case: Case) -> Verdict:
        key = _answer_key(case.item.id, case.item.prompt, case.answer.text)
        given = [row["answers"][key] for row in self._newest({key})]
        yes, no = given.count(True), given.count(False)
        reason = f"{yes} say yes, {no} no, {given.count(None)} cannot tell" if given else "nobody has judged it"
        return Verdict(None if yes == no else yes > no, reason, {"raters": len(given)})

    def report(self, answers: Sequence[Response]) -> dict[str, Any]:
        """`agreement` of every two raters, and `preferences`: which of two models' answers they liked better."""
        keys: dict[tuple[str, int], dict[str, str]] = {}
        for answer in answers:
            key = _answer_key(answer.item.id, answer.item.prompt, answer.text)
            keys.setdefault((answer.item.id, answer.sample), {})[answer.model] = key
        preferences = []
        for one, other in combinations(dict.fromkeys(answer.model for answer in answers), 2):
            preferred = Counter(
                (group[one] in row["best"]) - (group[other] in row["best"])
                for group in keys.values()
                for row in self._newest({group.get(one), group.get(other)})
                if row["best"]
            )
            if preferred:
                counts = {"wins": preferred[1], "ties": preferred[0], "losses": preferred[-1]}
                preferences.append({"models": [one, other], **counts})
        return {"agreement": _agreement(self.ratings), "preferences": preferences}
