"""The advanced abilities (paper, section 4.2): tasks of a YAML with 25 images each, and how many answers succeed."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Case, Item, Items, Response, Verdict, field_of, well_formed
from minigpt4.evaluation.judges import Judge
from minigpt4.evaluation.rating import PeopleJudge
from minigpt4.evaluation.results import Journal
from minigpt4.evaluation.suite import Suite, Table, TableRow, default_data
from minigpt4.files import expand
from minigpt4.statistics import Rate, agreement

OVERALL, PAPERS = "all", "paper"  # rows over all tasks, and over those for which the paper gives figures


def check_truth(case: Case) -> Verdict:
    """The verdict of the default data on an answer about one of its images."""
    return Verdict.unless(default_data().what_is_wrong(case.item.truth["pocket"], case.item.prompt, case.answer.text))


TRUTH = Judge({"judge": "ground truth"}, check_truth)


@dataclass
class Abilities(Suite):
    """The tasks of a YAML file, or those of the default data with `count` images each. Only these have `TRUTH`."""

    data: Path | None = None
    judge: Judge = TRUTH
    count: int = 25
    name = "abilities"
    title = "Advanced abilities: answers that succeed"

    def load(self, directory: Path) -> Items:
        path = self.data
        if path is None:
            path = default_data().tasks(directory, self.count)
            self.notes = ("Pocket images from held-out seeds; docs/evaluation.md describes each task.",)
        found, self._rows = read_tasks(path)
        if isinstance(self.judge, PeopleJudge) and not self.judge.ratings:
            self.notes += (f"Nobody has judged yet: `minigpt4 eval rate {directory}`, then this command again.",)
        unknown = next((item.id for item in found.items if not item.truth["pocket"]), None)
        if self.judge is TRUTH and unknown:
            judge = "judge by people (--judge people) or by an LLM (--judge openai:URL#MODEL)"
            raise UserError(f"{path}: nothing says what is true of {unknown!r} (only pocket images do); {judge}")
        return found.require(path)

    def cases(self, answer: Response) -> Sequence[Case]:
        known = {key: answer.item.truth[key] for key in ("success", "facts")}
        return [Case(answer, {"question": answer.item.prompt, "answer": answer.text, **known})]

    def table(self, responses: Sequence[Response]) -> Table:
        outcomes: dict[str, list[bool | None]] = {}
        papers = {row.name for row in self._rows if row.paper}
        for one in responses:
            for row in (one.item.task, OVERALL, *([PAPERS] if one.item.task in papers else [])):
                outcomes.setdefault(row, []).append(one.verdicts[0].success)
        return [(row, Rate.from_outcomes(outcomes.get(row.name, []))) for row in self._rows]

    def more(self, responses: Sequence[Response], verdicts: Journal) -> Mapping[str, Any]:
        """What counts as success, for the rating page; what people preferred; the judge's agreement with the truth."""
        extra: dict[str, Any] = {"success": {one.item.id: one.item.truth["success"] for one in responses}}
        if isinstance(self.judge, PeopleJudge):
            extra |= self.judge.report(responses)
        if self.judge is not TRUTH:
            known = [one for one in responses if one.item.truth["pocket"]]
            pairs = ((one.verdicts[0].success, check_truth(one.cases[0]).success) for one in known)
            found = agreement("The judge", "the ground truth", pairs)
            if found["cases"]:
                extra.setdefault("agreement", []).append(found)
        return extra


def read_tasks(path: Path) -> tuple[Items, list[TableRow]]:
    """The items and rows of a YAML of tasks. Raises UserError if the file has no `tasks`."""
    document = read_document(path)
    tasks = document.get("tasks") if isinstance(document, dict) else None
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{path}: has no 'tasks'; see docs/evaluation.md for the format")
    found, rows = Items(), []
    named = ((f"{path}: task {name!r}", (str(name), task)) for name, task in tasks.items())
    for where, row, task in well_formed(named, _task, found.faults):
        rows.append(row)
        entries = ((f"{where}, item {number}", entry) for number, entry in enumerate(task["items"], start=1))
        for place, item in well_formed(entries, partial(_item, row.name, task, path.parent), found.faults):
            found.add(item, place)
    compared = [row.paper for row in rows if row.paper]
    if compared and len(compared) < len(rows):
        rows.append(TableRow(PAPERS, "the paper's tasks", "of", _added(compared)))
        compared = []
    rows.append(TableRow(OVERALL, "all tasks", "of", _added(compared)))
    return found, rows


def _task(where: str, named: tuple[str, Any]) -> tuple[str, TableRow, dict[str, Any]]:
    """(where, its row, the task itself), whose fields are right."""
    name, task = named
    label, paper = field_of(task, "label", str, name), field_of(task, "paper", dict, {})
    field_of(task, "prompt", str, None)
    field_of(task, "success", str)
    field_of(task, "max_new_tokens", int, None)
    field_of(task, "items", list)
    return where, TableRow(name, label, "of", {str(k): str(v) for k, v in paper.items()}), task


def _item(name: str, task: Mapping[str, Any], folder: Path, where: str, entry: Any) -> tuple[str, Item]:
    """(where, the item) of an entry in a task's list."""
    if isinstance(entry, str):
        entry = {"image": entry}
    image = field_of(entry, "image", str)
    prompt = field_of(entry, "prompt", str, task.get("prompt"))
    if not prompt:
        raise ValueError("has no 'prompt', and neither has its task")
    truth = {
        "success": field_of(entry, "success", str, task["success"]),
        "facts": field_of(entry, "facts", str, ""),
        "pocket": field_of(entry, "pocket", dict, {}),
    }
    identity = str(field_of(entry, "id", (str, int), f"{name}-{Path(image).stem}"))
    limit = task.get("max_new_tokens") or 300
    return where, Item(identity, folder / expand(image, variables=False), prompt, name, truth, (), limit)


def _added(figures: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The sums of the paper's figures, for each model whose figures are all of the form "18/25"."""
    sums = {}
    for name in dict.fromkeys(name for figure in figures for name in figure):
        parts = [re.fullmatch(r"(\d+)/(\d+)", figure.get(name, "")) for figure in figures]
        if all(parts):
            sums[name] = "/".join(str(sum(int(part[i]) for part in parts if part)) for i in (1, 2))
    return sums
