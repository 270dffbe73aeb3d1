"""Questions with short answers: A-OKVQA, GQA and VQA v2 from their published files, or pocket questions in the same.

A-OKVQA's choices are ranked by likelihood; direct answers are compared as each benchmark's official metric does. Models
that answer in whole sentences never match a word exactly, so what their sentence holds is counted too, in rows of its
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from minigpt4.errors import UserError
from minigpt4.evaluation.items import Collection, Item
from minigpt4.evaluation.judges import Answer, Case, Rule, Verdict
from minigpt4.evaluation.suite import Figure, Judged, Row, Suite, default_data
from minigpt4.evaluation.vqa_answers import aokvqa_accuracy, contained, gqa_accuracy, vqa_accuracy
from minigpt4.evaluation.vqa_files import AOKVQA, GQA, VQA, VisualQuestion, read_questions

#: How questions are put and choices worded where the files are given; the default data says how its own are.
SHORT, WORD = "{} Answer with one word or a short phrase.", "{}"
BENCHMARKS = (AOKVQA, GQA, VQA)
_PAPER = {AOKVQA: {"MiniGPT-4": "58.2"}, GQA: {"MiniGPT-4": "32.2"}}
CHOICE, DIRECT = "multiple choice", "direct answer"


class Vqa(Suite):
    """Accuracy on question files, or on the questions about `count` held-out pocket pictures.

    Args:
        data: Question files, and for VQA v2 its annotation file; pocket questions without any.
        images: The directory of their pictures, by the names that COCO and GQA give them.
        prompt: How a question is put where the model writes; `{}` is the question.
        choice: How a choice is worded as an answer whose likelihood is taken; `{}` is the choice.
    """

    name = "vqa"
    title = "Questions with short answers"

    def __init__(
        self,
        data: Sequence[Path] = (),
        images: Path | None = None,
        *,
        count: int = 200,
        prompt: str | None = None,
        choice: str | None = None,
        max_new_tokens: int = 40,
    ) -> None:
        if data and images is None:
            raise UserError(f"{data[0]}: asks about pictures, so give their directory too (--images)")
        self.prompt = prompt or (SHORT if data else default_data().wording["question"])
        self.choice = choice or (WORD if data else default_data().wording["choice"])
        for wording in (self.prompt, self.choice):
            if "{}" not in wording:
                raise UserError(f"{wording!r} has no {{}}, the place of the question or the choice")
        self.data, self.images, self.count, self.max_new_tokens = data, images, count, max_new_tokens
        self.judge = Rule("the benchmarks' official accuracies", _judge)
        self._kinds: dict[str, list[str]] = {}

    def load(self, directory: Path) -> Collection:
        paths, images = list(self.data), self.images
        if images is None:
            paths, images = default_data().questions(directory, self.count)
        found = Collection()
        questions, found.faults = read_questions(paths)
        for question in questions:
            self._add(found, question, images)
        return found.require(", ".join(map(str, paths)))

    def _add(self, found: Collection, question: VisualQuestion, images: Path) -> None:
        files = [images / name for name in question.images]
        file = next((path for path in files if path.is_file()), files[0])
        truth = {"benchmark": question.benchmark, "answers": list(question.answers), "kind": question.kind}
        kinds = self._kinds.setdefault(question.benchmark, [])
        name = f"{question.benchmark} {question.id}"
        if question.choices and question.correct is not None:
            options = tuple(self.choice.replace("{}", word) for word in question.choices)
            known = {**truth, "right": options[question.correct]}
            task = f"{question.benchmark} {CHOICE}"
            found.add(Item(f"{name} choice", file, question.question, task, known, options), question.where)
            if not file.is_file():
                return  # one fault is enough for a missing picture
        if question.answers:
            asked = self.prompt.replace("{}", question.question)
            task = f"{question.benchmark} {DIRECT}"
            found.add(Item(name, file, asked, task, truth, (), self.max_new_tokens), question.where)
            if question.kind and question.kind not in kinds:
                kinds.append(question.kind)

    def rows(self) -> Sequence[Row]:
        rows = []
        for name in self._kinds:
            if name == AOKVQA:
                rows += [
                    Row(f"{name} choice", "multiple choice, by likelihood", "%", _PAPER[name], name),
                    Row(f"{name} choice per token", "multiple choice, by likelihood per token", "%", {}, name),
                ]
            paper = _PAPER.get(name, {}) if name != AOKVQA else {}
            rows += [
                Row(f"{name} exact", "direct answer", "%", paper, name),
                Row(f"{name} contained", "direct answer inside the reply", "%", {}, name),
            ]
            rows += [Row(f"{name} {kind}", f"{kind}, inside the reply", "%", {}, name) for kind in self._kinds[name]]
        return rows

    def cases(self, answer: Answer) -> Sequence[Case]:
        return [Case(answer, {"answer": answer.text})]

    def summarise(self, judged: Sequence[Judged]) -> Mapping[str, Figure]:
        figures: dict[str, Figure] = {}
        for name in BENCHMARKS:
            chosen = [one.verdicts[0] for one in judged if one.item.task == f"{name} {CHOICE}"]
            direct = [one for one in judged if one.item.task == f"{name} {DIRECT}"]
            if chosen:
                figures[f"{name} choice"] = Figure.rate([verdict.success for verdict in chosen])
                scored = [v.detail["per token"] for v in chosen if v.detail["per token"] is not None]
                figures[f"{name} choice per token"] = Figure.rate(scored)
            if direct:
                figures[f"{name} exact"] = _mean(direct, "accuracy")
                figures[f"{name} contained"] = _mean(direct, "contained")
            for kind in self._kinds.get(name, ()):
                of_kind = [one for one in direct if one.item.truth["kind"] == kind]
                figures[f"{name} {kind}"] = _mean(of_kind, "contained")
        return figures


def _mean(judged: Sequence[Judged], key: str) -> Figure:
    return Figure.bootstrapped([float(one.verdicts[0].detail[key]) for one in judged], fmean)


def _judge(case: Case) -> Verdict:
    truth, reply = case.item.truth, case.answer.text
    if case.item.options:
        return _judge_choice(case)
    benchmark, answers = truth["benchmark"], truth["answers"]
    accuracy = _accuracy(benchmark, reply, answers)
    said = contained(reply, answers)
    inside = max([accuracy, *(_accuracy(benchmark, word, answers) for word in said)])
    reason = "" if inside else f"not among {', '.join(dict.fromkeys(answers))}"
    return Verdict(inside >= 0.5, reason, {"accuracy": accuracy, "contained": inside})


def _accuracy(benchmark: str, answer: str, answers: Sequence[str]) -> float:
    if benchmark == GQA:
        return gqa_accuracy(answer, answers[0])
    return aokvqa_accuracy(answer, answers) if benchmark == AOKVQA else vqa_accuracy(answer, answers)


def _judge_choice(case: Case) -> Verdict:
    """By the summed likelihood of each choice, and by its mean per token, which favours no short choice."""
    answer, right = case.answer, case.item.truth["right"]
    per_token = None
    if answer.scores:
        means = [score / max(1, length) for score, length in zip(answer.scores, answer.lengths, strict=True)]
        per_token = case.item.options[means.index(max(means))] == right
    chosen = answer.text in case.item.options
    success = answer.text == right if chosen else None
    return Verdict(success, "" if success else f"chose {answer.text!r}, not {right!r}", {"per token": per_token})
