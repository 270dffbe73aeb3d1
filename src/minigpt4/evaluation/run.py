"""Runs a suite: puts its items to every model, has the answers judged, and writes the results.

Every answer and verdict is journaled at once, under a key of all that it depends on (model, settings, prompt, image;
judge, prompt version, answer). So a stopped run continues where it stood, a model that is added later costs only its
own answers, and a question that changed is asked anew.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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


def evaluate(
    suite: Suite,
    models: Sequence[str],
    out: Path,
    *,
    settings: Answering | None = None,
    samples: int = 1,
    limit: int | None = None,
) -> dict[str, Any]:
    """Put `suite` to all `models`; write `out/SUITE/results.json`, `results.md` and plots; return the results.

    Args:
        models: As `open_answerer` takes them; `LABEL=MODEL` names one for the table.
        samples: Answers to every item by every model; more than one only makes sense with a temperature.
        limit: Only the first so many items of each task.
    Raises:
        UserError: a model, the data or the judge cannot be had; what is done by then is recorded.
    """
    settings = settings or Answering()
    if samples > 1 and settings.temperature == 0:
        raise UserError(f"samples={samples} with temperature 0 would be the same answer {samples} times")
    answerers = _open_all(models, settings)
    directory = out / suite.name
    directory.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (
        only_process(directory, "eval"),
        Journal(directory / "answers.jsonl") as answers,
        Journal(directory / "verdicts.jsonl") as verdicts,
    ):
        collection = suite.load(directory)
        items, faults = _first_of_each_task(collection.items, limit), list(collection.faults)
        for fault in faults:
            logger.warning("left out: %s", fault)
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
            "created": _now(),
            "seconds": round(time.perf_counter() - started, 1),
            "machine": machine(),
            "settings": {**settings.decoding(), "samples": samples, "limit": limit},
            "judge": suite.judge.identity,
            "models": [{"label": label, **answerer.identity} for label, answerer in answerers.items()],
            "items": len(items),
            **summary(suite, judged, faults, partial(decide, suite.judge, journal=verdicts, round=1)),
        }
        write_results(directory, results, suite.plots(results))
    return results


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _open_all(models: Sequence[str], settings: Answering) -> dict[str, Answerer]:
    """Every model by its label. All are looked for before any is asked."""
    found: dict[str, Answerer] = {}
    for name in models:
        label, equals, model = name.partition("=")
        if not equals or not label or "/" in label or ":" in label:  # a path or URL may hold "=" too
            label, model = without_password(name), name
        if label in found:
            raise UserError(f"{label}: is named twice; give each model once, or LABEL=MODEL with labels of their own")
        found[label] = open_answerer(model, settings)
    return found


def _first_of_each_task(items: Sequence[Item], limit: int | None) -> list[Item]:
    seen: Counter[str] = Counter()
    kept = []
    for item in items:
        seen[item.task] += 1
        if limit is None or seen[item.task] <= limit:
            kept.append(item)
    return kept


def ask(
    answerer: Answerer, label: str, items: Sequence[Item], journal: Journal, samples: int = 1
) -> tuple[list[Response], list[Fault]]:
    """The answers to all items, those in the journal and the new ones; and which items have none, and why."""
    content = cache(_content)  # each image is read once
    keys = {(s, item.id): _key(answerer, item, s, content(item.image)) for s in range(samples) for item in items}
    used = {**answerer.identity, **answerer.settings.decoding()}
    faults: list[Fault] = []
    found: list[Response] = []
    with progress_bar() as bar:
        done = sum(key in journal for key in keys.values())
        task = bar.add_task(label, total=len(keys), completed=done, note="")
        for sample in range(samples):
            todo = [item for item in items if keys[sample, item.id] not in journal]

            def record(index: int, reply: ModelReply, todo: list[Item] = todo, sample: int = sample) -> None:
                item = todo[index]
                bar.advance(task)
                if reply.fault is not None:
                    kind = UNREADABLE if not _readable(item) else UNANSWERED
                    faults.append(Fault(kind, f"{label}, {item.id}", reply.fault))
                    logger.warning("left out: %s", faults[-1])
                    return
                journal.add([{
                    "key": keys[sample, item.id], "model": label, "item": item.id, "sample": sample,
                    "prompt": item.prompt, "image": str(item.image), "answer": reply.text, "ended": reply.ended,
                    "scores": reply.scores, "lengths": reply.lengths, "at": _now(),
                    "settings": {**used, "max_new_tokens": item.max_new_tokens},
                }])  # fmt: skip

            if todo:
                answerer.answer_each(todo, record, sample=sample)
            for item in items:
                if keys[sample, item.id] in journal:
                    row = journal[keys[sample, item.id]]
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
    return digest([answerer.identity, answerer.settings.decoding(), asked, sample])


def _readable(item: Item) -> bool:
    try:
        open_image(item.image)
    except UserError:
        return False
    return True


def judge_all(suite: Suite, answers: Sequence[Response], journal: Journal) -> list[Judged]:
    """Every answer with its verdicts: those that are in the journal, and the new ones, which are added to it."""
    cases = [suite.cases(answer) for answer in answers]
    verdicts = iter(decide(suite.judge, [case for group in cases for case in group], journal))
    return [
        Judged(answer, group, [next(verdicts) for _ in group]) for answer, group in zip(answers, cases, strict=True)
    ]


def decide(judge: Judge, cases: Sequence[Case], journal: Journal, round: int = 0) -> list[Verdict]:
    """The judge's verdicts on all cases. What is in the journal is not asked again; another `round` is.

    Equal cases (the same question, answer and so on) are asked once.
    """
    if not judge.kept:
        found = [Verdict(None)] * len(cases)
        judge.decide(cases, found.__setitem__)
        return found
    keys = [judge.key(case, round) for case in cases]
    todo = list({key: case for key, case in zip(keys, cases, strict=True) if key not in journal}.items())
    with progress_bar() as bar:
        task = bar.add_task("judge", total=len(todo), note="")

        def record(index: int, verdict: Verdict) -> None:
            key, case = todo[index]
            journal.add([{
                "key": key, "item": case.item.id, "model": case.answer.model, "part": case.part, **verdict.to_json(),
                **judge.identity,
            }])  # fmt: skip
            bar.advance(task)

        judge.decide([case for _, case in todo], record)
    return [Verdict.from_json(journal[key]) if key in journal else Verdict(None, "not judged") for key in keys]


def summary(
    suite: Suite, judged: Mapping[str, Sequence[Judged]], faults: Sequence[Fault], again: Again
) -> dict[str, Any]:
    """Rows, faults and every answer with its verdicts, as plain JSON."""
    figures = {label: suite.summarise(group) for label, group in judged.items()}
    every = [one for group in judged.values() for one in group]
    return {
        "rows": [
            vars(row) | {"figures": {label: f[row.name].to_json() for label, f in figures.items() if row.name in f}}
            for row in suite.rows()
        ],
        "notes": list(suite.notes),
        "left_out": dict(Counter(fault.kind for fault in faults)),
        "undecided": sum(verdict.success is None for one in every for verdict in one.verdicts),
        "faults": [vars(fault) for fault in faults],
        **suite.more(judged, again),
        "answers": [_answer_row(one) for one in every],
    }


def _answer_row(judged: Judged) -> dict[str, Any]:
    answer, item = judged.answer, judged.item
    verdicts = zip(judged.cases, judged.verdicts, strict=True)
    return {
        "model": answer.model, "item": item.id, "sample": answer.sample, "task": item.task, "image": str(item.image),
        "prompt": item.prompt, "options": list(item.options), "answer": answer.text, "ended": answer.ended,
        "scores": list(answer.scores), "verdicts": [{"part": c.part, **verdict.to_json()} for c, verdict in verdicts],
    }  # fmt: skip
