"""What a run reports: `metrics.jsonl` (one line a step), the loss curve drawn from it, and a summary page."""

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from minigpt4.files import failed_write_is_a_user_error, write_atomically
from minigpt4.images import figure_png
from minigpt4.telling import table
from minigpt4.training.distributed import Processes
from minigpt4.training.recipe import Recipe

SMOOTHING = 0.95
PACKAGES = ("minigpt4-vlm", "torch", "transformers", "accelerate", "datasets", "safetensors")


def keep_lines(path: Path, last_step: int) -> None:
    """Make a `metrics.jsonl` end with `last_step`: a run that was killed later may have written more."""
    kept = [row for row in read_json_lines(path) if row["step"] <= last_step]
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())


def add_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add a line of JSON, and hand it to the operating system, so that it outlives this process."""
    with failed_write_is_a_user_error(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a file of JSON; none if it does not exist. A last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def draw_curves(metrics: Path, chart: Path, title: str) -> None:
    """Draw loss and learning rate over the steps of a `metrics.jsonl` as a PNG."""
    from matplotlib.figure import Figure

    rows = read_json_lines(metrics)
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(8, 4.5))  # a layout that is computed takes as long as all the drawing
    axes = figure.add_axes((0.1, 0.2, 0.75, 0.72))
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="loss, smoothed")
    axes.set(title=title, xlabel="step", ylabel="loss (nats per target token)")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray", linestyle=":", label="learning rate")
    rates.set_ylabel("learning rate")
    figure.legend(loc="lower center", ncols=3, frameon=False)
    write_atomically(chart, figure_png(figure))


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start at zero."""
    totals = accumulate(values, lambda total, value: SMOOTHING * total + (1 - SMOOTHING) * value, initial=0.0)
    return [total / (1 - SMOOTHING**count) for count, total in enumerate(totals) if count]


def write_summary(recipe: Recipe, processes: Processes, skipped: Mapping[str, int]) -> None:
    """Write `summary.md` to the recipe's output, from its `metrics.jsonl`."""
    rows = read_json_lines(recipe.output / "metrics.jsonl")
    last = [row["loss"] for row in rows[-50:]]
    seconds = sum(recipe.batch_size / row["samples_per_second"] for row in rows)
    best = min(rows, key=lambda row: row["loss"]) if rows else None

    def median(key: str) -> str:
        return f"{statistics.median(row[key] for row in rows):,.1f}" if rows else "-"

    facts = {
        "steps": f"{len(rows):,} of {recipe.steps:,}",
        "samples": f"{len(rows) * recipe.batch_size:,}",
        "time in steps": f"{seconds:,.0f} s",
        "loss, mean of the last 50 steps": f"{statistics.fmean(last):.4f}" if last else "-",
        "lowest loss": f"{best['loss']:.4f} at step {best['step']}" if best else "-",
        "samples per second, median": median("samples_per_second"),
        "tokens per second, median": median("tokens_per_second"),
        "waiting for data, mean": f"{statistics.fmean(row.get('data_wait', 0) for row in rows):.1%}" if rows else "-",
        "memory, highest": f"{max(row.get('memory_mb', 0) for row in rows):,.0f} MB" if rows else "-",
        "pairs left out": ", ".join(f"{cause} {count}" for cause, count in skipped.items()) or "none",
        "processes": f"{processes.world} on {processes.device.type}",
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "source": git_state(),
    }
    lines = [f"# Stage {recipe.stage}: {recipe.output}", "", table(["", ""], facts.items())]
    lines += ["![Loss and learning rate](curves.png)", "", "## Recipe", "", "```yaml", recipe.to_yaml() + "```"]
    if samples := read_json_lines(recipe.output / "samples.jsonl"):
        last_step = samples[-1]["step"]
        lines += ["", f"## Answers after step {last_step}", ""]
        lines += [f"* `{s['picture']}`: {' '.join(s['answer'].split())}" for s in samples if s["step"] == last_step]
    write_atomically(recipe.output / "summary.md", ("\n".join(lines) + "\n").encode())


def git_state() -> str:
    """The commit that this package's source is at, and whether it was changed since; in words if it is no clone."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" with changes" if git("status", "--porcelain", "--", "..") else "")
    except (OSError, subprocess.SubprocessError):
        return "an installed package, no git clone"
