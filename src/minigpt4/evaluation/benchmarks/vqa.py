"""Questions with short answers: A-OKVQA, GQA and VQA v2 from their published files, or default ones in the same form.

A-OKVQA's choices are ranked by likelihood; direct answers are scored by each benchmark's official metric, and answers
inside whole sentences in rows of their own. The files, recognized by their content:

* A-OKVQA (`aokvqa_v1p0_val.json`): a list of `{"question_id", "image_id", "question", "choices",
  "correct_choice_idx", "direct_answers", "difficult_direct_answer"}`.
* GQA (`testdev_balanced_questions.json`): `{question_id: {"imageId", "question", "answer", "types"}}`.
* VQA v2: `{"questions": [{"question_id", "image_id", "question"}]}` and a second file
  `{"annotations": [{"question_id", "answer_type", "answers": [{"answer"}, ...]}]}`.

The metrics are written from their published definitions: VQA v2's evaluation (Goyal et al. 2017;
visualqa.org/evaluation), A-OKVQA's (Schwenk et al. 2022) and GQA's (Hudson and Manning 2019).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.benchmarks.coco import rows_of
from minigpt4.evaluation.items import Case, Fault, Item, Items, Response, Verdict, field_of, text_of, well_formed
from minigpt4.evaluation.judges import Judge
from minigpt4.evaluation.suite import Suite, Table, TableRow, default_data, require_images
from minigpt4.statistics import Estimate, Rate
from minigpt4.text_failures import WORDS

AOKVQA, GQA, VQA = "A-OKVQA", "GQA", "VQA v2"
#: How questions are put and choices worded where the files are given; the default data says how its own are.
SHORT, WORD = "{} Answer with one word or a short phrase.", "{}"
CHOICE, DIRECT = "multiple choice", "direct answer"
PAPER = {"A-OKVQA choice": {"MiniGPT-4": "58.2"}, "GQA exact": {"MiniGPT-4": "32.2"}}


@dataclass(frozen=True)
class VisualQuestion:
    """One question of the record `where`. Its image has one of the file names `images`."""

    benchmark: str
    id: str
    where: str
    images: tuple[str, ...]
    question: str
    answers: tuple[str, ...]  # all that people gave, or the right one; none if direct answers are not scored
    choices: tuple[str, ...] = ()  # A-OKVQA's
    correct: int | None = None  # index of the right choice
    kind: str = ""  # GQA's structural type, or VQA v2's type of answer


def read_questions(paths: Sequence[Path]) -> tuple[list[VisualQuestion], list[Fault]]:
    """The questions of these files, and what is wrong with others. Raises UserError for a file of another form."""
    found, faults = list[VisualQuestion](), list[Fault]()
    halves: dict[str, list[tuple[Path, Any]]] = {"questions": [], "annotations": []}  # of VQA v2
    for path in paths:
        whole = read_document(path)
        half = next((key for key in halves if isinstance(whole, dict) and key in whole), None)
        if half is not None:
            halves[half].append((path, rows_of(path, whole, half, "question_id", faults)))
        elif isinstance(whole, list):
            found += well_formed(rows_of(path, whole, None, "question_id", faults), _aokvqa, faults)
        elif isinstance(whole, dict) and whole:
            found += well_formed(((f"{path}: {key!r}", (key, row)) for key, row in whole.items()), _gqa, faults)
        else:
            raise UserError(f"{path}: is no question file of {AOKVQA}, {GQA} or {VQA}")
    for half, other in ("questions", "annotations"), ("annotations", "questions"):
        if halves[half] and not halves[other]:
            raise UserError(f"{halves[half][0][0]}: {VQA} is scored with two files; give the one with the {other} too")
    annotations = dict(pair for _, rows in halves["annotations"] for pair in well_formed(rows, _people, faults))
    for _, rows in halves["questions"]:
        found += well_formed(rows, partial(_vqa, annotations), faults)
    return found, faults


def _aokvqa(where: str, row: Mapping[str, Any]) -> VisualQuestion:
    choices = _texts(row, "choices")
    correct = field_of(row, "correct_choice_idx", int)
    if not 0 <= correct < len(choices):
        raise ValueError(f"'correct_choice_idx' is {correct}, but there are {len(choices)} choices")
    # As the official evaluation has it: such a question is for multiple choice only.
    difficult = field_of(row, "difficult_direct_answer", bool, False)
    direct, question = () if difficult else _texts(row, "direct_answers"), text_of(row, "question")
    return VisualQuestion(AOKVQA, str(row["question_id"]), where, _files(row), question, direct, choices, correct)


def _gqa(where: str, keyed: tuple[str, Any]) -> VisualQuestion:
    key, row = keyed
    image, answer = field_of(row, "imageId", str), field_of(row, "answer", str)
    kind = field_of(field_of(row, "types", dict, {}), "structural", str, "")
    names = (f"{image}.jpg", f"{image}.png")
    return VisualQuestion(GQA, key, where, names, text_of(row, "question"), (answer,), kind=kind)


def _people(_: str, row: Mapping[str, Any]) -> tuple[Any, tuple[str, tuple[str, ...]]]:
    """(question id, (type of answer, what people answered)) of an annotation of VQA v2."""
    people = [field_of(one, "answer", str) for one in field_of(row, "answers", list)]
    if not people:
        raise ValueError("'answers' is empty")
    return row["question_id"], (field_of(row, "answer_type", str, ""), tuple(people))


def _vqa(annotations: Mapping[Any, tuple[str, tuple[str, ...]]], where: str, row: Mapping[str, Any]) -> VisualQuestion:
    key = row["question_id"]
    if key not in annotations:
        raise ValueError(f"there are no annotations for the question_id {key!r}")
    kind, people = annotations[key]
    return VisualQuestion(VQA, str(key), where, _files(row), text_of(row, "question"), people, kind=kind)


def _files(row: Mapping[str, Any]) -> tuple[str, ...]:
    """COCO's file names of an image: its twelve-digit id since 2017, with the split in front of it before."""
    image = field_of(row, "image_id", (int, str))
    digits = f"{image:012d}" if isinstance(image, int) else image
    return (f"{digits}.jpg", f"COCO_val2014_{digits}.jpg", f"COCO_train2014_{digits}.jpg", f"{digits}.png")


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = field_of(row, name, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name!r} is {values!r:.60}, a list of texts was expected")
    return tuple(values)


def _judge(case: Case) -> Verdict:
    answer, truth, options = case.answer, case.item.truth, case.item.options
    if not options:
        answers, measure = truth["answers"], ACCURACY[truth["benchmark"]]
        accuracy = measure(answer.text, answers)
        inside = max([accuracy, *(measure(word, answers) for word in contained(answer.text, answers))])
        reason = "" if inside else f"not among {', '.join(dict.fromkeys(answers))}"
        return Verdict(inside >= 0.5, reason, {"accuracy": accuracy, "contained": inside})
    right, per_token = truth["right"], None
    if answer.scores:  # the mean per token favours no short choice
        means = [score / max(1, length) for score, length in zip(answer.scores, answer.lengths, strict=True)]
        per_token = options[means.index(max(means))] == right
    success = answer.text == right if answer.text in options else None
    return Verdict(success, "" if success else f"chose {answer.text!r}, not {right!r}", {"per token": per_token})


@dataclass
class Vqa(Suite):
    """Accuracy on question files (with VQA v2's annotations), or on the questions about `count` default images."""

    data: Sequence[Path] = ()
    images: Path | None = None
    count: int = 200
    prompt: str | None = None  # words a question if the model writes, with {} in its place
    choice: str | None = None  # words a choice for its likelihood, likewise
    max_new_tokens: int = 40
    name = "vqa"
    title = "Questions with short answers"
    judge = Judge({"judge": "the benchmarks' official accuracies"}, _judge)

    def __post_init__(self) -> None:
        require_images(next(iter(self.data), None), self.images)
        wording = {"question": SHORT, "choice": WORD} if self.data else default_data().wording
        self._asked, self._chosen = self.prompt or wording["question"], self.choice or wording["choice"]
        for text in (self._asked, self._chosen):
            if "{}" not in text:
                raise UserError(f"{text!r} has no {{}}, the place of the question or the choice")
        self._kinds: dict[str, dict[str, None]] = {}  # of each benchmark's questions

    def load(self, directory: Path) -> Items:
        paths, images = self.data, self.images
        if images is None:
            paths, images = default_data().questions(directory, self.count)
        questions, faults = read_questions(paths)
        found = Items(faults=faults)
        for question in questions:
            self._add(found, question, images)
        return found.require(", ".join(map(str, paths)))

    def _add(self, found: Items, question: VisualQuestion, images: Path) -> None:
        files = [images / name for name in question.images]
        file = next((path for path in files if path.is_file()), files[0])
        truth = {"benchmark": question.benchmark, "answers": list(question.answers), "kind": question.kind}
        kinds = self._kinds.setdefault(question.benchmark, {})
        name = f"{question.benchmark} {question.id}"
        if question.correct is not None:
            options = tuple(self._chosen.replace("{}", word) for word in question.choices)
            known, task = {**truth, "right": options[question.correct]}, f"{question.benchmark} {CHOICE}"
            found.add(Item(f"{name} choice", file, question.question, task, known, options), question.where)
            if not file.is_file():
                return  # one fault is enough for a missing image
        if question.answers:
            asked, task = self._asked.replace("{}", question.question), f"{question.benchmark} {DIRECT}"
            found.add(Item(name, file, asked, task, truth, (), self.max_new_tokens), question.where)
            if question.kind:
                kinds[question.kind] = None

    def table(self, responses: Sequence[Response]) -> Table:
        for name, kinds in self._kinds.items():
            figures: dict[str, tuple[str, Rate | Estimate]] = {}
            if chosen := [one.verdicts[0] for one in responses if one.item.task == f"{name} {CHOICE}"]:
                scored = [v.detail["per token"] for v in chosen if v.detail["per token"] is not None]
                figures["choice"] = "multiple choice, by likelihood", Rate.from_outcomes(v.success for v in chosen)
                figures["choice per token"] = "multiple choice, by likelihood per token", Rate.from_outcomes(scored)
            direct = [one for one in responses if one.item.task == f"{name} {DIRECT}"]
            inside, mean = [one.verdicts[0].detail["contained"] for one in direct], Estimate.bootstrapped
            figures["exact"] = "direct answer", mean([one.verdicts[0].detail["accuracy"] for one in direct])
            figures["contained"] = "direct answer inside the reply", mean(inside)
            for kind in kinds:
                of_kind = [value for one, value in zip(direct, inside, strict=True) if one.item.truth["kind"] == kind]
                figures[kind] = f"{kind}, inside the reply", mean(of_kind)
            for key, (label, figure) in figures.items():
                yield TableRow(f"{name} {key}", label, "%", PAPER.get(f"{name} {key}", {}), name), figure


#: Number words become digits.
_DIGITS = enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
_NUMBERS = {"none": "0", **{word: str(number) for number, word in _DIGITS}}
_APOSTROPHE = {word.replace("'", ""): word for word in WORDS["contractions"]}


def normalize_answer(text: str) -> str:
    """An answer as the VQA metrics compare it: in lower case, without punctuation or articles, numbers as digits."""
    text = re.sub(r"(?<=\d),(?=\d)", "", text.lower().replace("\u2019", "'"))
    text = re.sub(r"[^\w\s':.]|_", " ", text)  # the apostrophe stays for possessives, the colon for times
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)  # the period stays inside a number
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_APOSTROPHE.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, human: Sequence[str]) -> float:
    """VQA v2's accuracy of one answer: min(matches / 3, 1), averaged over leaving out each of `human`, usually ten."""
    said = normalize_answer(answer)
    matches = [normalize_answer(one) == said for one in human]
    return sum(min((sum(matches) - left_out) / 3, 1.0) for left_out in matches) / len(matches)


def aokvqa_accuracy(answer: str, direct: Sequence[str]) -> float:
    """A-OKVQA's accuracy of a direct answer: min(matches / 3, 1) among the ten direct answers, none left out."""
    return min([normalize_answer(one) for one in direct].count(normalize_answer(answer)) / 3, 1.0)


def gqa_accuracy(answer: str, right: Sequence[str]) -> float:
    """GQA's accuracy: 1 if the answer is the only right one, else 0."""
    return float(normalize_answer(answer) == normalize_answer(right[0]))


ACCURACY = {AOKVQA: aokvqa_accuracy, GQA: gqa_accuracy, VQA: vqa_accuracy}


def contained(reply: str, candidates: Sequence[str]) -> list[str]:
    """Those of `candidates` that a reply says, as whole words and not inside longer ones, after normalising both."""
    said = normalize_answer(reply)
    found: dict[str, str] = {}
    for candidate in candidates:
        words = normalize_answer(candidate)
        place = r"\A" if words in ("yes", "no") else r"(?<!\S)"
        if words and re.search(rf"{place}{re.escape(words)}(?!\S)", said):
            found[words] = candidate
    return [
        candidate
        for words, candidate in found.items()
        if not any(words != other and f" {words} " in f" {other} " for other in found)
    ]
