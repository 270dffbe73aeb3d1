"""Results for the eye: a table in the terminal, and one HTML page with every picture, question and answer.

Works from the results alone (see `demo.py`), as they are saved in results.json, and knows no model. The page needs no
network and no other file. What a model wrote is untrusted: it is shown as text, and its web pages only in a frame
without scripts.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from minigpt4.images import data_url
from minigpt4.statistics import text

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
    rates = [
        [
            f"  {label}" if name else f"[bold]{label}[/bold]",
            *(_rate(results, model, name) for model in results["models"]),
        ]
        for name, label, _ in ROWS
    ]
    heads = [model["name"] for model in results["models"]]
    for title, head, rows in (("Held-out pictures, per cent (95 % interval)", heads, rates), *_tables(results)):
        grid = Table(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
            collapse_padding=True,
        )  # fmt: skip
        grid.add_column("", no_wrap=title != TARGETS)
        for heading in head:
            grid.add_column(heading, justify="left" if title == TARGETS else "right", no_wrap=title != TARGETS)
        for row in rows:
            colours = {"met": "[green]met[/green]", "missed": "[red]missed[/red]"}
            grid.add_row(*(colours.get(text, text) for text in row), style="bold" if row[0] == "  all eight" else None)
        console.print()
        console.print(grid)


def _rate(results: Mapping[str, Any], model: Mapping[str, Any], name: str) -> str:
    return text(results["rates"][model["key"]].get(name)) if name else ""


def _tables(results: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, head, rows): each target with what was reached, and the time and memory of each phase."""
    targets = [[t["name"], t["target"], t["reached"], "met" if t["met"] else "missed"] for t in results["targets"]]
    phases = [[p["name"], f"{p['seconds']:.1f}", f"{p['peak_mb']:.0f}"] for p in results["phases"]]
    return [
        (TARGETS, ["target", "reached", "verdict"], targets),
        ("Time and memory", ["seconds", "peak memory so far, MB"], phases),
    ]


def page(results: Mapping[str, Any], directory: Path, figures: Mapping[str, Path]) -> str:
    """The whole page as HTML.

    Args:
        results: As in results.json; the pictures' `file` paths are relative to `directory`.
        directory: Where the pictures are.
        figures: PNG files to show below the table, by their captions.
    """
    shown = "".join(
        f'<figure><img src="{data_url(path.read_bytes(), "png")}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in figures.items()
    )
    thumbnails = [_thumbnail(directory / picture["file"]) for picture in results["pictures"]]
    cards = "".join(_card(results, question, thumbnails) for question in results["questions"])
    targets, phases = (_table(*parts) for parts in _tables(results))
    parts = {
        "summary": _summary(results), "targets": targets, "rates": _rates(results), "figures": shown,
        "phases": phases, "filters": _filters(results), "cards": cards,
    }  # fmt: skip
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _thumbnail(path: Path) -> str:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return data_url(buffer.getvalue(), "jpeg")


def _summary(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    return escape(
        f"{len(results['questions'])} questions about {len(results['pictures'])} pictures that nothing was trained on, "
        f"{results['created']}, {machine['cores']} cores ({machine['processor']}), minigpt4 {machine['minigpt4']}, "
        f"torch {machine['torch']}."
    )


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = {"met": _mark(True, "met", ""), "missed": _mark(False, "", "missed")}
    lines = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{marks.get(x, escape(x))}</td>" for x in rest)}</tr>'
        for first, *rest in rows
    )
    heads = "".join(f'<th scope="col">{heading}</th>' for heading in head)
    return f"<table><caption>{title}</caption><tr><td></td>{heads}</tr>{lines}</table>"


def _rates(results: Mapping[str, Any]) -> str:
    head = "".join(
        f'<th scope="col" title="{escape(model["what"])}">{escape(model["name"])}</th>' for model in results["models"]
    )
    rows = ""
    for name, label, meaning in ROWS:
        label = escape(label) + (f' <span class="soft">{escape(meaning)}</span>' if meaning else "")
        if not name:
            rows += f'<tr><th colspan="{len(results["models"]) + 1}" scope="colgroup">{label}</th></tr>'
            continue
        cells = ""
        for model in results["models"]:
            rate = results["rates"][model["key"]].get(name)
            share = 100 * rate["value"] if rate and rate["total"] else 0
            cells += f'<td class="bar" style="--share:{share:.0f}%">{text(rate)}</td>'
        rows += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    caption = "Per cent, with 95 % Wilson interval"
    return f'<table class="rates"><caption>{caption}</caption><tr><td></td>{head}</tr>{rows}</table>'


def _filters(results: Mapping[str, Any]) -> str:
    abilities = dict.fromkeys(question["ability"] for question in results["questions"])
    ability_options = "".join(f'<option value="{a}">{escape(a.replace("_", "-"))}</option>' for a in abilities)
    model_options = "".join(
        f'<option value="{m["key"]}"{" selected" if m["key"] == "stage2" else ""}>{escape(m["name"])}</option>'
        for m in results["models"]
    )
    return (
        f'<label>Ability <select name="ability"><option value="">all</option>{ability_options}</select></label>'
        f'<label>Model <select name="model"><option value="">all</option>{model_options}</select></label>'
        '<label>Answers <select name="verdict"><option value="">all</option><option>right</option>'
        "<option>wrong</option></select></label>"
    )


def _card(results: Mapping[str, Any], question: Mapping[str, Any], thumbnails: list[str]) -> str:
    picture = results["pictures"][question["picture"]]
    truth = ", ".join(picture["facts"])
    before = results["questions"][question["after"]] if question["after"] is not None else None
    answers = ""
    for model in results["models"]:
        answer = question["answers"][model["key"]]
        said = f"<pre>{escape(answer['text']) or '(nothing)'}</pre>"
        if before:
            earlier = before["answers"][model["key"]]["text"]
            said = f'<p class="before">{escape(before["text"])} <i>{escape(earlier)}</i></p>{said}'
        if question["ability"] == "website" and answer["text"].startswith("<"):
            said += (
                '<details><summary>Preview</summary><iframe sandbox loading="lazy" title="The page that was written" '
                f'srcdoc="{escape(answer["text"])}"></iframe></details>'
            )
        faults = "; ".join(filter(None, (answer["reason"], answer["failure"])))
        mark = _mark(answer["success"], "right", "wrong")
        verdict = "right" if answer["success"] else "wrong"
        answers += (
            f'<div class="answer" data-model="{model["key"]}" data-verdict="{verdict}">'
            f'<p class="by">{escape(model["name"])} {mark}</p>{said}'
            + (f'<p class="fault">{escape(faults)}</p>' if faults else "")
            + "</div>"
        )
    return (
        f'<article class="card" data-ability="{question["ability"]}">'
        f'<img src="{thumbnails[question["picture"]]}" width="{THUMBNAIL}" height="{THUMBNAIL}" loading="lazy" '
        f'alt="{escape(truth)}" title="{escape(truth)}">'
        f"<div><h3>{escape(question['text'])}</h3>{answers}</div></article>"
    )


def _mark(good: bool, yes: str, no: str) -> str:
    return f'<span class="{"good" if good else "bad"}">{"✓ " + yes if good else "✗ " + no}</span>'
