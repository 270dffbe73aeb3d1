"""Judges of answers: the truth, people, or an LLM behind an endpoint. One interface for all.

A judge is handed cases and gives each a verdict. What it cannot decide is undecided, and never a success. People judge
on a page (`rating.py`): an answer succeeds if most of those who judged it say so; if nobody did, or they are split, it
is undecided.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

from minigpt4 import statistics
from minigpt4.documents import read_document
from minigpt4.endpoint import Unanswered, without_thought
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Item
from minigpt4.evaluation.journal import digest, read_rows
from minigpt4.images import image_url

#: How often an LLM is asked again when its answer is not in the form that was asked for.
ASK_AGAIN = 2


@dataclass(frozen=True)
class Response:
    """What one model said to one item: a line of the journal of answers."""

    item: Item
    model: str
    sample: int
    text: str
    ended: bool
    scores: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """One thing to decide about an answer. `fields` fill the judge's prompt; `part` tells several cases apart."""

    answer: Response
    fields: Mapping[str, str]
    part: str = ""

    @property
    def item(self) -> Item:
        return self.answer.item


@dataclass(frozen=True)
class Verdict:
    """`success` is None if it could not be decided. `detail` is plain JSON: numbers that a suite sums up."""

    success: bool | None
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Verdict:
        return cls(row["success"], row["reason"], row.get("detail", {}))


class Judge(ABC):
    """`identity` is plain JSON, for the record: the sort of judge, its model, its prompt and the prompt's version.

    What a judge with `kept` says is written down and not asked again; others cost nothing and are asked each time.
    """

    identity: dict[str, Any]
    kept = True

    def key(self, case: Case, round: int = 0) -> str:
        """The name of a verdict: all that it depends on. Another `round` asks the same thing once more."""
        return digest([self.identity, dict(case.fields), round])

    @abstractmethod
    def decide(self, cases: Sequence[Case], record: Callable[[int, Verdict], None]) -> None:
        """A verdict on every case, handed to `record` with the case's index as soon as it is there."""


class RuleJudge(Judge):
    """A judge that computes its verdict: from ground truth, or by rules about language."""

    kept = False

    def __init__(self, name: str, check: Callable[[Case], Verdict]) -> None:
        self.identity = {"judge": name}
        self._check = check

    def decide(self, cases: Sequence[Case], record: Callable[[int, Verdict], None]) -> None:
        for index, case in enumerate(cases):
            record(index, self._check(case))


@dataclass(frozen=True)
class JudgePrompt:
    """How an LLM is asked: a YAML file with a version, which every verdict records.

    `user` holds {fields}; `labels` are the words that it may answer, and what each means. With `picture` it is shown
    the picture too.
    """

    name: str
    version: int
    system: str
    user: str
    labels: Mapping[str, bool]
    picture: bool = False
    max_tokens: int = 200

    @classmethod
    def load(cls, name: str) -> JudgePrompt:
        """The prompt of this name that ships, or that of a YAML file. Raises UserError if it is none."""
        path = Path(name) if name.endswith((".yaml", ".yml")) else shipped(name)
        found = read_document(path)
        expected = {"version": int, "system": str, "user": str, "labels": dict}
        optional = {"picture": bool, "max_tokens": int}
        if not isinstance(found, dict):
            raise UserError(f"{path}: is no judge prompt; a mapping with {', '.join(expected)} was expected")
        for key, kind in expected.items():
            if not isinstance(found.get(key), kind):
                raise UserError(f"{path}: {key!r} is {found.get(key)!r}, a {kind.__name__} was expected")
        if unknown := found.keys() - expected.keys() - optional.keys():
            raise UserError(f"{path}: there is no key {min(unknown)!r}; the keys are {', '.join(expected | optional)}")
        labels = found["labels"]
        if len(labels) < 2 or not all(isinstance(k, str) and isinstance(v, bool) for k, v in labels.items()):
            raise UserError(f'{path}: labels are {labels!r}; words in quotes were expected, as in {{"yes": true}}')
        return cls(path.stem, **found)

    def messages(self, case: Case, complaint: bool = False) -> list[dict[str, Any]]:
        """The conversation that asks about a case; after a `complaint`, in plainer words."""
        words = " or ".join(f'"{label}"' for label in self.labels)
        # Answers are untrusted text: braces in them are no fields, and the system text says that nothing in them is
        # an order.
        text = re.sub(r"\{(\w+)\}", lambda m: case.fields.get(m[1], m[0]), self.user)
        if complaint:
            text += f"\n\nThe first line of your reply must be {words}, and nothing else on that line."
        content: Any = text
        if self.picture:
            shown = {"type": "image_url", "image_url": {"url": image_url(case.item.image)}}
            content = [shown, {"type": "text", "text": text}]
        return [{"role": "system", "content": self.system}, {"role": "user", "content": content}]

    def read(self, reply: str) -> tuple[bool | None, str]:
        """(what the reply decides, its reason): its first line must be one of the labels, and no more."""
        first, _, rest = (without_thought(reply) or "").strip().partition("\n")
        label = first.strip().strip("*_`\"'.,:!").strip().casefold()
        meaning = {key.casefold(): value for key, value in self.labels.items()}
        return meaning.get(label), rest.strip()[:500]


def shipped(name: str) -> Path:
    """The file of a judge prompt, or of its labelled cases, that ships with the package. Raises UserError for none."""
    folder = Path(str(resources.files("minigpt4.evaluation").joinpath("judge_prompts")))
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in folder.glob("*.yaml") if "." not in p.stem)
        raise UserError(f"there is no judge prompt {name!r}; give one of {', '.join(names)}, or a .yaml file")
    return path


class LLMJudge(Judge):
    """An LLM behind an OpenAI-compatible endpoint: cached, concurrent, asked again where it answers out of form.

    Args:
        endpoint: `openai:URL#MODEL`.
        temperature: 0 for the same answer each time, as far as the endpoint keeps to it.
    """

    def __init__(
        self, endpoint: str, prompt: JudgePrompt, *, concurrency: int = 8, timeout: float = 120.0,
        temperature: float = 0.0, attempts: int = 6,
    ) -> None:  # fmt: skip
        from minigpt4.evaluation.models import open_endpoint

        self.endpoint = open_endpoint(endpoint, timeout, attempts)
        self.prompt, self.concurrency, self.temperature = prompt, concurrency, temperature
        self.identity = {
            "judge": "llm", "model": self.endpoint.model, "url": self.endpoint.url, "prompt": prompt.name,
            "version": prompt.version, "text": digest([prompt.system, prompt.user, dict(prompt.labels)])[:12],
            "temperature": temperature,
        }  # fmt: skip

    def key(self, case: Case, round: int = 0) -> str:
        shown = str(case.item.image) if self.prompt.picture else ""
        return digest([self.identity, dict(case.fields), shown, round])

    def decide(self, cases: Sequence[Case], record: Callable[[int, Verdict], None]) -> None:
        """Raises UserError as `Endpoint.ask_each`; what the endpoint said is recorded."""

        def keep(index: int, found: Verdict | Unanswered) -> None:
            if isinstance(found, Verdict):
                record(index, found)
            elif found.refused:
                record(index, Verdict(None, str(found)))

        self.endpoint.ask_each(range(len(cases)), lambda index: self._ask(cases[index]), keep, self.concurrency)

    def _ask(self, case: Case) -> Verdict:
        said = []
        for attempt in range(1 + ASK_AGAIN):
            messages = self.prompt.messages(case, complaint=attempt > 0)
            try:
                reply = self.endpoint.ask(messages, max_tokens=self.prompt.max_tokens, temperature=self.temperature)
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


RATINGS = "ratings.jsonl"


def answer_key(item: str, prompt: str, answer: str) -> str:
    """The name of an answer on the rating page: equal answers to one question are one, whoever gave them."""
    return digest([item, prompt, answer])


def read_ratings(directory: Path) -> list[dict[str, Any]]:
    """The last word of every rater on every question: `rater`, `answers` (verdicts by answer), `best` (answers)."""
    path = directory / RATINGS
    return list({row["key"]: row for row in read_rows(path)}.values()) if path.exists() else []


def agreement(ratings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often every two raters who judged the same answers gave the same verdict, and Cohen's kappa."""
    votes: dict[str, dict[str, bool]] = {}
    for row in ratings:
        for answer, success in row["answers"].items():
            if success is not None:
                votes.setdefault(answer, {})[row["rater"]] = success
    return statistics.agreements(votes.values())


class PeopleJudge(Judge):
    """The verdicts of the raters in `directory/ratings.jsonl`."""

    kept = False

    def __init__(self, directory: Path) -> None:
        self.ratings = read_ratings(directory)
        self.identity = {"judge": "people", "raters": len({row["rater"] for row in self.ratings})}

    def decide(self, cases: Sequence[Case], record: Callable[[int, Verdict], None]) -> None:
        votes: dict[str, list[bool | None]] = {}
        for row in self.ratings:
            for answer, success in row["answers"].items():
                votes.setdefault(answer, []).append(success)
        for index, case in enumerate(cases):
            given = votes.get(answer_key(case.item.id, case.item.prompt, case.answer.text), [])
            yes, no = given.count(True), given.count(False)
            reason = f"{yes} say yes, {no} no, {given.count(None)} cannot tell" if given else "nobody has judged it"
            record(index, Verdict(None if yes == no else yes > no, reason, {"raters": len(given)}))

    def report(self, answers: Sequence[Response]) -> dict[str, Any]:
        """`agreement` of every two raters, and `preferences`: which of two models' answers they liked better."""
        keys: dict[tuple[str, int], dict[str, str]] = {}
        for answer in answers:
            key = answer_key(answer.item.id, answer.item.prompt, answer.text)
            keys.setdefault((answer.item.id, answer.sample), {})[answer.model] = key
        best = [(set(row["answers"]), set(row["best"])) for row in self.ratings if row["best"]]
        preferences = []
        for one, other in combinations(dict.fromkeys(answer.model for answer in answers), 2):
            wins = ties = losses = 0
            for group in keys.values():
                mine, theirs = group.get(one), group.get(other)
                for shown, chosen in best:
                    if mine in shown and theirs in shown:
                        wins += mine in chosen and theirs not in chosen
                        losses += theirs in chosen and mine not in chosen
                        ties += (mine in chosen) == (theirs in chosen)
            if wins + ties + losses:
                preferences.append({"models": [one, other], "wins": wins, "ties": ties, "losses": losses})
        return {"agreement": agreement(self.ratings), "preferences": preferences}
