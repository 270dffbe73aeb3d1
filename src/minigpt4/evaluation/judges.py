"""Judges of answers: rules, ground truth, or an LLM, itself measured on labelled cases; undecided is no success."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.documents import read_document
from minigpt4.endpoint import Unanswered, without_thought
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Case, Item, Response, Verdict, field_of
from minigpt4.evaluation.models import open_endpoint
from minigpt4.evaluation.results import Journal, digest, write_files
from minigpt4.files import only_process
from minigpt4.images import image_url
from minigpt4.progress import progress_bar
from minigpt4.statistics import Rate, cohen_kappa


class Judge:
    """Gives verdicts by `check`. `identity` is plain JSON, for the record: the sort of judge, its model, its prompt."""

    def __init__(self, identity: dict[str, Any], check: Callable[[Case], Verdict]) -> None:
        self.identity, self.check = identity, check

    def decide(self, cases: Sequence[Case], journal: Journal, round: int = 0) -> list[Verdict]:
        """The verdicts on all cases. Those that cost something are kept in `journal`; another `round` asks again."""
        return [self.check(case) for case in cases]


@dataclass(frozen=True)
class JudgePrompt:
    """How an LLM is asked: a YAML file with a version, which every verdict records."""

    name: str
    version: int
    system: str
    user: str  # holds {fields}
    labels: Mapping[str, bool]  # the words that it may answer, and what each means
    image: bool = False  # whether it sees the image
    max_tokens: int = 200

    @classmethod
    def load(cls, name: str) -> "JudgePrompt":
        """The prompt that ships under this name, or that of a YAML file. Raises UserError if there is none."""
        path = Path(name) if name.endswith((".yaml", ".yml")) else shipped(name)
        found = read_document(path)
        if isinstance(found, dict) and "picture" in found:  # its name in release 0.1
            found["image"] = found.pop("picture")
        kinds = {"version": int, "system": str, "user": str, "labels": dict, "image": bool, "max_tokens": int}
        try:
            for key, kind in kinds.items():
                field_of(found, key, kind, getattr(cls, key, ...))  # the class has the defaults
            if unknown := found.keys() - kinds.keys():
                raise ValueError(f"there is no key {min(unknown)!r}")
            labels = found["labels"]
            if len(labels) < 2 or not all(isinstance(k, str) and isinstance(v, bool) for k, v in labels.items()):
                raise ValueError(f'labels are {labels!r}; words in quotes were expected, as in {{"yes": true}}')
        except ValueError as error:
            raise UserError(f"{path}: is no judge prompt: {error}; its keys are {', '.join(kinds)}") from None
        return cls(path.stem, **found)

    def messages(self, case: Case, complaint: bool = False) -> list[dict[str, Any]]:
        """The conversation that asks about a case; after a `complaint`, in plainer words."""
        words = " or ".join(f'"{label}"' for label in self.labels)
        # Answers are untrusted text: braces in them are no fields.
        text = re.sub(r"\{(\w+)\}", lambda m: case.fields.get(m[1], m[0]), self.user)
        if complaint:
            text += f"\n\nThe first line of your reply must be {words}, and nothing else on that line."
        content: Any = text
        if self.image:
            shown = {"type": "image_url", "image_url": {"url": image_url(case.item.image)}}
            content = [shown, {"type": "text", "text": text}]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def read(self, reply: str) -> tuple[bool | None, str]:
        """(what the reply decides, its reason): its first line must be one of the labels, and no more."""
        first, _, rest = (without_thought(reply) or "").strip().partition("\n")
        label = first.strip().strip("*_`\"'.,:!").strip().casefold()
        return {key.casefold(): value for key, value in self.labels.items()}.get(label), rest.strip()[:500]


def shipped(name: str) -> Path:
    """The file of a judge prompt, or of its labelled cases, that ships with the package. Raises UserError for none."""
    folder = Path(__file__).with_name("judge_prompts")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in folder.glob("*.yaml") if "." not in p.stem)
        raise UserError(f"there is no judge prompt {name!r}; give one of {', '.join(names)}, or a .yaml file")
    return path


class LLMJudge(Judge):
    """An LLM behind an endpoint (`openai:URL#MODEL`): asked concurrently, and again if it answers out of form."""

    def __init__(self, endpoint: str, prompt: JudgePrompt, *, concurrency: int = 8, timeout: float = 120.0) -> None:
        self.endpoint = open_endpoint(endpoint, timeout)
        self.prompt, self.concurrency = prompt, concurrency
        identity = {
            "judge": "llm", "model": self.endpoint.model, "url": self.endpoint.url, "prompt": prompt.name,
            "version": prompt.version, "text": digest([prompt.system, prompt.user, dict(prompt.labels)])[:12],
            "temperature": 0.0,
        }  # fmt: skip
        super().__init__(identity, self._ask)

    def decide(self, cases: Sequence[Case], journal: Journal, round: int = 0) -> list[Verdict]:
        """As every judge; equal cases are asked once. Raises UserError as `Endpoint.ask_each`."""
        keys = []  # of all that a verdict depends on
        for case in cases:
            shown = str(case.item.image) if self.prompt.image else ""
            keys.append(digest([self.identity, dict(case.fields), shown, round]))
        todo = list({key: case for key, case in zip(keys, cases, strict=True) if key not in journal.rows}.items())
        with progress_bar() as bar:
            task = bar.add_task("judge", total=len(todo), note="")

            def record(asked: tuple[str, Case], found: Verdict | Unanswered) -> None:
                key, case = asked
                if isinstance(found, Unanswered):
                    if not found.refused:
                        return
                    found = Verdict(None, str(found))
                row = {"key": key, "item": case.item.id, "model": case.answer.model, "part": case.part}
                journal.add({**row, **vars(found), **self.identity})
                bar.advance(task)

            self.endpoint.ask_each(todo, lambda asked: self.check(asked[1]), record, self.concurrency)
        rows = [journal.rows.get(key, {"success": None, "reason": "not judged"}) for key in keys]
        return [Verdict(row["success"], row["reason"], row.get("detail", {})) for row in rows]

    def _ask(self, case: Case) -> Verdict:
        said = []
        for attempt in range(3):
            messages = self.prompt.messages(case, complaint=attempt > 0)
            try:
                reply = self.endpoint.ask(messages, max_tokens=self.prompt.max_tokens, temperature=0.0)
            except Unanswered as error:
                if not error.empty:
                    raise
                said.append("")
                break  # it was asked often enough
            success, reason = self.prompt.read(reply.text)
            if success is not None:
                return Verdict(success, reason, {"asked": attempt + 1})
            said.append(reply.text[:200])
        return Verdict(None, f"answered out of form {len(said)} times: {said[-1]!r}", {"asked": len(said)})


def read_labelled(path: Path) -> list[tuple[Case, bool]]:
    """Cases with right verdicts, from a YAML list of `fields`, `success` and perhaps an `image`. Raises UserError."""
    document = read_document(path)
    if not isinstance(document, list) or not document:
        raise UserError(f"{path}: holds no labelled cases; a list of mappings with 'fields' and 'success' was expected")
    found = []
    for number, record in enumerate(document, start=1):
        try:
            fields = field_of(record, "fields", dict)
            success = field_of(record, "success", bool)
            image = path.parent / field_of(record, "image", str, "")
        except ValueError as error:
            raise UserError(f"{path}: case {number}: {error}") from None
        item = Item(f"case-{number}", image, str(fields.get("question", "")))
        answer = Response(item, "labelled", 0, str(fields.get("answer", "")), True)
        found.append((Case(answer, {str(key): str(value) for key, value in fields.items()}), success))
    return found


def measure_judge(judge: LLMJudge, directory: Path, labelled: Path | None = None) -> list[str]:
    """Put the labelled cases to `judge` twice, write `directory/judge.json`, and say in lines what came of it."""
    path = labelled or shipped(f"{judge.prompt.name.removesuffix('-seen')}.labelled")
    cases, truth = zip(*read_labelled(path), strict=True)
    directory.mkdir(parents=True, exist_ok=True)
    with only_process(directory, "eval"), Journal(directory / "verdicts.jsonl") as journal:
        first, second = (judge.decide(cases, journal, round) for round in (0, 1))
    pairs = [(verdict.success, success) for verdict, success in zip(first, truth, strict=True)]
    decided = [(said, success) for said, success in pairs if said is not None]
    wrong = [number for number, (said, success) in enumerate(pairs, start=1) if said not in (None, success)]
    right = Rate.from_outcomes(said == success for said, success in pairs)
    lenient = Rate.from_outcomes(said is True for said, success in pairs if not success)
    strict = Rate.from_outcomes(said is not True for said, success in pairs if success)
    again = Rate.from_outcomes(a.success == b.success for a, b in zip(first, second, strict=True))
    kappa, undecided = cohen_kappa(decided), len(pairs) - len(decided)
    results = {
        "judge": judge.identity, "cases": len(cases), "right": right.share, "interval": right.interval, "kappa": kappa,
        "undecided": undecided, "accepts what fails": lenient.share, "refuses what succeeds": strict.share,
        "agrees with itself": again.share, "wrong cases": wrong,
        "verdicts": [{"truth": success, **vars(verdict)} for success, verdict in zip(truth, first, strict=True)],
    }  # fmt: skip
    write_files(directory, results, {}, "judge.json")
    return [
        f"right: {right} of {len(cases)} labelled cases" + ("" if kappa is None else f", kappa {kappa:.2f}"),
        f"accepts what fails: {lenient}",
        f"refuses what succeeds: {strict}",
        f"undecided: {undecided}",
        f"says the same when asked again: {again}",
        *([f"wrong on cases {', '.join(map(str, wrong))} of {path}"] if wrong else []),
        f"every verdict: {directory / 'judge.json'}",
    ]
