"""How often answers fail as language: detailed descriptions and poems, as the paper counts them (section 4.3).

The rules are those of `text_failures.py`; nothing here asks whether an answer is true, so any folder of
pictures will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt4.evaluation.items import Collection, Item
from minigpt4.evaluation.judges import Case, Response, RuleJudge, Verdict
from minigpt4.evaluation.suite import Judged, Suite, TableRow, default_data
from minigpt4.images import find_images
from minigpt4.statistics import Estimate, Rate
from minigpt4.text_failures import KINDS, RULES_VERSION, failure

#: What is asked, as in the paper's experiment, with its failures of 100 after stage 1 and after stage 2.
TASKS = {
    "description": ("Describe this image in detail.", "detailed descriptions", {"stage 1": "35", "stage 2": "2"}),
    "poem": ("Can you write a beautiful poem about this image?", "poems", {"stage 1": "32", "stage 2": "1"}),
}


class Reliability(Suite):
    """Failures of descriptions and poems about the pictures of a folder, or about `count` held-out pocket pictures."""

    name = "reliability"
    title = "Answers that fail as language"

    def __init__(self, data: Path | None = None, *, count: int = 100, max_new_tokens: int = 300) -> None:
        self.data, self.count, self.max_new_tokens = data, count, max_new_tokens
        self.judge = RuleJudge(f"rules, version {RULES_VERSION}", _judge)

    def load(self, directory: Path) -> Collection:
        found = Collection()
        if self.data is None:
            pictures = default_data().pictures(directory, self.count)
        else:
            pictures = find_images(self.data)[: self.count]
        for task, (prompt, _, _) in TASKS.items():
            asked = default_data().wording[task] if self.data is None else prompt
            for path in pictures:
                name = path.name if self.data is None else path.relative_to(self.data).as_posix()
                found.add(Item(f"{task}-{name}", path, asked, task, {}, (), self.max_new_tokens), str(path))
        return found.require(self.data or "the pocket world")

    def rows(self) -> Sequence[TableRow]:
        rows = []
        for task, (_, label, paper) in TASKS.items():
            rows.append(TableRow(task, "fail", "%", paper, label, True))
            rows += [TableRow(f"{task} {kind}", kind, "%", {}, label, True) for kind in KINDS]
        return rows

    def cases(self, answer: Response) -> Sequence[Case]:
        return [Case(answer, {"answer": answer.text})]

    def summarise(self, judged: Sequence[Judged]) -> Mapping[str, Rate | Estimate]:
        figures = {}
        for task in TASKS:
            verdicts = [one.verdicts[0] for one in judged if one.item.task == task]
            if not verdicts:
                continue
            figures[task] = Rate.from_outcomes([not verdict.success for verdict in verdicts])
            for kind in KINDS:
                figures[f"{task} {kind}"] = Rate.from_outcomes([verdict.reason == kind for verdict in verdicts])
        return figures


def _judge(case: Case) -> Verdict:
    wrong = failure(case.answer.text, case.answer.ended)
    return Verdict(wrong is None, wrong or "")
