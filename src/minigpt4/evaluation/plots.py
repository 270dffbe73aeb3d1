"""Plots of results: bars with intervals for each unit, a panel for each group of rows; PNG bytes.

Works from the rows as `run.evaluate` makes them. Knows nothing about how the figures came to be.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

#: Panels beside each other, and the width of one bar in inches.
PANELS, BAR = 3, 0.27

_Row = Mapping[str, Any]


def bars(results: Mapping[str, Any]) -> dict[str, bytes]:
    """One plot for each unit of the rows: file names and PNGs."""
    rows = [row for row in results["rows"] if any(_drawable(f) for f in row["figures"].values())]
    units = list(dict.fromkeys(_axis(row) for row in rows))
    names = ["plot.png" if number == 0 else f"plot-{number + 1}.png" for number in range(len(units))]
    return {
        name: _plot(results, [row for row in rows if _axis(row) == unit], unit)
        for name, unit in zip(names, units, strict=True)
    }


def _axis(row: _Row) -> str:
    return "%" if row["unit"] == "of" else row["unit"]


def _drawable(figure: Mapping[str, Any]) -> bool:
    return figure["value"] is not None and bool(figure["total"])


def _plot(results: Mapping[str, Any], rows: Sequence[_Row], unit: str) -> bytes:
    from matplotlib.figure import Figure as Canvas

    labels = [model["label"] for model in results["models"]]
    papers = list(dict.fromkeys(name for row in rows for name in row["paper"]))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    in_groups = [[row for row in rows if row["group"] == group] for group in groups]
    columns = min(PANELS, len(groups))
    lines = math.ceil(len(groups) / columns)
    width = max(3.2, max(map(len, in_groups)) * (0.4 + BAR * len(labels)))
    canvas = Canvas(figsize=(max(6.0, 1.6 + columns * width), 0.6 + 3.4 * lines), layout="constrained")
    panels = canvas.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for panel, group, chosen in zip(panels, groups, in_groups, strict=False):
        _panel(panel, labels, papers, chosen, unit)
        panel.set_title(group, fontsize="medium")
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel(unit or "score")
    canvas.suptitle(results["title"])
    shown = {name: mark for panel in panels for mark, name in zip(*panel.get_legend_handles_labels(), strict=True)}
    canvas.legend(shown.values(), shown.keys(), fontsize="small", loc="outside right upper")
    return png(canvas)


def _panel(panel: Any, labels: Sequence[str], papers: Sequence[str], rows: Sequence[_Row], unit: str) -> None:
    scale, width = 100 if unit == "%" else 1, 0.8 / len(labels)
    for number, label in enumerate(labels):
        places, values, errors = [], [], []
        for place, row in enumerate(rows):
            figure = row["figures"].get(label)
            if figure is None or not _drawable(figure):
                continue
            places.append(place - 0.4 + width * (number + 0.5))
            values.append(scale * figure["value"])
            low, high = ((figure["value"] if edge is None else edge) for edge in (figure["low"], figure["high"]))
            errors.append((scale * max(0, figure["value"] - low), scale * max(0, high - figure["value"])))
        edges = tuple(zip(*errors, strict=True)) or None
        panel.bar(places, values, width * 0.92, yerr=edges, capsize=2, label=label, color=f"C{number % 10}")
    for marker, paper in zip("D*sv^", papers, strict=False):
        found = [(place, _number(row["paper"].get(paper), row["unit"])) for place, row in enumerate(rows)]
        shown = [(place, value) for place, value in found if value is not None]
        if shown:
            panel.plot(*zip(*shown, strict=True), marker, color="black", fillstyle="none", label=f"paper: {paper}")
    panel.set_xticks(range(len(rows)), [row["label"] for row in rows], rotation=30, ha="right", fontsize="small")
    panel.spines[["top", "right"]].set_visible(False)


def png(canvas: Any) -> bytes:
    """A matplotlib figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _number(text: str | None, unit: str) -> float | None:
    """The paper's figure as a number on the plot's axis; "18/25" is 72 of a hundred."""
    if text is None:
        return None
    one, slash, other = str(text).replace("%", "").strip().partition("/")
    try:
        value = 100 * float(one) / float(other) if slash and unit in ("of", "%") else float(one)
    except (ValueError, ZeroDivisionError):
        return None
    return None if math.isnan(value) else value
