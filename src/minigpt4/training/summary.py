"""What a run was, on one page of Markdown: the recipe, what came out, on what it ran, from which source."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.files import write_atomically
from minigpt4.training.metrics import read_metrics

if TYPE_CHECKING:
    from minigpt4.training.processes import Processes
    from minigpt4.training.recipe import Recipe

PACKAGES = ("minigpt4", "torch", "transformers", "accelerate", "datasets", "safetensors")


def write_summary(recipe: Recipe, processes: Processes, skipped: Mapping[str, int]) -> Path:
    """Write `summary.md` to the recipe's output, from its `metrics.jsonl`; returns its path."""
    rows = read_metrics(recipe.output / "metrics.jsonl")
    last = [row["loss"] for row in rows[-50:]]
    seconds = sum(recipe.batch_size / row["samples_per_second"] for row in rows)
    best = min(rows, key=lambda row: row["loss"]) if rows else None
    facts = {
        "steps": f"{len(rows):,} of {recipe.steps:,}",
        "samples": f"{len(rows) * recipe.batch_size:,}",
        "time in steps": f"{seconds:,.0f} s",
        "loss, mean of the last 50 steps": f"{statistics.fmean(last):.4f}" if last else "-",
        "lowest loss": f"{best['loss']:.4f} at step {best['step']}" if best else "-",
        "samples per second, median": _median(rows, "samples_per_second"),
        "tokens per second, median": _median(rows, "tokens_per_second"),
        "waiting for data, mean": f"{statistics.fmean(row.get('data_wait', 0) for row in rows):.1%}" if rows else "-",
        "memory, highest": f"{max(row.get('memory_mb', 0) for row in rows):,.0f} MB" if rows else "-",
        "pairs left out": ", ".join(f"{cause} {count}" for cause, count in skipped.items()) or "none",
        "processes": f"{processes.world} on {processes.device.type}",
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "source": git_state(),
    }
    lines = [f"# Stage {recipe.stage}: {recipe.output}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "![Loss and learning rate](curves.png)", "", "## Recipe", "", "```yaml", recipe.to_yaml() + "```"]
    lines += _sample_answers(recipe.output / "samples.jsonl")
    path = recipe.output / "summary.md"
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return path


def _median(rows: list[dict], key: str) -> str:
    return f"{statistics.median(row[key] for row in rows):,.1f}" if rows else "-"


def _sample_answers(path: Path) -> list[str]:
    if not path.is_file():
        return []
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    last = max((sample["step"] for sample in samples), default=0)
    shown = [f"* `{s['picture']}`: {' '.join(s['answer'].split())}" for s in samples if s["step"] == last]
    return ["", f"## Answers after step {last}", "", *shown]


def git_state() -> str:
    """The commit that this package's source is at, and whether it was changed since; in words if it is no clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return "an installed package, no git clone"
