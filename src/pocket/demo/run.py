"""The demo: draw data, align the pocket model in both stages, measure it on held-out pictures, show what it says.

This is the whole recipe in one place, from nothing to a table of rates: what `pocket demo` runs. It trains through
`minigpt4.training` by the packaged recipes, asks through `measure/survey.py`, and writes results.json and demo.html.
"""

import contextlib
import functools
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.evaluation.results import machine, write_files
from minigpt4.files import write_atomically
from minigpt4.progress import progress_bar
from minigpt4.statistics import Rate, now
from minigpt4.training.recipe import Recipe
from pocket.demo import page as report
from pocket.measure.survey import ABILITIES, Judged, Survey, draw_survey, encode, measure, put, write_pictures
from pocket.world.world import facts

if TYPE_CHECKING:
    from torch import Tensor

#: The models of the table: key, name, what it is.
MODELS = (
    ("untrained", "untrained", "the same parts with a projection that was never trained"),
    ("stage1", "stage 1", "aligned on pictures with short captions"),
    ("stage2", "stage 2", "then polished on a few detailed descriptions"),
    ("blip2", "BLIP-2", "the same eyes with the weak captioning LLM that they were trained against"),
)
#: What the model is to reach after stage 2, and the demo in all.
MIN_KIND_COLOUR, MAX_FAILURES, MIN_ABILITIES, MAX_SECONDS, MAX_MB = 0.90, 0.02, 0.65, 360, 4096


@dataclass
class Clock:
    """Wall time and memory of the demo's phases."""

    console: Console
    phases: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Announce a phase and record its seconds, and the peak memory of the process by its end in MB."""
        self.console.print(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        yield
        self.phases.append({"name": name, "seconds": time.perf_counter() - start, "peak_mb": peak_memory()})


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def run_demo(
    out: Path,
    *,
    pairs: int = 6400,
    descriptions: int = 400,
    questions: int = 50,
    recipes: tuple[str, str] = ("pocket-stage1", "pocket-stage2"),
    overrides: Sequence[str] = (),
    baseline: str | Path = "pocket-blip2",
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the whole demo in the directory `out` and return its results, as written to results.json.

    What an earlier run has left in `out` is used: drawn data, checkpoints, finished stages.

    Args:
        pairs: Pictures with short captions for stage 1; `descriptions` those with detailed descriptions for stage 2.
        questions: Held-out pictures of each type, and questions for each ability.
        overrides: `key=value` for both recipes.
        baseline: The alignment to compare with; its pictures need no second encoding if it shares the vision side.
    Raises:
        UserError: a part is missing, a recipe is not valid, or `out` cannot be written.
    """
    clock = Clock(console or Console())
    started = time.perf_counter()
    whole = not (out / "data").exists()  # else an earlier run has done part of the work
    stages = _load_recipes(out, recipes, overrides)
    alignments = align(stages, (pairs, descriptions), clock)
    survey = draw_survey(questions)
    records = ask_all(survey, out, stages[0], alignments, baseline, clock)
    rates = {key: measure(survey, records[key]) for key, _, _ in MODELS}
    seconds = time.perf_counter() - started
    results = {
        "created": now("seconds"),
        "machine": machine(),
        "settings": {"pairs": pairs, "descriptions": descriptions, "questions": questions, "overrides": [*overrides]},
        "models": [{"key": key, "name": name, "what": what} for key, name, what in MODELS],
        "rates": {key: {name: rate.to_json() for name, rate in row.items()} for key, row in rates.items()},
        "targets": targets(rates["stage2"], rates["blip2"], seconds if whole else None, peak_memory()),
        "phases": [*clock.phases, {"name": "in all", "seconds": seconds, "peak_mb": peak_memory()}],
        **_answers(survey, records),
    }
    curves = {f"Loss of stage {recipe.stage}": recipe.output / "curves.png" for recipe in stages}
    shown = {caption: path for caption, path in curves.items() if path.is_file()}
    write_files(out, results, {"demo.html": report.page(results, out, shown)})
    report.show(results, clock.console)
    clock.console.print(f"\nEvery picture, question and answer: {out / 'demo.html'}", soft_wrap=True)
    return results


def _load_recipes(out: Path, names: tuple[str, str], overrides: Sequence[str]) -> tuple[Recipe, Recipe]:
    """Both recipes, with all that they read and write under `out`."""

    def load(stage: int, **more: Path) -> Recipe:
        places = {"data": out / "data" / f"stage{stage}", "output": out / f"stage{stage}", **more}
        places["feature_cache"] = out / "features"
        # A JSON string is YAML for any path, whatever signs are in it.
        keys = [f"{key}={json.dumps(str(path))}" for key, path in places.items()]
        return Recipe.load(names[stage - 1], [*keys, *overrides])

    return load(1), load(2, init=out / "stage1" / "alignment")


def align(stages: tuple[Recipe, Recipe], counts: tuple[int, int], clock: Clock) -> tuple[Path, Path]:
    """Draw the data of both stages and train both; returns the directories of their alignments."""
    from minigpt4.training.train import train
    from pocket.data.training_sets import write_stage1, write_stage2

    made = []
    sets = (("pictures with short captions", write_stage1), ("pictures with detailed descriptions", write_stage2))
    for recipe, (what, write), count in zip(stages, sets, counts, strict=True):
        data = Path(recipe.sources[0].path)
        drawn = data.with_name(f"{data.name}.json")
        if data.exists() and drawn.is_file() and (there := json.loads(drawn.read_text())) != count:
            raise UserError(f"{data}: holds {there:,} pictures, and {count:,} are asked for; give another --out")
        if not data.exists():
            with clock.phase(f"draw {count:,} {what}"):
                write(data, count)
            write_atomically(drawn, json.dumps(count).encode())
        with clock.phase(f"stage {recipe.stage}: train the projection for {recipe.steps} steps"):
            made.append(train(recipe))
    return made[0], made[1]


def ask_all(
    survey: Survey, out: Path, recipe: Recipe, alignments: tuple[Path, Path], baseline: str | Path, clock: Clock
) -> dict[str, list[Judged]]:
    """The records of every model of `MODELS`; `recipe` is stage 1's, which names the untrained model's parts.

    Pictures go through a vision side once, however many models share it.
    """
    from minigpt4.minigpt4 import MiniGPT4

    def load(key: str) -> MiniGPT4:
        if key == "untrained":
            vision_qformer, llm, template = recipe.parts
            return MiniGPT4.assemble(vision_qformer, llm, template=template, seed=recipe.seed)
        return MiniGPT4.from_pretrained({"stage1": alignments[0], "stage2": alignments[1]}.get(key, baseline))

    with clock.phase(f"draw {len(survey.pictures)} held-out pictures"):
        paths = write_pictures(survey, out / "pictures")
    features: dict[str, Tensor] = {}
    records: dict[str, list[Judged]] = {}
    for key, name, _ in MODELS:
        with clock.phase(f"put {len(survey.questions)} questions to {name}"):
            model = load(key)
            if model.vision_fingerprint not in features:
                features[model.vision_fingerprint] = encode(model, paths)
            with progress_bar() as bar:
                task = bar.add_task("answers", total=len(survey.questions), note="")
                seen, advance = features[model.vision_fingerprint], functools.partial(bar.advance, task)
                records[key] = put(survey, model, seen, progress=advance)
    return records


def targets(
    stage2: Mapping[str, Rate], baseline: Mapping[str, Rate], seconds: float | None, peak_mb: float
) -> list[dict[str, Any]]:
    """Each target with what was reached: name, target, reached, met. Without `seconds`, time is not judged.

    A rate misses its target if its 95 % interval does: 2 of 50 is within what 2 % gives.
    """
    found: list[tuple[str, str, str, bool]] = []
    for name, bound, aim, rate in (
        ("objects with the right kind and colour", "at least", MIN_KIND_COLOUR, stage2["kind_colour"]),
        ("descriptions that fail", "at most", MAX_FAILURES, stage2["fails_describe"]),
        ("poems that fail", "at most", MAX_FAILURES, stage2["fails_poem"]),
        ("abilities, overall", "at least", MIN_ABILITIES, stage2["abilities"]),
    ):
        low, high = rate.interval
        found.append((name, f"{bound} {aim:.0%}", str(rate), high >= aim if bound == "at least" else low <= aim))
    behind = [ability for ability in ABILITIES if stage2[ability].share <= baseline[ability].share]
    above = f"{len(ABILITIES) - len(behind)}" + (f" (not {', '.join(behind)})" if behind else "")
    found.append(("every ability above the baseline", f"{len(ABILITIES)} of {len(ABILITIES)}", above, not behind))
    if seconds is not None:
        found.append(("wall time", f"at most {MAX_SECONDS} s", f"{seconds:.0f} s", seconds <= MAX_SECONDS))
    found.append(("peak memory", f"at most {MAX_MB} MB", f"{peak_mb:.0f} MB", peak_mb <= MAX_MB))
    return [{"name": name, "target": aim, "reached": got, "met": met} for name, aim, got, met in found]


def _answers(survey: Survey, records: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """Pictures and questions with everybody's answers, ready for JSON."""
    questions = []
    for i, question in enumerate(survey.questions):
        asked = {"ability": question.ability, "picture": question.picture, "after": question.after}
        answers = {
            key: {
                "text": given[i].text, "failure": given[i].failure, "success": given[i].verdict.success,
                "reason": given[i].verdict.reason,
            }
            for key, given in records.items()
        }  # fmt: skip
        questions.append({**asked, **asdict(question.request), "ability": question.ability, "answers": answers})
    pictures = [
        {"file": f"pictures/{picture.seed}.{('png', 'jpg')[i % 2]}", "seed": picture.seed, "facts": facts(picture)}
        for i, picture in enumerate(survey.pictures)
    ]
    return {"pictures": pictures, "questions": questions}
