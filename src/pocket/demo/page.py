"""Results for the eye: a table in the terminal, and one HTML page with every picture, question and answer.

Works from the results alone (see `demo.py`), as they are saved in results.json, and knows no model. The page needs no
network and no other file. What a model wrote is untrusted: it is shown as text, and its web pages only in a frame
without scripts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

THUMBNAIL = 160

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
    for grid in (_rates_table(results), _targets_table(results), _phases_table(results)):
        console.print()
        console.print(grid)


def cell(rate: Mapping[str, Any] | None) -> str:
    """ "92 (85–96)": per cent and its interval."""
    if not rate or not rate["total"]:
        return "–"
    return f"{100 * rate['share']:.0f} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def _rates_table(results: Mapping[str, Any]) -> Table:
    """The rates of all models side by side."""
    grid = _table("Held-out pictures, per cent (95 % interval)")
    grid.add_column("", no_wrap=True)
    for model in results["models"]:
        grid.add_column(model["name"], justify="right", no_wrap=True)
    for name, label, _ in ROWS:
        if not name:
            grid.add_row(f"[bold]{label}[/bold]")
            continue
        cells = [cell(results["rates"][model["key"]].get(name)) for model in results["models"]]
        grid.add_row(f"  {label}", *cells, style="bold" if name == "abilities" else None)
    return grid


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _targets_table(results: Mapping[str, Any]) -> Table:
    """Each target, what was reached, and whether it is met."""
    grid = _table("Targets after stage 2")
    for heading in ("", "target", "reached", ""):
        grid.add_column(heading)
    for target in results["targets"]:
        verdict = "[green]met[/green]" if target["met"] else "[red]missed[/red]"
        grid.add_row(target["name"], target["target"], target["reached"], verdict)
    return grid


def _phases_table(results: Mapping[str, Any]) -> Table:
    """Wall time of each phase, and the process's peak memory at its end."""
    grid = _table("Time and memory")
    grid.add_column("")
    grid.add_column("seconds", justify="right")
    grid.add_column("peak memory so far, MB", justify="right")
    for phase in results["phases"]:
        grid.add_row(phase["name"], f"{phase['seconds']:.1f}", f"{phase['peak_mb']:.0f}")
    return grid


def page(results: Mapping[str, Any], directory: Path, figures: Mapping[str, Path]) -> str:
    """The whole page as HTML.

    Args:
        results: As in results.json; the pictures' `file` paths are relative to `directory`.
        directory: Where the pictures are.
        figures: PNG files to show below the table, by their captions.
    """
    shown = "".join(
        f'<figure><img src="{_data_url(path.read_bytes(), "png")}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, path in figures.items()
    )
    thumbnails = [_thumbnail(directory / picture["file"]) for picture in results["pictures"]]
    cards = "".join(_card(results, question, thumbnails) for question in results["questions"])
    return _PAGE.format(
        style=_STYLE,
        script=_SCRIPT,
        summary=_summary(results),
        targets=_targets(results),
        rates=_rates(results),
        figures=shown,
        phases=_phases(results),
        filters=_filters(results),
        cards=cards,
    )


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _thumbnail(path: Path) -> str:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return _data_url(buffer.getvalue(), "jpeg")


def _summary(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    return escape(
        f"{len(results['questions'])} questions about {len(results['pictures'])} pictures that nothing was trained on, "
        f"{results['created']}, {machine['cores']} cores ({machine['processor']}), minigpt4 {machine['minigpt4']}, "
        f"torch {machine['torch']}."
    )


def _targets(results: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(target["name"])}</th><td>{escape(target["target"])}</td>'
        f"<td>{escape(target['reached'])}</td><td>{_mark(target['met'], 'met', 'missed')}</td></tr>"
        for target in results["targets"]
    )
    return (
        f'<table><caption>Targets after stage 2</caption><tr><td></td><th scope="col">target</th>'
        f'<th scope="col">reached</th><th scope="col">verdict</th></tr>{rows}</table>'
    )


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
            share = 100 * rate["share"] if rate and rate["total"] else 0
            cells += f'<td class="bar" style="--share:{share:.0f}%">{cell(rate)}</td>'
        rows += f'<tr><th scope="row">{label}</th>{cells}</tr>'
    caption = "Per cent, with 95 % Wilson interval"
    return f'<table class="rates"><caption>{caption}</caption><tr><td></td>{head}</tr>{rows}</table>'


def _phases(results: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(phase["name"])}</th><td>{phase["seconds"]:.1f}</td>'
        f"<td>{phase['peak_mb']:.0f}</td></tr>"
        for phase in results["phases"]
    )
    return (
        '<table><caption>Time and memory</caption><tr><td></td><th scope="col">seconds</th>'
        f'<th scope="col">peak memory so far, MB</th></tr>{rows}</table>'
    )


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


_STYLE = """
:root{color-scheme:light dark;--ink:#1d2330;--soft:#5b6475;--paper:#fbfaf7;--card:#fff;--line:#dcdfe6;--bar:#cfe3f7;
--good:#14703a;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e7e9ee;--soft:#a3abba;--paper:#14171d;--card:#1c2129;--line:#343b47;
--bar:#234a70;--good:#6fd597;--bad:#ff9a90}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1rem 4rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,sans-serif}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{margin:2.2rem 0 .6rem;font-size:1.25rem}h3{margin:0 0 .5rem;font-size:1rem}
.soft,figcaption,.before,.fault,caption{color:var(--soft)}
table{border-collapse:collapse;margin:1rem 0;max-width:100%}caption{text-align:left;padding-bottom:.3rem}
th,td{padding:.25rem .7rem;text-align:left;border-bottom:1px solid var(--line);font-weight:400}
th[scope=col],th[scope=colgroup]{font-weight:600}th[scope=colgroup]{padding-top:.9rem}
.rates td,.rates th[scope=col]{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.bar{background:linear-gradient(var(--bar) 0 0) no-repeat left/var(--share) 100%}
.scroll{overflow-x:auto}.figures{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0;flex:0 1 34rem}
figure img{width:100%;background:#fff;border-radius:6px}
form{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;gap:.5rem 1.2rem;padding:.7rem 0;
background:var(--paper);border-bottom:1px solid var(--line)}
select{font:inherit;padding:.15rem .3rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(34rem,100%),1fr));gap:1rem;margin-top:1rem}
.card{display:flex;gap:1rem;padding:.9rem;background:var(--card);border:1px solid var(--line);border-radius:10px;
content-visibility:auto;contain-intrinsic-size:auto 12rem}
.card>div{min-width:0;flex:1}.card>img{border-radius:6px;flex:none;align-self:flex-start;object-fit:cover}
.answer:not([hidden])~.answer{margin-top:.8rem;border-top:1px dashed var(--line);padding-top:.6rem}
.answer p{margin:0}.by{font-size:.85rem}.fault{font-size:.85rem}
pre{margin:.2rem 0;white-space:pre-wrap;overflow-wrap:anywhere;font:inherit}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
iframe{width:100%;height:16rem;border:1px solid var(--line);border-radius:6px;background:#fff}
[hidden]{display:none!important}
@media(max-width:40rem){.card{flex-direction:column}.rates .soft{display:none}}
"""

_SCRIPT = """
const form = document.querySelector("form"), cards = [...document.querySelectorAll(".card")];
function show() {
  const {ability, model, verdict} = Object.fromEntries(new FormData(form));
  let shown = 0;
  for (const card of cards) {
    let any = false;
    for (const answer of card.querySelectorAll(".answer")) {
      answer.hidden = Boolean(model && answer.dataset.model !== model);
      any ||= !answer.hidden && (!verdict || answer.dataset.verdict === verdict);
    }
    card.hidden = !any || Boolean(ability && card.dataset.ability !== ability);
    shown += !card.hidden;
  }
  document.querySelector("output").textContent = `${shown} of ${cards.length} questions`;
}
form.addEventListener("input", show);
show();
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>MiniGPT-4, the pocket model: what one linear layer can do</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>The pocket MiniGPT-4</h1>
<p class="soft">A frozen vision tower and a frozen LLM, aligned through one linear layer. {summary}</p>
</header>
<main>
<section aria-labelledby="measured"><h2 id="measured">Measured against ground truth</h2>
<div class="scroll">{targets}</div><div class="scroll">{rates}</div>
<div class="figures">{figures}</div>
<div class="scroll">{phases}</div></section>
<section aria-labelledby="answers"><h2 id="answers">Every picture, question and answer</h2>
<form aria-label="Filter the answers">{filters}<output aria-live="polite"></output></form>
<div class="cards">{cards}</div></section>
</main>
<script>{script}</script>
</body>
</html>
"""
