"""Results for the eye: a table in the terminal, and one HTML page with every picture, question and answer.

Works from the results alone, as they are saved in results.json, and knows no model. The page needs no network and no
other file. What a model wrote is untrusted: it is shown as text, and its web pages only in a frame without scripts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from minigpt4.images import data_url, encoded
from minigpt4.statistics import text
from pocket.shipped import render

THUMBNAIL = 160
TARGETS = "Targets after stage 2 (a rate misses if its interval does; machines differ by a few answers)"

#: The rows of the table: name of the rate, label, what it says. A heading has no rate.
ROWS = (
    ("", "Described scenes", ""),
    ("kind_colour", "kind and colour", "objects named with the right kind and colour"),
    ("place", "place", "objects put in the right place of nine"),
    ("", "Answers that fail", "repetition, fragment, empty, no end"),
    ("fails_describe", "description", "in detail, of every type of picture"),
    ("fails_poem", "poem", ""),
    ("", "Never trained on", "abilities that the projection saw no example of"),
    ("poem", "poem", "every object with its colour, nothing invented"),
    ("story", "story", "every object with its colour, nothing invented"),
    ("recipe", "recipe", "exactly the ingredients on the plate, steps that use them all"),
    ("advertise", "advertisement", "the product with its colour, a call to action"),
    ("funny", "what is funny", "animal and prop, and why they do not belong together"),
    ("website", "website", "well-formed HTML with the draft's title and elements in order"),
    ("count", "counting", "how many objects"),
    ("follow_up", "follow-up", "the second question of a conversation"),
    ("abilities", "all eight", ""),
    ("", "Also measured", ""),
    ("describe", "description", "every fact of the picture and nothing else"),
    ("colour", "colour", "of one object, in a word or a sentence"),
    ("where", "place", "of one object, in a word or a sentence"),
    ("exists", "is it there?", "yes or no"),
)


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print rates, targets, time and memory."""
    models = results["models"]
    rates = [
        [f"  {label}", *(text(results["rates"][model["key"]].get(name)) for model in models)]
        if name
        else [f"[bold]{label}[/bold]", *("" for _ in models)]
        for name, label, _ in ROWS
    ]
    heads = [model["name"] for model in models]
    colours = {"met": "[green]met[/green]", "missed": "[red]missed[/red]"}
    for title, head, rows in (("Held-out pictures, per cent (95 % interval)", heads, rates), *_tables(results)):
        in_words = title == TARGETS
        grid = Table(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
            collapse_padding=True,
        )  # fmt: skip
        grid.add_column("", no_wrap=not in_words)
        for heading in head:
            grid.add_column(heading, justify="left" if in_words else "right", no_wrap=not in_words)
        for row in rows:
            cells = (colours.get(cell, cell) for cell in row)
            grid.add_row(*cells, style="bold" if row[0] == "  all eight" else None)
        console.print()
        console.print(grid)


def _tables(results: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, rows): each target with what was reached, and the time and memory of each phase."""
    targets = [[t["name"], t["target"], t["reached"], "met" if t["met"] else "missed"] for t in results["targets"]]
    phases = [[p["name"], f"{p['seconds']:.1f}", f"{p['peak_mb']:.0f}"] for p in results["phases"]]
    return [
        (TARGETS, ["target", "reached", "verdict"], targets),
        ("Time and memory", ["seconds", "peak memory so far, MB"], phases),
    ]


def page(results: Mapping[str, Any], directory: Path, figures: Mapping[str, Path]) -> str:
    """The whole page as HTML, of results.json's content; below the tables stand `figures`, PNG files by their captions.

    The pictures' `file` paths are relative to `directory`.
    """
    targets, phases = _tables(results)
    return render(
        "demo/page.html",
        results=results,
        models=results["models"],
        rows=ROWS,
        targets=targets,
        phases=phases,
        text=text,
        figures={caption: data_url(path.read_bytes(), "png") for caption, path in figures.items()},
        thumbnails=[_thumbnail(directory / picture["file"]) for picture in results["pictures"]],
        size=THUMBNAIL,
    )


def _thumbnail(path: Path) -> str:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_url(encoded(small, "JPEG", quality=82), "jpeg")
