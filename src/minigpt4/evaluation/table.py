"""Results as files: results.json with everything, results.md with the table, and a plot for each unit.

Knows nothing about how the figures came to be.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.files import write_atomically

RESULTS, TABLE = "results.json", "results.md"


def write_results(directory: Path, results: Mapping[str, Any]) -> None:
    """Write `results` (as `run.evaluate` makes them) to `directory`: JSON, Markdown, plots."""
    names = _write_plots(directory, results)
    write_atomically(directory / TABLE, markdown(results, names).encode())
    write_atomically(directory / RESULTS, json.dumps(results, indent=1, ensure_ascii=False).encode())


def cell(figure: Mapping[str, Any] | None, unit: str) -> str:
    """ "72 (64–79)" per cent, "18/25 (52–86 %)", "7.1 (6.8–7.4)": a figure and its 95 % interval; "–" without one."""
    if figure is None or figure["value"] is None or not figure["total"]:
        return "–"
    low, high = figure["low"], figure["high"]
    undecided = f", {figure['undecided']} undecided" if figure["undecided"] else ""
    if unit == "of":
        return f"{figure['successes']}/{figure['total']} ({100 * low:.0f}–{100 * high:.0f} %{undecided})"
    if unit == "%":
        return f"{100 * figure['value']:.1f} ({100 * low:.1f}–{100 * high:.1f}{undecided})"
    return f"{figure['value']:.2f} ({low:.2f}–{high:.2f}{undecided})"


def markdown(results: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The table, the paper's figures beside ours, what was left out, and how it was measured."""
    labels = [model["label"] for model in results["models"]]
    papers = list(dict.fromkeys(name for row in results["rows"] for name in row["paper"]))
    head = ["", *labels, *(f"paper: {name}" for name in papers)]
    lines = [f"# {results['title']}", "", "| " + " | ".join(map(_plain, head)) + " |"]
    lines.append("|---|" + "---|" * (len(head) - 1))
    group = ""
    for row in results["rows"]:
        if row["group"] != group:
            group = row["group"]
            lines.append(f"| **{_plain(group)}** |" + " |" * (len(head) - 1))
        unit = {"%": ", %", "of": ""}.get(row["unit"], f", {row['unit']}" if row["unit"] else "")
        cells = [cell(row["figures"].get(label), row["unit"]) for label in labels]
        cells += [str(row["paper"].get(name, "–")) for name in papers]
        lines.append("| " + " | ".join(map(_plain, [row["label"] + unit, *cells])) + " |")
    lines += ["", _measured(results), ""]
    lines += [f"* {note}" for note in results["notes"]]
    lines += [f"* {line}" for line in [*_agreement(results), *_preferences(results)]]
    if results["left_out"]:
        told = ", ".join(f"{count} × {kind}" for kind, count in results["left_out"].items())
        lines.append(f"* Left out and counted apart: {told} (each is named in {RESULTS}).")
    if results["undecided"]:
        lines.append(f"* The judge could not decide {results['undecided']} cases; they count as no success.")
    lines += [f"\n![{results['title']}]({name})" for name in plots]
    return "\n".join(lines) + "\n"


def _measured(results: Mapping[str, Any]) -> str:
    judge, machine, settings = results["judge"], results["machine"], results["settings"]
    who = (
        judge["judge"]
        if judge["judge"] != "llm"
        else (f"{judge['model']} (prompt {judge['prompt']}, version {judge['version']})")
    )
    decoding = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']}"
    return (
        f"{results['items']} questions, {decoding}; judged by {who}; 95 % intervals in brackets. "
        f"{results['created']}, minigpt4 {machine['minigpt4']}, {machine['cores']} cores ({machine['processor']})."
    )


def _agreement(results: Mapping[str, Any]) -> list[str]:
    """A line for each pair of judges whose agreement was computed: `agreement` in the results, if it is there."""
    lines = []
    for pair in results.get("agreement", []):
        kappa = "not defined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        one, other = pair["judges"]
        lines.append(
            f"{one} and {other} agree on {100 * pair['agreed']:.0f} % of {pair['cases']} cases (kappa {kappa})."
        )
    return lines


def _preferences(results: Mapping[str, Any]) -> list[str]:
    """A line for each pair of models between which people chose: `preferences` in the results, if it is there."""
    return [
        f"Between {pair['models'][0]} and {pair['models'][1]}, people liked the first better {pair['wins']} times, the "
        f"second {pair['losses']} times, and both alike {pair['ties']} times."
        for pair in results.get("preferences", [])
    ]


def _plain(text: str) -> str:
    """Text that cannot end a Markdown cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _write_plots(directory: Path, results: Mapping[str, Any]) -> list[str]:
    """Bars with intervals for each unit; returns the files' names."""
    names = []
    rows = [row for row in results["rows"] if any(_drawable(f) for f in row["figures"].values())]
    units = list(dict.fromkeys("%" if row["unit"] == "of" else row["unit"] for row in rows))
    for number, unit in enumerate(units):
        name = "plot.png" if number == 0 else f"plot-{number + 1}.png"
        chosen = [row for row in rows if ("%" if row["unit"] == "of" else row["unit"]) == unit]
        write_atomically(directory / name, _bars(results, chosen, unit))
        names.append(name)
    return names


def _drawable(figure: Mapping[str, Any]) -> bool:
    return figure["value"] is not None and bool(figure["total"])


def _bars(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], unit: str) -> bytes:
    from matplotlib.figure import Figure as Canvas

    labels = [model["label"] for model in results["models"]]
    scale = 100 if unit == "%" else 1
    canvas = Canvas(figsize=(max(6.0, 2.8 + len(rows) * (0.35 + 0.27 * len(labels))), 4.0), layout="constrained")
    axes = canvas.subplots()
    width = 0.8 / len(labels)
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
        below, above = zip(*errors, strict=True) if errors else ((), ())
        axes.bar(places, values, width * 0.92, yerr=(below, above) if errors else None, capsize=2, label=label)
    for marker, paper in zip("D*sv^", dict.fromkeys(n for row in rows for n in row["paper"]), strict=False):
        found = [(p, _number(row["paper"].get(paper), row["unit"])) for p, row in enumerate(rows)]
        shown = [(p, v) for p, v in found if v is not None]
        if shown:
            axes.plot(*zip(*shown, strict=True), marker, color="black", fillstyle="none", label=f"paper: {paper}")
    names = [f"{row['group']}: {row['label']}" if row["group"] else row["label"] for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=30, ha="right")
    axes.set_ylabel(unit or "score")
    axes.set_title(results["title"])
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(fontsize="small", loc="outside right upper")
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
