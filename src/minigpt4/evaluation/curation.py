"""What curation is worth, measured where every picture's truth is known: the whole pipeline on pocket pictures.

The pictures that are curated come from seeds that no shipped weight was trained on; thresholds of grounding are set on
others, and the models that stage 2 makes of each dataset are measured on others again. The refiner is a server in a
process of its own that sees only the text. Nothing here is fitted to the pictures that it reports on.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from minigpt4.curation import dataset, filters
from minigpt4.curation.describe import Describing, add_folder, describe
from minigpt4.curation.grounding import ground
from minigpt4.curation.language import count_fragments
from minigpt4.curation.ledger import Item, Ledger
from minigpt4.curation.refine import Refining, refine
from minigpt4.curation.select import best_samples, select
from minigpt4.errors import UserError
from minigpt4.evaluation.abilities import check, statements
from minigpt4.evaluation.mender import MODEL as MENDER
from minigpt4.evaluation.reliability import failure
from minigpt4.evaluation.statistics import Rate
from minigpt4.files import new_directory, write_atomically
from minigpt4.generation.endpoint import Endpoint
from minigpt4.pocket import world
from minigpt4.pocket.conversation import Request
from minigpt4.pocket.language import INSTRUCTIONS
from minigpt4.progress import progress_bar

#: First seeds: of the pictures that are curated (stage 2's range, behind all that shipped weights were trained on), of
#: those that thresholds are set on, and of those that the trained models are measured on.
CURATED, DEVELOPMENT, MEASURED = (
    world.SEEDS["stage2"][0] + 500_000,
    world.SEEDS["development"][0] + 600_000,
    world.SEEDS["evaluation"][0] + 800_000,
)
PICTURE_SIZE = 192
#: The paper's 80 tokens are for an LLM and pictures of which one tells more: whole pocket descriptions have 15 to 60.
HOW = Describing(instruction=INSTRUCTIONS[0], min_tokens=30, max_new_tokens=120)
MODEL = "pocket-stage1"
#: Stage 2 on each of the datasets, at a rate above the recipe's 5e-4: at that one the pocket's projection hardly learns
#: how texts are written, so that not even broken ones harm it (docs/curation.md has both, on pictures of their own).
STAGE2 = ("learning_rate=2.0e-3", "final_learning_rate=2.0e-4")


@dataclass(frozen=True)
class Truth:
    """What is right and wrong with one text: true and false statements, and whether it is broken as language."""

    true: int
    false: int
    broken: bool

    @property
    def bad(self) -> bool:
        return self.broken or self.false > 0


def judge(picture: world.Picture, text: str, ended: bool = True) -> Truth:
    """A text against the truth of its picture. Broken: it repeats itself, breaks off, is empty, or holds fragments."""
    return Truth(*statements(picture, text), failure(text, ended) is not None or count_fragments(text) > 0)


def run_demo(
    out: Path,
    *,
    pictures: int = 480,
    questions: int = 150,
    model: str = MODEL,
    how: Describing = HOW,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> str:
    """Run the whole demo in `out`; returns the report, as written to report.md (and report.json).

    What an earlier run has left there is used. Args: `pictures` are curated and half as many set thresholds;
    `questions` are pictures that the trained models describe; `model` is the stage-1 model; `overrides` are `key=value`
    for stage 2's recipe. Raises UserError for what cannot be made.
    """
    console = console or Console()
    started = time.perf_counter()
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(name: str) -> Iterator[None]:
        console.print(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        yield
        seconds[name] = round(time.perf_counter() - start, 1)

    with phase("draw pictures"):
        draw_folder(out / "pictures", CURATED, pictures)
        draw_folder(out / "development", DEVELOPMENT, pictures // 2)
    report: dict[str, Any] = {"settings": {"pictures": pictures, "questions": questions, **vars(how)}}
    setting = "set the thresholds of grounding on pictures of their own"
    with phase(setting), Ledger(out / "development-set", create=True) as ledger, mender() as endpoint:
        _until_grounded(ledger, out / "development", model, how, endpoint)
        thresholds = choose_thresholds(ledger.items())
        sentence_threshold = choose_sentence_threshold(ledger.items())
        filters.write_thresholds(out / "rules.yaml", thresholds)
    report["thresholds"] = {name: thresholds[name] for name in ("ungrounded_sentence", "ungrounded_text")}
    datasets: dict[str, list[tuple[Item, str]]] = {}
    with Ledger(out / "set", create=True) as ledger, mender() as endpoint:
        with phase("describe, refine, ground"):
            _until_grounded(ledger, out / "pictures", model, how, endpoint)
        with phase("filter, select, export"):
            filters.filter_items(ledger, thresholds)
            items = ledger.items()
            # Of raw texts by their words alone, for grounding is measured of the texts that are kept.
            unrefined = [Item(item.picture, item.sample, item.raw) for item in items]
            report["filters"] = {
                "raw": measure_filters(unrefined, thresholds),
                "refined": measure_filters(items, thresholds),
            }
            report["grounding"] = measure_grounding(items, sentence_threshold)
            datasets["raw"] = [(item, str(item.raw.data["text"])) for item in items if item.raw.data["text"]]
            datasets["refined"] = [(item, item.text) for item in items if item.text]
            datasets["filtered"] = dataset.finished(ledger)
            _export(ledger, out / "data" / "filtered")
            best = max(12, pictures // 10)
            passing = [item for item in items if item.verdict is not None and not item.verdict.data["caught"]]
            select(ledger, min(best, len(best_samples(passing)[0])), model=model)
            datasets["selected"] = dataset.finished(ledger)
            _export(ledger, out / "data" / "selected")
            select(ledger, None)
    report["steps"] = {name: measure_texts(rows) for name, rows in datasets.items()}
    for name in ("raw", "refined"):
        _write_dataset(out / "data" / name, datasets[name])
    draw_folder(out / "measured", MEASURED, questions)
    report["models"] = {}
    for name, source in (("stage 1", model), *((name, None) for name in datasets)):
        with phase(f"{name}: train stage 2 and measure" if source is None else f"{name}: measure"):
            aligned = source or _train(out, name, model, overrides)
            report["models"][name] = measure_model(aligned, out / "measured", questions, how)
    seconds["in all"] = round(time.perf_counter() - started, 1)
    report["seconds"] = seconds
    text = markdown(report)
    write_atomically(out / "report.json", json.dumps(report, indent=1, default=str).encode())
    write_atomically(out / "report.md", text.encode())
    return text


def draw_folder(folder: Path, first: int, count: int) -> None:
    """Draw the pictures of these seeds as JPEG files named by their seeds, unless the folder is there."""
    from minigpt4.pocket.draw import draw

    if folder.is_dir():
        found = len(list(folder.glob("*.jpg")))
        if found != count:
            raise UserError(f"{folder}: holds {found} pictures of another run, not {count}; give another --out")
        return
    with new_directory(folder, marker=f"{first}.jpg") as directory, progress_bar() as bar:
        task = bar.add_task(f"draw {folder.name}", total=count, note="")
        for seed in range(first, first + count):
            draw(world.sample(seed), PICTURE_SIZE).save(directory / f"{seed}.jpg", quality=92)
            bar.advance(task)


@contextlib.contextmanager
def mender() -> Iterator[Endpoint]:
    """The rule-based refiner as a server in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "minigpt4.evaluation.mender"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise UserError("the demo's refiner did not start")
        try:
            yield Endpoint(url, MENDER)
        finally:
            process.stdin.close()


def _until_grounded(ledger: Ledger, folder: Path, model: str, how: Describing, endpoint: Endpoint) -> None:
    add_folder(ledger, folder)
    describe(ledger, model, how)
    refine(ledger, endpoint, Refining(min_similarity=0.5))
    ground(ledger, model, instruction=how.instruction)


def _picture(item: Item) -> world.Picture:
    return world.sample(int(item.picture.name))


def _export(ledger: Ledger, out: Path) -> None:
    if not out.exists():
        dataset.export(ledger, out, "cc_sbu_align")


def _write_dataset(out: Path, rows: Sequence[tuple[Item, str]]) -> None:
    """A `cc_sbu_align` of these texts, whatever the rules think of them."""
    if out.exists():
        return
    with new_directory(out, marker="filter_cap.json") as directory:
        (directory / "image").mkdir()
        annotations = []
        for item, text in rows:
            (directory / "image" / f"{item.picture.name}.jpg").write_bytes(item.picture.read())
            annotations.append({"image_id": item.picture.name, "caption": text})
        (directory / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))


# What is measured


def measure_texts(rows: Sequence[tuple[Item, str]]) -> dict[str, Any]:
    """False statements, broken texts, and texts with either, of a dataset."""
    truths = [
        judge(_picture(item), text, item.raw.data["ended"] if text == item.raw.data["text"] else True)
        for item, text in rows
    ]
    return {
        "texts": len(rows),
        "false statements": _plain(Rate(sum(t.false for t in truths), sum(t.true + t.false for t in truths))),
        "statements per text": round(sum(t.true + t.false for t in truths) / max(1, len(truths)), 2),
        "broken": _plain(Rate.of([t.broken for t in truths])),
        "broken or false": _plain(Rate.of([t.bad for t in truths])),
    }


def measure_filters(items: Sequence[Item], thresholds: filters.Thresholds) -> dict[str, Any]:
    """Precision and recall of each rule, and of all together, at finding texts that are broken or say what is false."""
    bad = {item.key: judge(_picture(item), item.text, item.ended).bad for item in items}
    measured = filters.measure_all(items, {})  # no picture is a duplicate here
    caught = {
        item.key: set(filters.caught_by(values, thresholds)) for item, values in zip(items, measured, strict=True)
    }
    found: dict[str, Any] = {}
    for name in (*(rule.name for rule in filters.RULES), "any rule"):
        by = [key for key, names in caught.items() if (names if name == "any rule" else name in names)]
        right = sum(bad[key] for key in by)
        found[name] = {
            "caught": len(by),
            "precision": _plain(Rate(right, len(by))),
            "recall": _plain(Rate(right, sum(bad.values()))),
        }
    return found


def _judged_sentences(items: Sequence[Item]) -> list[tuple[float, bool]]:
    """(grounding, whether it says something false) of all sentences that state anything."""
    found = []
    for item in items:
        if item.grounding is None:
            continue
        picture = _picture(item)
        for start, end, score in item.grounding.data["sentences"]:
            true, false = statements(picture, item.text[start:end])
            if true + false:
                found.append((score, false > 0))
    return found


def choose_sentence_threshold(items: Sequence[Item]) -> float:
    """Where grounding finds false sentences best (F1), among those that state anything."""
    judged = _judged_sentences(items)
    total = sum(false for _, false in judged)

    def f1(threshold: float) -> float:
        caught = [false for score, false in judged if score < threshold]
        return 2 * sum(caught) / max(1, total + len(caught))

    return max(sorted({score for score, _ in judged}), key=f1, default=0.0)


def measure_grounding(items: Sequence[Item], threshold: float) -> dict[str, Any]:
    """Precision and recall of grounding at finding false sentences, and the area under its ROC curve."""
    judged = _judged_sentences(items)
    caught = [false for score, false in judged if score < threshold]
    false_scores = [score for score, false in judged if false]
    true_scores = [score for score, false in judged if not false]
    wins = sum((f < t) + 0.5 * (f == t) for f in false_scores for t in true_scores)
    return {
        "threshold, set on other pictures": round(threshold, 3),
        "sentences that state anything": len(judged),
        "false sentences": _plain(Rate(len(false_scores), len(judged))),
        "precision": _plain(Rate(sum(caught), len(caught))),
        "recall": _plain(Rate(sum(caught), len(false_scores))),
        "area under ROC": round(wins / max(1, len(false_scores) * len(true_scores)), 3),
    }


def choose_thresholds(items: Sequence[Item]) -> dict[str, float | None]:
    """The default thresholds, with those of grounding set where both find false texts best (F1) on these items.

    It is what a person does with `curate stats` and a sample whose truth is looked up. At most half may be left out.
    """
    scores = [(item, item.grounding.data) for item in items if item.grounding is not None]
    false = [judge(_picture(item), item.text).false > 0 for item, _ in scores]

    def candidates(name: str) -> list[float]:
        values = sorted(float(data[name]) for _, data in scores)
        return [values[int(share / 20 * len(values))] for share in range(11)] if values else [0.0]

    def f1(limits: tuple[float, float]) -> float:
        caught = [data["lowest"] < limits[0] or data["whole"] < limits[1] for _, data in scores]
        hits = sum(f and c for f, c in zip(false, caught, strict=True))
        too_many = 2 * sum(caught) > len(caught)
        return -1.0 if too_many else 2 * hits / max(1, sum(false) + sum(caught))

    sentence, text = max(itertools.product(candidates("lowest"), candidates("whole")), key=f1)
    return {**filters.DEFAULTS, "ungrounded_sentence": sentence, "ungrounded_text": text}


def measure_model(aligned: str | Path, folder: Path, count: int, how: Describing) -> dict[str, Any]:
    """Failures, false statements and recall of objects and places in a model's descriptions of held-out pictures."""
    import torch

    from minigpt4.generation.engine import answers
    from minigpt4.model.alignment import MiniGPT4

    model = MiniGPT4.from_pretrained(aligned)
    rng = random.Random(0)
    total = {"false": 0, "said": 0, "named": 0, "objects": 0, "placed": 0, "places": 0}
    failed: list[bool] = []
    with torch.no_grad():
        for start in range(MEASURED, MEASURED + count, 32):
            seeds = range(start, min(start + 32, MEASURED + count))
            asked = [rng.choice(INSTRUCTIONS) for _ in seeds]
            images = [folder / f"{seed}.jpg" for seed in seeds]
            found = answers(model, images, asked, do_sample=False, max_new_tokens=how.max_new_tokens)
            for seed, question, answer in zip(seeds, asked, found, strict=True):
                picture = world.sample(seed)
                truth = judge(picture, answer.text, answer.ended)
                verdict = check(Request("describe", question), picture, answer.text)
                failed.append(truth.broken)
                for name, value in (
                    ("false", truth.false),
                    ("said", truth.true + truth.false),
                    ("named", verdict.kind_colour_right),
                    ("objects", verdict.objects),
                    ("placed", verdict.place_right),
                    ("places", verdict.placed),
                ):
                    total[name] += value
    return {
        "failures": _plain(Rate.of(failed)),
        "false statements": _plain(Rate(total["false"], total["said"])),
        "objects with kind and colour": _plain(Rate(total["named"], total["objects"])),
        "objects in the right place": _plain(Rate(total["placed"], total["places"])),
    }


def _train(out: Path, name: str, model: str, overrides: Sequence[str]) -> Path:
    from minigpt4.training.recipe import Recipe
    from minigpt4.training.run import train

    places = {"init": model, "data": out / "data" / name, "output": out / "stage2" / name}
    places["feature_cache"] = out / "features"
    keys = [f"{key}={json.dumps(str(value))}" for key, value in places.items()]
    return train(Recipe.load("pocket-stage2", [*keys, *STAGE2, *overrides]))


# The report


def _plain(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval
    share = round(rate.share, 4) if rate.total else None
    return {"share": share, "low": round(low, 4), "high": round(high, 4), "successes": rate.successes, "of": rate.total}


def _cell(rate: Mapping[str, Any]) -> str:
    if rate["share"] is None:
        return "–"
    return f"{100 * rate['share']:.1f} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _compare(heading: str, parts: Mapping[str, Mapping[str, Any]], show: Callable[[Any], str]) -> str:
    """A table with a row for each measure and a column for each of `parts`."""
    measures = list(next(iter(parts.values())))
    rows = [[measure, *(show(part[measure]) for part in parts.values())] for measure in measures]
    return _table([heading, *parts], rows)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown tables; per cent with 95 % Wilson intervals."""

    def show(value: Any) -> str:
        return _cell(value) if isinstance(value, Mapping) else str(value)

    rules = {
        kind: [
            [name, str(row["caught"]), _cell(row["precision"]), _cell(row["recall"])]
            for name, row in found.items()
            if row["caught"]
        ]
        for kind, found in report["filters"].items()
    }
    grounding = [[name, show(value)] for name, value in report["grounding"].items()]
    limits = ", ".join(f"{name} {value:g}" for name, value in report["thresholds"].items())
    verdicts = "\n".join(f"- {line}" for line in compare_models(report["models"]))
    return (
        "Texts after each step, against the truth of their pictures, per cent (95 % interval):\n\n"
        + _compare("", report["steps"], show)
        + "\nWhat each rule catches of texts that are broken or say something false (rules that catch nothing are left "
        f"out; {limits}, set on other pictures):\n\n"
        + "\n".join(_table([f"{kind} texts", "caught", "precision", "recall"], rows) for kind, rows in rules.items())
        + "\nGrounding at finding false sentences:\n\n"
        + _table(["", ""], grounding)
        + f"\nAfter stage 2 on each, {report['settings']['questions']} pictures that nothing was trained on:\n\n"
        + _compare("", report["models"], show)
        + f"\n{verdicts}\n- {report['seconds']['in all']:.0f} s in all\n"
    )


def compare_models(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether curation kept its promises, with the differences in points, whatever they are."""

    def points(one: str, other: str, measure: str) -> str:
        difference = 100 * (models[one][measure]["share"] - models[other][measure]["share"])
        apart = models[one][measure]["low"] > models[other][measure]["high"] or (
            models[one][measure]["high"] < models[other][measure]["low"]
        )
        return f"{difference:+.1f} points ({'intervals apart' if apart else 'intervals overlap'})"

    return [
        f"{one} against {other}, {measure}: {points(one, other, measure)}"
        for one, other in (("filtered", "raw"), ("selected", "filtered"))
        for measure in models[one]
        if models[one][measure]["share"] is not None and models[other][measure]["share"] is not None
    ]
