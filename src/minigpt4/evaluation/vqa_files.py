"""The question files of A-OKVQA, GQA and VQA v2, as they are published; which one a file is, its content tells.

* A-OKVQA (`aokvqa_v1p0_val.json`): a list of `{"question_id", "image_id", "question", "choices",
  "correct_choice_idx", "direct_answers", "difficult_direct_answer"}`.
* GQA (`testdev_balanced_questions.json`): `{question_id: {"imageId", "question", "answer", "types"}}`.
* VQA v2: `{"questions": [{"question_id", "image_id", "question"}]}` and a second file
  `{"annotations": [{"question_id", "answer_type", "answers": [{"answer"}, ...]}]}`.

Knows nothing about models, prompts or scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.coco import rows_of
from minigpt4.evaluation.items import MALFORMED, Fault, field_of

AOKVQA, GQA, VQA = "A-OKVQA", "GQA", "VQA v2"


@dataclass(frozen=True)
class VisualQuestion:
    """One question. `where` names its record, `images` the file names that its picture may have.

    `answers` are all that people gave, or the one right answer; none if direct answers are not to be scored.
    `choices` and `correct` (an index) are A-OKVQA's; `kind` is GQA's structural type, or VQA v2's type of answer.
    """

    benchmark: str
    id: str
    where: str
    images: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    correct: int | None = None
    kind: str = ""


def read_questions(paths: Sequence[Path]) -> tuple[list[VisualQuestion], list[Fault]]:
    """The questions of all these files, and the records that are wrong or have the id of another.

    Raises:
        UserError: a file is missing or none of these formats, or VQA v2's questions and annotations are not both there.
    """
    found: list[VisualQuestion] = []
    faults: list[Fault] = []
    questions: list[tuple[Path, Any]] = []
    annotations: list[tuple[Path, Any]] = []
    for path in paths:
        whole = read_document(path)
        if isinstance(whole, list):
            found += _read(path, whole, faults)
        elif isinstance(whole, dict) and "questions" in whole:
            questions.append((path, whole))
        elif isinstance(whole, dict) and "annotations" in whole:
            annotations.append((path, whole))
        elif isinstance(whole, dict) and whole:
            found += _read_gqa(path, whole, faults)
        else:
            raise UserError(f"{path}: is no question file of {AOKVQA}, {GQA} or {VQA}")
    if questions or annotations:
        found += _read_vqa(questions, annotations, faults)
    return found, faults


def _kept(
    rows: Iterator[tuple[str, Any]], make: Callable[[str, Any], VisualQuestion], faults: list[Fault]
) -> Iterator[VisualQuestion]:
    for where, row in rows:
        try:
            yield make(where, row)
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))


def _read(path: Path, whole: list[Any], faults: list[Fault]) -> Iterator[VisualQuestion]:
    return _kept(rows_of(path, whole, None, "question_id", faults), _aokvqa, faults)


def _aokvqa(where: str, row: Mapping[str, Any]) -> VisualQuestion:
    choices = _texts(row, "choices")
    correct = field_of(row, "correct_choice_idx", int)
    if not 0 <= correct < len(choices):
        raise ValueError(f"'correct_choice_idx' is {correct}, but there are {len(choices)} choices")
    # As the official evaluation has it: such a question is for multiple choice only.
    difficult = field_of(row, "difficult_direct_answer", bool, False)
    direct = () if difficult else _texts(row, "direct_answers")
    images = coco_names(field_of(row, "image_id", (int, str)))
    return VisualQuestion(AOKVQA, str(row["question_id"]), where, images, _question(row), direct, choices, correct)


def _read_gqa(path: Path, whole: Mapping[str, Any], faults: list[Fault]) -> Iterator[VisualQuestion]:
    return _kept(((f"{path}: {key!r}", (key, row)) for key, row in whole.items()), _gqa, faults)


def _gqa(where: str, keyed: tuple[str, Any]) -> VisualQuestion:
    key, row = keyed
    image, answer = field_of(row, "imageId", str), field_of(row, "answer", str)
    kind = field_of(field_of(row, "types", dict, {}), "structural", str, "")
    names = (f"{image}.jpg", f"{image}.png")
    return VisualQuestion(GQA, key, where, names, _question(row), (answer,), kind=kind)


def _read_vqa(
    questions: list[tuple[Path, Any]], annotations: list[tuple[Path, Any]], faults: list[Fault]
) -> Iterator[VisualQuestion]:
    if not questions or not annotations:
        path, missing = (questions[0][0], "annotations") if questions else (annotations[0][0], "questions")
        raise UserError(f"{path}: {VQA} is scored with two files; give the one with the {missing} too")
    answers: dict[Any, tuple[str, tuple[str, ...]]] = {}
    for path, whole in annotations:
        for where, row in rows_of(path, whole, "annotations", "question_id", faults):
            try:
                people = [field_of(one, "answer", str) for one in field_of(row, "answers", list)]
                if not people:
                    raise ValueError("'answers' is empty")
                answers[row["question_id"]] = field_of(row, "answer_type", str, ""), tuple(people)
            except ValueError as error:
                faults.append(Fault(MALFORMED, where, str(error)))

    def make(where: str, row: Mapping[str, Any]) -> VisualQuestion:
        if row["question_id"] not in answers:
            raise ValueError(f"there are no annotations for the question_id {row['question_id']!r}")
        kind, people = answers[row["question_id"]]
        images = coco_names(field_of(row, "image_id", (int, str)))
        return VisualQuestion(VQA, str(row["question_id"]), where, images, _question(row), people, kind=kind)

    for path, whole in questions:
        yield from _kept(rows_of(path, whole, "questions", "question_id", faults), make, faults)


def coco_names(image: int | str) -> tuple[str, ...]:
    """How COCO calls the file of a picture: since 2017 by its twelve-digit id, before with the split before that."""
    digits = f"{image:012d}" if isinstance(image, int) else image
    return (f"{digits}.jpg", f"COCO_val2014_{digits}.jpg", f"COCO_train2014_{digits}.jpg", f"{digits}.png")


def _question(row: Mapping[str, Any]) -> str:
    text = field_of(row, "question", str).strip()
    if not text:
        raise ValueError("'question' is empty")
    return text


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = field_of(row, name, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name!r} is {values!r:.60}, a list of texts was expected")
    return tuple(values)
