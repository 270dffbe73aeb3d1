"""How often descriptions and poems fail as language, true or not, as the paper counts them (section 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.evaluation.items import Item, Items, Response, Verdict
from minigpt4.evaluation.judges import Judge
from minigpt4.evaluation.suite import Suite, Table, TableRow, default_data
from minigpt4.files import expand
from minigpt4.images import find_images
from minigpt4.statistics import Rate
from minigpt4.text_failures import KINDS, RULES_VERSION, failure

#: What is asked, as in the paper's experiment, with its failures of 100 after stage 1 and after stage 2.
TASKS = {
    "description": ("Describe this image in detail.", "detailed descriptions", {"stage 1": "35", "stage 2": "2"}),
    "poem": ("Can you write a beautiful poem about this image?", "poems", {"stage 1": "32", "stage 2": "1"}),
}
RULES = {"judge": f"rules, version {RULES_VERSION}"}


@dataclass
class Reliability(Suite):
    """Failures of descriptions and poems about the images of a folder, or about `count` of the default data."""

    data: Path | None = None
    count: int = 100
    max_new_tokens: int = 300
    name = "reliability"
    title = "Answers that fail as language"
    judge = Judge(RULES, lambda case: Verdict.unless(failure(case.answer.text, case.answer.ended)))

    def load(self, directory: Path) -> Items:
        found, prompts = Items(), {task: prompt for task, (prompt, _, _) in TASKS.items()}
        if self.data is None:
            prompts = {task: default_data().wording[task] for task in TASKS}
            images = {path.name: path for path in default_data().images(directory, self.count)}
        else:
            folder = expand(self.data)
            images = {path.relative_to(folder).as_posix(): path for path in find_images(folder)[: self.count]}
        for task, prompt in prompts.items():
            for name, path in images.items():
                found.add(Item(f"{task}-{name}", path, prompt, task, {}, (), self.max_new_tokens), str(path))
        return found.require(self.data or "the default data")

    def table(self, responses: Sequence[Response]) -> Table:
        for task, (_, label, paper) in TASKS.items():
            reasons = [one.verdicts[0].reason for one in responses if one.item.task == task]
            yield TableRow(task, "fail", "%", paper, label), Rate.from_outcomes(map(bool, reasons))
            for kind in KINDS:
                figure = Rate.from_outcomes(reason == kind for reason in reasons)
                yield TableRow(f"{task} {kind}", kind, "%", {}, label), figure
