"""What a run tells about itself: `metrics.jsonl`, one line per step, and the loss curve drawn from it.

Knows nothing about models.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.files import failed_write_is_a_user_error, write_atomically

if TYPE_CHECKING:
    from minigpt4.training.loop import Step

SMOOTHING = 0.95


class Metrics:
    """`metrics.jsonl`, from which lines after `last_step` (written by a run that was killed later) are dropped."""

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        kept = [row for row in read_metrics(path) if row["step"] <= last_step]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, step: Step) -> None:
        """Write one line, and hand it to the operating system, so that it outlives this process."""
        with failed_write_is_a_user_error(self.path):
            self._file.write(json.dumps(step.figures()) + "\n")
            self._file.flush()

    def close(self) -> None:
        with failed_write_is_a_user_error(self.path):
            self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a `metrics.jsonl`; none if it does not exist. A last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Draw loss and learning rate over the steps of a `metrics.jsonl` as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(metrics)
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="loss")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="loss, smoothed")
    axes.set(title=title, xlabel="step", ylabel="loss (nats per target token)")
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.plot(steps, [row["learning_rate"] for row in rows], color="tab:gray", linestyle=":", label="learning rate")
    rates.set_ylabel("learning rate")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(picture, buffer.getvalue())


def _smooth(values: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start at zero."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total = SMOOTHING * total + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        smoothed.append(total / weight)
    return smoothed
