"""`minigpt4 pocket ablations`: the reproduction's ablations alone, with results as the other suites write them.

The arms are the reproduction's, in its directory: what one of the two commands has made, the other does not make again.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from minigpt4.evaluation.machine import machine
from minigpt4.evaluation.statistics import Rate
from minigpt4.evaluation.table import RESULTS, TABLE
from minigpt4.files import write_atomically
from pocket.reproduce.artifacts import Workshop
from pocket.reproduce.experiments import Arm, Scale, ablated
from pocket.reproduce.figures import draw_ablations
from pocket.reproduce.results import Circumstances, ablation_tables
from pocket.reproduce.run import circumstances, collect, make
from pocket.reproduce.survey import Evidence

NAME, PLOT = "ablations", "plot.png"


def ablations(workshop: Workshop, out: Path, command: str, console: Console | None = None, processes: int = 1) -> Path:
    """Make the ablations' arms that are not made, and write `out/ablations`: results.json, results.md, plot.png.

    Returns that directory. Raises what `run.make` raises.
    """
    make(workshop, command, processes, console or Console())
    directory = out / NAME
    directory.mkdir(parents=True, exist_ok=True)
    evidence, run = collect(workshop), circumstances(workshop, command)
    draw_ablations(evidence, workshop.scale, directory / PLOT)
    write_atomically(directory / TABLE, _markdown(evidence, workshop.scale, run).encode())
    results = _results(workshop, evidence, run)
    write_atomically(directory / RESULTS, json.dumps(results, indent=1, ensure_ascii=False).encode())
    return directory


def _markdown(evidence: Evidence, scale: Scale, run: Circumstances) -> str:
    return f"""# Ablations

{ablation_tables(evidence, scale)}
Seeds {", ".join(map(str, scale.seeds))}; {scale.stage1_steps} steps of stage 1 on {scale.pairs:,} pictures,
{scale.stage2_steps} of stage 2 on {scale.descriptions} unless said otherwise; {scale.questions} questions for each
ability and seed, greedy, judged by the pictures' ground truth.
{run.told()} Weights of the frozen parts: {run.weights}.

![Ablations]({PLOT})
"""


def _results(workshop: Workshop, evidence: Evidence, run: Circumstances) -> dict[str, Any]:
    scale = workshop.scale
    names = ablated(scale)
    rates = list(dict.fromkeys(rate for name in names for rate in evidence.pooled(name).rates))
    rows = [
        {
            "name": rate,
            "unit": "%",
            "figures": {name: _plain(evidence.rate(name, rate)) for name in names},
            "seeds": {
                name: {seed: _plain(found) for seed, found in evidence.by_seed(name, rate).items()} for name in names
            },
        }
        for rate in rates
    ]
    arms = [workshop.arms[name] for name in names]
    return {
        "suite": NAME,
        "title": "Ablations",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": run.command,
        "machine": machine(),
        "settings": {"scale": scale.name, "seeds": scale.seeds, "questions": scale.questions, "temperature": 0},
        "judge": {"judge": "truth"},
        "models": [
            {
                "label": arm.name,
                "recipe": arm.recipe,
                "data": arm.data,
                "start": arm.start,
                "changes": dict(arm.changes),
            }
            for arm in arms
        ],
        "rows": rows,
        "answers": [row for arm in arms for seed in arm.seeds or scale.seeds for row in _answers(workshop, arm, seed)],
    }


def _plain(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval if rate.total else (None, None)
    value = rate.share if rate.total else None
    return {"value": value, "low": low, "high": high, "successes": rate.successes, "total": rate.total}


def _answers(workshop: Workshop, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """Every question, answer and verdict of an arm."""
    exam = workshop.exam(arm, seed)
    return [
        {
            "model": arm.name, "seed": seed, "task": question.ability, "picture": exam.pictures[question.picture].seed,
            "prompt": question.request.text, "answer": record.text, "failure": record.failure,
            "success": record.verdict.success, "reason": record.verdict.reason,
        }
        for question, record in zip(exam.questions, workshop.records(arm, seed), strict=True)
    ]  # fmt: skip
