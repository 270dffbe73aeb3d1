"""Carries a suite out: puts its items to every model, has the answers judged, and writes the results.

Every answer and every verdict is in a journal the moment it is there, under a key of all that it depends on (model,
settings, prompt, picture; judge, prompt version, answer). So a run that was stopped in whatever way goes on where it
stood, a model that is added later costs its own answers only, and a question that was changed is asked anew.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any

from minigpt4.errors import UserError, without_password
from minigpt4.evaluation.items import UNANSWERED, UNREADABLE, Fault, Item
from minigpt4.evaluation.journal import Journal, digest
from minigpt4.evaluation.judges import Case, Judge, Response, Verdict
from minigpt4.evaluation.models import Answerer, Answering, ModelReply, open_answerer
from minigpt4.evaluation.results import machine, write_results
from minigpt4.evaluation.suite import Again, Judged, Suite
from minigpt4.files import only_process
from minigpt4.images import open_image, read_image
from minigpt4.progress import progress_bar

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a run found: where it is, and the results as results.json holds them."""

    directory: Path
    results: dict[str, Any]


def evaluate(
    suite: Suite,
    models: Sequence[str],
    out: Path,
    *,
    how: Answering | None = None,
    samples: int = 1,
    limit: int | None = None,
) -> Outcome:
    """Put `suite` to all `models` and write `out/SUITE/results.json`, `results.md` and plots.

    Args:
        models: As `open_answerer` takes them; `LABEL=MODEL` names one for the table.
        samples: Answers to every item by every model; more than one only makes sense with a temperature.
        limit: Only the first so many items of each task.
    Raises:
        UserError: a model, the data or the judge cannot be had; what is done by then is recorded.
    """
    how = how or Answering()
    if samples > 1 and how.temperature == 0:
        raise UserError(f"samples={samples} with temperature 0 would be the same answer {samples} times")
    answerers = _open_all(models, how)
    directory = out / suite.name
    directory.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (
        only_process(directory, "eval"),
        Journal(directory / "answers.jsonl") as answers,
        Journal(directory / "verdicts.jsonl") as verdicts,
    ):
        collection = suite.load(directory)
        items = _first_of_each_task(collection.items, limit)
        for fault in collection.faults:
            logger.warning("left out: %s", fault)
        faults = list(collection.faults)
        judged: dict[str, list[Judged]] = {}
        for label, answerer in answerers.items():
            try:
                given, missing = ask(answerer, label, items, answers, samples)
            finally:
                answerer.close()
            faults += missing
            judged[label] = judge_all(suite, given, verdicts)
        results = {
            "suite": suite.name,
            "title": suite.title,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 1),
            "machine": machine(),
            "settings": {**how.decoding(), "samples": samples, "limit": limit},
            "judge": suite.judge.identity,
            "models": [{"label": label, **answerer.identity} for label, answerer in answerers.items()],
            "items": len(items),
            **write_ready(suite, judged, faults, partial(decide, suite.judge, journal=verdicts, round=1)),
        }
        write_results(directory, results, suite.plots(results))
    return Outcome(directory, results)


def _open_all(models: Sequence[str], how: Answering) -> dict[str, Answerer]:
    """Every model by its label. All are looked for before any is asked."""
    found: dict[str, Answerer] = {}
    for name in models:
        label, equals, model = name.partition("=")
        if not equals or not label or "/" in label or ":" in label:  # a path or URL may hold "=" too
            label, model = without_password(name), name
        if label in found:
            raise UserError(f"{label}: is named twice; give each model once, or LABEL=MODEL with labels of their own")
        found[label] = open_answerer(model, how)
    return found


def _first_of_each_task(items: Sequence[Item], limit: int | None) -> list[Item]:
    if limit is None:
        return list(items)
    counts: dict[str, int] = {}
    kept = []
    for item in items:
        counts[item.task] = counts.get(item.task, 0) + 1
        if counts[item.task] <= limit:
            kept.append(item)
    return kept


def ask(
    answerer: Answerer, label: str, items: Sequence[Item], journal: Journal, samples: int = 1
) -> tuple[list[Response], list[Fault]]:
    """The answers to all items, those in the journal and the new ones; and which items have none, and why."""
    content = cache(_content)  # each image is read once
    faults: list[Fault] = []
    found: list[Response] = []
    with progress_bar() as bar:
        task = bar.add_task(label, total=len(items) * samples, note="")
        for sample in range(samples):
            keys = {item.id: _key(answerer, item, sample, content(item.image)) for item in items}
            todo = [item for item in items if keys[item.id] not in journal]
            bar.advance(task, len(items) - len(todo))

            def record(
                index: int,
                reply: ModelReply,
                todo: list[Item] = todo,
                keys: dict[str, str] = keys,
                sample: int = sample,
            ) -> None:
                item = todo[index]
                bar.advance(task)
                if reply.fault is not None:
                    kind = UNREADABLE if not _readable(item) else UNANSWERED
                    faults.append(Fault(kind, f"{label}, {item.id}", reply.fault))
                    logger.warning("left out: %s", faults[-1])
                    return
                journal.add([{
                    "key": keys[item.id], "model": label, "item": item.id, "sample": sample, "prompt": item.prompt,
                    "image": str(item.image), "answer": reply.text, "ended": reply.ended, "scores": reply.scores,
                    "lengths": reply.lengths, "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "settings": {**answerer.identity, **answerer.how.decoding(), "max_new_tokens": item.max_new_tokens},
                }])  # fmt: skip

            if todo:
                answerer.answer_each(todo, record, sample=sample)
            for item in items:
                if keys[item.id] in journal:
                    row = journal[keys[item.id]]
                    scores, lengths = tuple(row["scores"]), tuple(row["lengths"])
                    found.append(Response(item, label, sample, row["answer"], row["ended"], scores, lengths))
    return found, faults


def _content(path: Path) -> str:
    """The SHA-256 of an image file."""
    try:
        return hashlib.sha256(read_image(path)).hexdigest()[:32]
    except UserError:
        return "unreadable"


def _key(answerer: Answerer, item: Item, sample: int, content: str) -> str:
    asked = [item.prompt, content, list(item.options), item.max_new_tokens]
    return digest([answerer.identity, answerer.how.decoding(), asked, sample])


def _readable(item: Item) -> bool:
    try:
        open_image(item.image)
    except UserError:
        return False
    return True


def judge_all(suite: Suite, answers: Sequence[Response], journal: Journal) -> list[Judged]:
    """Every answer with its verdicts: those that are in the journal, and the new ones, which go there."""
    cases = [list(suite.cases(answer)) for answer in answers]
    verdicts = decide(suite.judge, [case for group in cases for case in group], journal)
    given = iter(verdicts)
    return [Judged(answer, tuple(next(given) for _ in group)) for answer, group in zip(answers, cases, strict=True)]


def decide(judge: Judge, cases: Sequence[Case], journal: Journal, round: int = 0) -> list[Verdict]:
    """The judge's verdicts on all cases. What is in the journal is not asked again; another `round` is.

    Equal cases (the same question, answer and so on) are asked once.
    """
    found: dict[str, Verdict] = {}
    todo: dict[str, Case] = {}
    keys = [judge.key(case, round) for case in cases]
    if not judge.kept:
        plain: list[Verdict] = [Verdict(None)] * len(cases)
        judge.decide(cases, plain.__setitem__)
        return plain
    for key, case in zip(keys, cases, strict=True):
        if key in journal:
            found[key] = Verdict.from_json(journal[key])
        else:
            todo.setdefault(key, case)
    waiting = list(todo)
    with progress_bar() as bar:
        task = bar.add_task("judge", total=len(waiting), note="")

        def record(index: int, verdict: Verdict) -> None:
            key, case = waiting[index], todo[waiting[index]]
            found[key] = verdict
            journal.add([{
                "key": key, "item": case.item.id, "model": case.answer.model, "part": case.part, **verdict.to_json(),
                **judge.identity,
            }])  # fmt: skip
            bar.advance(task)

        if waiting:
            judge.decide([todo[key] for key in waiting], record)
    return [found.get(key, Verdict(None, "not judged")) for key in keys]


def write_ready(
    suite: Suite, judged: Mapping[str, Sequence[Judged]], faults: Sequence[Fault], again: Again
) -> dict[str, Any]:
    """Rows, faults and every answer with its verdicts, as plain JSON."""
    figures = {label: suite.summarise(group) for label, group in judged.items()}
    rows = [
        {
            "name": row.name, "label": row.label, "unit": row.unit, "group": row.group, "paper": dict(row.paper),
            "lower_is_better": row.lower_is_better,
            "figures": {label: f[row.name].to_json() for label, f in figures.items() if row.name in f},
        }
        for row in suite.rows()
    ]  # fmt: skip
    counts: dict[str, int] = {}
    for fault in faults:
        counts[fault.kind] = counts.get(fault.kind, 0) + 1
    return {
        "rows": rows,
        "notes": list(suite.notes),
        "left_out": counts,
        "undecided": sum(v.success is None for group in judged.values() for j in group for v in j.verdicts),
        "faults": [{"kind": f.kind, "where": f.where, "reason": f.reason} for f in faults],
        **suite.more(judged, again),
        "answers": [
            _answer_row(j, case) for group in judged.values() for j in group for case in [suite.cases(j.answer)]
        ],
    }


def _answer_row(judged: Judged, cases: Sequence[Case]) -> dict[str, Any]:
    answer, item = judged.answer, judged.answer.item
    verdicts = [{"part": case.part, **verdict.to_json()} for case, verdict in zip(cases, judged.verdicts, strict=True)]
    return {
        "model": answer.model, "item": item.id, "sample": answer.sample, "task": item.task, "image": str(item.image),
        "prompt": item.prompt, "options": list(item.options), "answer": answer.text, "ended": answer.ended,
        "scores": list(answer.scores), "verdicts": verdicts,
    }  # fmt: skip
