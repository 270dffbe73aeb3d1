"""The files of a run: a journal that a kill leaves readable; results.json with everything, results.md, and plots."""

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4 import __version__
from minigpt4.documents import LARGEST_JSON
from minigpt4.errors import UserError
from minigpt4.files import failed_write_is_a_user_error, read_file, write_atomically
from minigpt4.images import figure_png
from minigpt4.statistics import text
from minigpt4.telling import table

RESULTS, TABLE = "results.json", "results.md"


def digest(value: Any) -> str:
    """A key for `value` (plain JSON): the same for the same value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:32]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal, oldest first, without half a line at its end. Raises UserError if another is broken."""
    data = read_file(path, LARGEST_JSON, "a journal")
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            row["key"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            told = f"is no line of a journal ({error}); delete it, and what it held is done again"
            raise UserError(f"{path}:{number}: {told}") from None
        yield row


class Journal(contextlib.AbstractContextManager["Journal"]):
    """A file of JSON lines that only grows and that a kill leaves readable; `rows` holds them by their "key"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self.rows = {row["key"]: row for row in read_rows(path)}
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row with its "key", and have it on the disk before this returns."""
        with failed_write_is_a_user_error(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows[row["key"]] = dict(row)


def write_files(out: Path, results: Mapping[str, Any], files: Mapping[str, str | bytes], name: str = RESULTS) -> None:
    """Write `files`, then `results` as JSON to `out/name`. Rates in it are saved by their `to_json`."""
    for file, content in files.items():
        write_atomically(out / file, content.encode() if isinstance(content, str) else content)
    text = json.dumps(results, indent=1, ensure_ascii=False, default=lambda v: getattr(v, "to_json", v.__str__)())
    write_atomically(out / name, text.encode(errors="backslashreplace"))


def markdown(results: Mapping[str, Any], plots: Iterable[str]) -> str:
    """The table, the paper's figures beside ours, what was left out, and how it was measured."""
    labels = [model["label"] for model in results["models"]]
    papers = list(dict.fromkeys(name for row in results["rows"] for name in row["paper"]))
    head = ["", *labels, *(f"paper: {name}" for name in papers)]
    rows, group = [], ""
    for row in results["rows"]:
        if row["group"] != group:
            group = row["group"]
            rows.append([f"**{group}**"] + [""] * (len(head) - 1))
        unit = {"%": ", %", "of": ""}.get(row["unit"], f", {row['unit']}" if row["unit"] else "")
        cells = [text(row["figures"].get(label), row["unit"], digits=1) for label in labels]
        rows.append([row["label"] + unit, *cells, *(str(row["paper"].get(name, "–")) for name in papers)])
    lines = [f"# {results['title']}", "", table(head, rows), _measured(results), ""]
    lines += [f"* {note}" for note in results["notes"]]
    lines += _of_judges(results)
    if results["left_out"]:
        told = ", ".join(f"{count} × {kind}" for kind, count in results["left_out"].items())
        lines.append(f"* Left out and counted apart: {told} (each is named in {RESULTS}).")
    if results["undecided"]:
        lines.append(f"* The judge could not decide {results['undecided']} cases; they count as no success.")
    lines += [f"\n![{results['title']}]({name})" for name in plots]
    return "\n".join(lines) + "\n"


def _measured(results: Mapping[str, Any]) -> str:
    judge, machine, settings = results["judge"], results["machine"], results["settings"]
    who = judge["judge"]
    if who == "llm":
        who = f"{judge['model']} (prompt {judge['prompt']}, version {judge['version']})"
    decoding = "greedy" if settings["temperature"] == 0 else f"temperature {settings['temperature']}"
    return (
        f"{results['items']} questions, {decoding}; judged by {who}; 95 % intervals in brackets. "
        f"{results['created']}, minigpt4 {machine['minigpt4']}, {machine['cores']} cores ({machine['processor']})."
    )


def _of_judges(results: Mapping[str, Any]) -> list[str]:
    """A line for each pair of judges in `agreement`, and of models in `preferences`, if the results have them."""
    lines = []
    for pair in results.get("agreement", []):
        kappa = "not defined" if pair["kappa"] is None else f"{pair['kappa']:.2f}"
        agreed = f"{100 * pair['agreed']:.0f} % of {pair['cases']} cases (kappa {kappa})"
        lines.append(f"* {' and '.join(pair['judges'])} agree on {agreed}.")
    for pair in results.get("preferences", []):
        lines.append(
            f"* Between {' and '.join(pair['models'])}, people liked the first better {pair['wins']} times, the second "
            f"{pair['losses']} times, and both alike {pair['ties']} times."
        )
    return lines


def bars(results: Mapping[str, Any]) -> dict[str, bytes]:
    """A plot for each unit of the rows: file names and PNGs."""
    by_unit: dict[str, list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        if any(figure["value"] is not None for figure in row["figures"].values()):
            by_unit.setdefault("%" if row["unit"] == "of" else row["unit"], []).append(row)
    return {
        "plot.png" if number == 1 else f"plot-{number}.png": _plot(results, rows, unit)
        for number, (unit, rows) in enumerate(by_unit.items(), start=1)
    }


def _plot(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], unit: str) -> bytes:
    """Bars with their intervals, a colour for each model, and the paper's figures as marks."""
    from matplotlib.figure import Figure

    labels, scale = [model["label"] for model in results["models"]], 100 if unit == "%" else 1
    height = 0.8 / len(labels)
    canvas = Figure(figsize=(9.0, 1.5 + len(rows) * (0.2 + 0.15 * len(labels))), layout="constrained")
    axes = canvas.subplots()
    for number, label in enumerate(labels):
        given = [(place, row["figures"].get(label)) for place, row in enumerate(rows)]
        found = [(place, figure) for place, figure in given if figure and figure["value"] is not None]
        values = [scale * figure["value"] for _, figure in found]
        errors = [
            [0 if figure[edge] is None else scale * abs(figure["value"] - figure[edge]) for _, figure in found]
            for edge in ("low", "high")
        ]
        places = [place - 0.4 + height * (number + 0.5) for place, _ in found]
        axes.barh(places, values, height * 0.92, xerr=errors, capsize=2, label=label, color=f"C{number % 10}")
    papers = dict.fromkeys(name for row in rows for name in row["paper"])
    for marker, paper in zip("D*sv^", papers, strict=False):
        numbers = [(_number(row["paper"].get(paper, "")), place) for place, row in enumerate(rows)]
        if points := [(value, place) for value, place in numbers if value is not None]:
            axes.plot(*zip(*points, strict=True), marker, color="black", fillstyle="none", label=f"paper: {paper}")
    axes.set_yticks(range(len(rows)), [": ".join(filter(None, (row["group"], row["label"]))) for row in rows])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set(xlabel=unit or "score", title=results["title"])
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(fontsize="small", loc="outside lower center", ncols=4)
    return figure_png(canvas)


def _number(text: str) -> float | None:
    """The paper's figure as a number on the plot's axis; "18/25" is 72 of a hundred."""
    one, slash, other = text.replace("%", "").partition("/")
    try:
        return 100 * float(one) / float(other) if slash else float(one)
    except (ValueError, ZeroDivisionError):
        return None


def machine() -> dict[str, Any]:
    """The system, its processor and cores, and the versions that decide speed and answers."""
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers")},
        "minigpt4": __version__,
    }
