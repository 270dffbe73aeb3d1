"""Runs a suite: puts it to models, has answers judged, writes results; journals let a stopped run go on."""

import hashlib
import itertools
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from minigpt4.endpoint import Unanswered
from minigpt4.errors import UserError, without_password
from minigpt4.evaluation.items import UNANSWERED, UNREADABLE, Fault, Item, Response
from minigpt4.evaluation.models import Answerer, Answering, ModelReply, open_answerer
from minigpt4.evaluation.results import TABLE, Journal, bars, digest, machine, markdown, write_files
from minigpt4.evaluation.suite import Suite
from minigpt4.files import only_process
from minigpt4.images import read_image
from minigpt4.progress import progress_bar
from minigpt4.statistics import now

logger = logging.getLogger(__name__)


def evaluate(
    suite: Suite, models: Sequence[str], out: Path, *, settings: Answering | None = None, samples: int = 1,
    limit: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Put `suite` to all `models`; write `out/SUITE/results.json`, `results.md` and plots; return the results.

    `models` are as `open_answerer` takes them, or LABEL=MODEL. Each answers every item `samples` times, or the first
    `limit` items of each task. Raises UserError if a model, data or judge cannot be had; what is done is recorded.
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
        numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)  # of the items of each task
        items = [item for item in collection.items if limit is None or next(numbers[item.task]) < limit]
        faults = list(collection.faults)
        for fault in faults:
            logger.warning("left out: %s", fault)
        content = cache(_content)  # each image is read once
        responses: dict[str, list[Response]] = {label: [] for label in answerers}
        for label, answerer in answerers.items():
            try:
                for sample in range(samples):
                    responses[label] += _ask(answerer, label, sample, items, content, answers, faults)
            finally:
                answerer.close()
            _judge(suite, responses[label], verdicts)
        results = {
            "suite": suite.name, "title": suite.title, "created": now("seconds"),
            "seconds": round(time.perf_counter() - started, 1), "machine": machine(),
            "settings": {**settings.decoding(), "samples": samples, "limit": limit}, "judge": suite.judge.identity,
            "models": [{"label": label, **answerer.identity} for label, answerer in answerers.items()],
            "items": len(items), **_summary(suite, responses, faults, verdicts),
        }  # fmt: skip
        plots = {**bars(results), **suite.plots(results)}
        write_files(directory, results, {**plots, TABLE: markdown(results, plots)})
    return results


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


def _ask(
    answerer: Answerer, label: str, sample: int, items: Sequence[Item], content: Callable[[Path], str],
    journal: Journal, faults: list[Fault],
) -> list[Response]:  # fmt: skip
    """The answers to all items, those in the journal and the new ones; why an item has none goes to `faults`."""
    decoding = answerer.settings.decoding()
    keys = {}
    for item in items:
        asked = [item.prompt, content(item.image), list(item.options), item.max_new_tokens]
        keys[item.id] = digest([answerer.identity, decoding, asked, sample])
    todo = [item for item in items if keys[item.id] not in journal.rows]
    with progress_bar() as bar:
        task = bar.add_task(label, total=len(items), completed=len(items) - len(todo), note="")

        def record(item: Item, reply: ModelReply | UserError | Unanswered) -> None:
            bar.advance(task)
            if not isinstance(reply, ModelReply):
                kind = UNREADABLE if isinstance(reply, UserError) else UNANSWERED
                faults.append(Fault(kind, f"{label}, {item.id}", str(reply)))
                logger.warning("left out: %s", faults[-1])
                return
            journal.add({
                "key": keys[item.id], "model": label, "item": item.id, "sample": sample, "prompt": item.prompt,
                "image": str(item.image), "answer": reply.text, "ended": reply.ended, "scores": reply.scores,
                "lengths": reply.lengths, "at": now("seconds"),
                "settings": {**answerer.identity, **decoding, "max_new_tokens": item.max_new_tokens},
            })  # fmt: skip

        if todo:
            answerer.answer_each(todo, record, sample=sample)
    rows = [(item, journal.rows[keys[item.id]]) for item in items if keys[item.id] in journal.rows]
    return [
        Response(item, label, sample, row["answer"], row["ended"], row["scores"], row["lengths"]) for item, row in rows
    ]


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(read_image(path)).hexdigest()[:32]
    except UserError:
        return "unreadable"


def _judge(suite: Suite, responses: Sequence[Response], journal: Journal) -> None:
    for response in responses:
        response.cases = suite.cases(response)
    verdicts = iter(suite.judge.decide([case for response in responses for case in response.cases], journal))
    for response in responses:
        response.verdicts = list(itertools.islice(verdicts, len(response.cases)))


def _summary(
    suite: Suite, responses: Mapping[str, Sequence[Response]], faults: Sequence[Fault], verdicts: Journal
) -> dict[str, Any]:
    """Rows, faults and every answer with its verdicts, as plain JSON."""
    rows: dict[str, dict[str, Any]] = {}
    for label, given in responses.items():
        for row, figure in suite.table(given):
            rows.setdefault(row.name, vars(row) | {"figures": {}})["figures"][label] = figure.to_json()
    every = [response for given in responses.values() for response in given]
    answers = [{
        "model": one.model, "item": one.item.id, "sample": one.sample, "task": one.item.task,
        "image": str(one.item.image), "prompt": one.item.prompt, "options": list(one.item.options),
        "answer": one.text, "ended": one.ended, "scores": list(one.scores),
        "verdicts": [{"part": case.part, **vars(v)} for case, v in zip(one.cases, one.verdicts, strict=True)],
    } for one in every]  # fmt: skip
    return {
        "rows": list(rows.values()), "notes": list(suite.notes),
        "left_out": dict(Counter(fault.kind for fault in faults)),
        "undecided": sum(verdict.success is None for one in every for verdict in one.verdicts),
        "faults": [vars(fault) for fault in faults], **suite.more(every, verdicts), "answers": answers,
    }  # fmt: skip
