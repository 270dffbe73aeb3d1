"""What curation is worth, measured where every picture's truth is known: the whole pipeline on pocket pictures.

The pictures that are curated come from seeds that no shipped weight was trained on; thresholds of grounding are set on
others, and the models that stage 2 makes of each dataset are measured on others again. The refiner is a server in a
process of its own that sees only the text. Nothing here is fitted to the pictures that it reports on.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from minigpt4.curation import dataset, filters
from minigpt4.curation.describe import Describing, add_folder, describe
from minigpt4.curation.grounding import ground
from minigpt4.curation.ledger import Description, Ledger
from minigpt4.curation.refine import refine
from minigpt4.curation.select import best_samples, select
from minigpt4.endpoint import Endpoint
from minigpt4.errors import UserError
from minigpt4.evaluation.results import write_files
from minigpt4.files import new_directory
from minigpt4.progress import progress_bar
from minigpt4.statistics import Rate
from minigpt4.training.recipe import Recipe
from pocket.curation_demo import measures
from pocket.curation_demo.refiner import MODEL as MENDER
from pocket.curation_demo.report import report_text
from pocket.demo.run import Clock
from pocket.text.phrases import INSTRUCTIONS
from pocket.world import world

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
#: how texts are written, so that not even broken ones harm it. And in small batches: 150 steps of 4 read all raw texts
#: 1.3 times, as the paper's stage 2 does its own; with the recipe's 12 the few selected ones would be read 38 times and
#: learnt by heart. (docs/notes/curation.md has what was tried, on pictures of their own.)
STAGE2 = ("batch_size=4", "learning_rate=2.5e-3", "final_learning_rate=2.5e-4")


def run_curation(
    out: Path,
    *,
    pictures: int = 480,
    questions: int = 150,
    trainings: int = 3,
    model: str = MODEL,
    how: Describing = HOW,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> str:
    """Run the whole demo in `out`; returns the report, as written to report.md (and report.json).

    What an earlier run has left there is used. Args: `pictures` are curated and half as many set thresholds;
    `questions` are pictures that each trained model describes, `trainings` how often each dataset trains one, from
    other seeds, for the same texts make a better or a worse model by chance; `model` is the stage-1 model; `overrides`
    are `key=value` for stage 2's recipe. Raises UserError for what cannot be made.
    """
    clock = Clock(console or Console())
    started = time.perf_counter()
    with clock.phase("draw pictures"):
        draw_folder(out / "pictures", CURATED, pictures)
        draw_folder(out / "development", DEVELOPMENT, pictures // 2)
    report: dict[str, Any] = {"settings": {"pictures": pictures, "questions": questions, **vars(how)}}
    setting = "set the thresholds of grounding on pictures of their own"
    with clock.phase(setting), Ledger(out / "development-set", create=True) as ledger, mender() as endpoint:
        _until_grounded(ledger, out / "development", model, how, endpoint)
        thresholds = measures.choose_thresholds(ledger.items())
        sentence_threshold = measures.choose_sentence_threshold(ledger.items())
        filters.write_thresholds(out / "rules.yaml", thresholds)
    report["thresholds"] = {name: thresholds[name] for name in ("ungrounded_sentence", "ungrounded_text")}
    datasets: dict[str, list[tuple[Description, str]]] = {}
    with Ledger(out / "set", create=True) as ledger, mender() as endpoint:
        with clock.phase("describe, refine, ground"):
            _until_grounded(ledger, out / "pictures", model, how, endpoint)
        with clock.phase("filter, select, export"):
            filters.filter_items(ledger, thresholds)
            items = ledger.items()
            # Of raw texts by their words alone, for grounding is measured of the texts that are kept.
            unrefined = [Description(item.image, item.sample, item.raw) for item in items]
            report["filters"] = {
                "raw": measures.measure_filters(unrefined, thresholds),
                "refined": measures.measure_filters(items, thresholds),
            }
            report["grounding"] = measures.measure_grounding(items, sentence_threshold)
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
    report["steps"] = {name: measures.measure_texts(rows) for name, rows in datasets.items()}
    for name in ("raw", "refined"):
        _write_dataset(out / "data" / name, datasets[name])
    draw_folder(out / "measured", MEASURED, questions * trainings)
    report["trainings"] = []
    for seed in range(trainings):
        asked = range(MEASURED + seed * questions, MEASURED + (seed + 1) * questions)
        measured: dict[str, dict[str, Rate]] = {}
        for name in ("stage 1", *datasets):
            trains = "" if name == "stage 1" else "train stage 2 and "
            with clock.phase(f"{name}: {trains}measure, seed {seed}"):
                aligned = model if name == "stage 1" else _train(out, name, model, seed, overrides)
                measured[name] = measures.measure_model(aligned, out / "measured", asked, how)
        report["trainings"].append(measured)
    seconds = {phase["name"]: round(phase["seconds"], 1) for phase in clock.phases}
    report["seconds"] = {**seconds, "in all": round(time.perf_counter() - started, 1)}
    text = report_text(report)
    write_files(out, report, {"report.md": text}, name="report.json")
    return text


def draw_folder(folder: Path, first: int, count: int) -> None:
    """Draw the pictures of these seeds as JPEG files named by their seeds, unless the folder is there."""
    from pocket.world.draw import draw

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
    command = [sys.executable, "-m", "pocket.curation_demo.refiner"]
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
    refine(ledger, endpoint, min_similarity=0.5)
    ground(ledger, model, instruction=how.instruction)


def _export(ledger: Ledger, out: Path) -> None:
    if not out.exists():
        dataset.write_dataset(ledger, out, "cc_sbu_align")


def _write_dataset(out: Path, rows: Sequence[tuple[Description, str]]) -> None:
    """A `cc_sbu_align` of these texts, whatever the rules think of them."""
    if out.exists():
        return
    with new_directory(out, marker="filter_cap.json") as directory:
        (directory / "image").mkdir()
        annotations = []
        for item, text in rows:
            (directory / "image" / f"{item.image.name}.jpg").write_bytes(item.image.read())
            annotations.append({"image_id": item.image.name, "caption": text})
        (directory / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))


def _train(out: Path, name: str, model: str, seed: int, overrides: Sequence[str]) -> Path:
    from minigpt4.training.train import train

    places = {"init": model, "data": out / "data" / name, "output": out / "stage2" / f"{name}-{seed}"}
    places["feature_cache"] = out / "features"
    keys = [f"{key}={json.dumps(str(value))}" for key, value in places.items()]
    return train(Recipe.load("pocket-stage2", [*keys, f"seed={seed}", *STAGE2, *overrides]))
