"""The advanced abilities (paper, section 4.2): for each task 25 images, and how many answers succeed.

A YAML names images, prompts and what counts as success. Answers are judged by the truth (which pocket images have), by
people, or by an LLM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Item, Items, field_of
from minigpt4.evaluation.judges import Case, Judge, PeopleJudge, Response, RuleJudge, Verdict
from minigpt4.evaluation.suite import Again, Judged, Suite, TableRow, default_data
from minigpt4.files import expand
from minigpt4.statistics import Estimate, Rate, agreement

#: Rows over all tasks, and over those for which the paper gives figures.
OVERALL, PAPERS = "all", "paper"


class Abilities(Suite):
    """The tasks of a YAML file, or those of the default data with `count` images each.

    The default `judge` is the ground truth, which only pocket images have.
    """

    name = "abilities"
    title = "Advanced abilities: answers that succeed"

    def __init__(self, data: Path | None = None, *, judge: Judge | None = None, count: int = 25) -> None:
        self.data, self.count = data, count
        self.judge = judge or RuleJudge("ground truth", check_truth)
        self._rows: list[TableRow] = []

    def load(self, directory: Path) -> Items:
        path = self.data
        if path is None:
            path = default_data().tasks(directory, self.count)
            self.notes = ("Pocket images from held-out seeds; docs/evaluation.md describes each task.",)
        found, self._rows = read_tasks(path)
        if isinstance(self.judge, PeopleJudge) and not self.judge.ratings:
            self.notes += (f"Nobody has judged yet: `minigpt4 eval rate {directory}`, then this command again.",)
        if isinstance(self.judge, RuleJudge) and (
            blind := next((i for i in found.items if not i.truth["pocket"]), None)
        ):
            raise UserError(
                f"{path}: nothing says what is true of {blind.id!r} (only pocket images say so); judge by people "
                "(--judge people) or by an LLM (--judge openai:URL#MODEL)"
            )
        return found.require(path)

    def rows(self) -> Sequence[TableRow]:
        return self._rows

    def cases(self, answer: Response) -> Sequence[Case]:
        truth = answer.item.truth
        fields = {key: truth[key] for key in ("success", "facts")}
        return [Case(answer, {"question": answer.item.prompt, "answer": answer.text, **fields})]

    def summarise(self, judged: Sequence[Judged]) -> Mapping[str, Rate | Estimate]:
        outcomes: dict[str, list[bool | None]] = {}
        for one in judged:
            outcomes.setdefault(one.item.task, []).append(one.verdicts[0].success)
        figures = {task: Rate.from_outcomes(found) for task, found in outcomes.items()}
        papers = {row.name for row in self._rows if row.paper}
        sums = {OVERALL: outcomes.keys(), PAPERS: outcomes.keys() & papers}
        return figures | {
            name: Rate.from_outcomes([outcome for task in sorted(tasks) for outcome in outcomes[task]])
            for name, tasks in sums.items()
        }

    def more(self, judged: Mapping[str, Sequence[Judged]], again: Again) -> Mapping[str, Any]:
        """What counts as success, for the rating page; what people preferred; the judge's agreement with the truth."""
        every = [one for group in judged.values() for one in group]
        extra: dict[str, Any] = {"success": {one.item.id: one.item.truth["success"] for one in every}}
        if isinstance(self.judge, PeopleJudge):
            extra |= self.judge.report([one.answer for one in every])
        if not isinstance(self.judge, RuleJudge):
            known = [one for one in every if one.item.truth["pocket"]]
            pairs = ((one.verdicts[0].success, check_truth(one.cases[0]).success) for one in known)
            found = agreement("The judge", "the ground truth", pairs)
            if found["cases"]:
                extra.setdefault("agreement", []).append(found)
        return extra


def read_tasks(path: Path) -> tuple[Items, list[TableRow]]:
    """The items and rows of a YAML of tasks; wrong records are left out and named.

    Raises UserError if the file has no `tasks`.
    """
    document = read_document(path)
    tasks = document.get("tasks") if isinstance(document, dict) else None
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{path}: has no 'tasks'; see docs/evaluation.md for the format")
    found, rows = Items(), []
    for name, task in tasks.items():
        where = f"{path}: task {name!r}"
        try:
            label = field_of(task, "label", str, str(name))
            paper = field_of(task, "paper", dict, {})
            prompt = field_of(task, "prompt", str, None)
            success = field_of(task, "success", str)
            limit = field_of(task, "max_new_tokens", int, 300)
            entries = field_of(task, "items", list)
        except ValueError as error:
            found.reject(where, str(error))
            continue
        rows.append(TableRow(str(name), label, "of", {str(k): str(v) for k, v in paper.items()}))
        for number, entry in enumerate(entries, start=1):
            place = f"{where}, item {number}"
            try:
                found.add(_item(str(name), entry, path.parent, prompt, success, limit), place)
            except ValueError as error:
                found.reject(place, str(error))
    compared = [row.paper for row in rows if row.paper]
    if compared and len(compared) < len(rows):
        rows.append(TableRow(PAPERS, "the paper's tasks", "of", _added(compared)))
        compared = []
    rows.append(TableRow(OVERALL, "all tasks", "of", _added(compared)))
    return found, rows


def _added(figures: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The sums of the paper's figures, for each model whose figures are all of the form "18/25"."""
    sums = {}
    for name in {name for figure in figures for name in figure}:
        parts = [re.fullmatch(r"(\d+)/(\d+)", figure.get(name, "")) for figure in figures]
        if all(parts):
            sums[name] = "/".join(str(sum(int(part[i]) for part in parts if part)) for i in (1, 2))
    return dict(sorted(sums.items(), key=lambda pair: list(figures[0]).index(pair[0])))


def _item(task: str, entry: Any, folder: Path, prompt: str | None, success: str, limit: int) -> Item:
    if isinstance(entry, str):
        entry = {"image": entry}
    image = field_of(entry, "image", str)
    asked = field_of(entry, "prompt", str, prompt)
    if not asked:
        raise ValueError("has no 'prompt', and neither has its task")
    truth = {
        "success": field_of(entry, "success", str, success),
        "facts": field_of(entry, "facts", str, ""),
        "pocket": field_of(entry, "pocket", dict, {}),
    }
    name = str(field_of(entry, "id", (str, int), f"{task}-{Path(image).stem}"))
    return Item(name, folder / expand(image, variables=False), asked, task, truth, (), limit)


def check_truth(case: Case) -> Verdict:
    """The verdict of the default data on an answer about one of its images."""
    wrong = default_data().what_is_wrong(case.item.truth["pocket"], case.item.prompt, case.answer.text)
    return Verdict(wrong is None, wrong or "")
