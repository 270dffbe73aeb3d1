"""Results as files: results.json with everything, results.md with the table, and a plot for each unit.

Knows nothing about how the figures came to be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.evaluation.plots import bars
from minigpt4.files import write_atomically
from minigpt4.telling import shown

RESULTS, TABLE = "results.json", "results.md"


def write_results(directory: Path, results: Mapping[str, Any], plots: Mapping[str, bytes]) -> None:
    """Write `results` (as `run.evaluate` makes them) to `directory`: JSON, Markdown, bars, and further `plots`."""
    plots = {**bars(results), **plots}
    for name, image in plots.items():
        write_atomically(directory / name, image)
    write_atomically(directory / TABLE, markdown(results, list(plots)).encode())
    write_atomically(directory / RESULTS, json.dumps(results, indent=1, ensure_ascii=False).encode())


def cell(figure: Mapping[str, Any] | None, unit: str) -> str:
    """ "72 (64–79)" per cent, "18/25 (52–86 %)", "7.1 (6.8–7.4)": a figure and its 95 % interval; "–" without one."""
    if figure is None or figure["value"] is None or not figure["total"]:
        return "–"
    low, high = figure["low"], figure["high"]
    if low is None:  # a figure of the whole, as BLEU is, has no interval
        return f"{figure['value']:.2f}"
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
    return shown(text.replace("\n", " ")).replace("|", "\\|")
