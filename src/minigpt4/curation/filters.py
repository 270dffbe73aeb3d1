"""The rules that leave out what went wrong, each with a name, a measure and a threshold (paper, 3.2).

A rule measures one number of a text or its picture and catches what lies beyond its threshold. Thresholds come from a
YAML file (`name: number`, or `name: null` to switch a rule off). All are judged anew at every run, and a new verdict is
recorded where it differs from the last. Knows nothing about how scores of grounding come to be.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigpt4.curation import language
from minigpt4.curation.ledger import Item, Ledger
from minigpt4.documents import read_yaml
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.images import open_image
from minigpt4.progress import progress_bar
from minigpt4.telling import shown
from minigpt4.text_failures import foreign_share

logger = logging.getLogger(__name__)

HASH_SIDE = 16
#: No text that is missing a measure is caught by the rule; so a project without grounding can be filtered too.
Measure = Callable[[Item], float | None]


@dataclass(frozen=True)
class Rule:
    """One rule: it catches what its measure puts above the threshold (or below it, where `above` is False)."""

    name: str
    what: str
    threshold: float
    above: bool
    measure: Measure | None = None  # None: depends on the other texts, see `measure_all`

    def catches(self, value: float | None, threshold: float | None) -> bool:
        if value is None or threshold is None:
            return False
        return value > threshold if self.above else value < threshold


def _grounding(name: str) -> Measure:
    return lambda item: item.grounding.data[name] if item.grounding is not None else None


RULES: tuple[Rule, ...] = (
    Rule("too_short", "words", 8, False, lambda item: len(language.words(item.text))),
    Rule("too_long", "words", 300, True, lambda item: len(language.words(item.text))),
    Rule(
        "unfinished", "breaks off, or is empty", 0, True, lambda item: language.count_unfinished(item.text, item.ended)
    ),
    Rule("fragments", "pieces that are no whole sentences", 0, True, lambda item: language.count_fragments(item.text)),
    Rule("repeated_ngrams", "share of runs of four words", 0.2, True, lambda item: language.repeated_share(item.text)),
    Rule("repeated_sentences", "sentences", 0, True, lambda item: language.count_repeated_sentences(item.text)),
    Rule("apology", "phrases", 0, True, lambda item: language.count_apologies(item.text)),
    Rule("assistant_talk", "phrases", 0, True, lambda item: language.count_assistant_talk(item.text)),
    Rule("non_english", "share of letters, or 1", 0.1, True, lambda item: foreign_share(item.text)),
    Rule("markup", "tags, links, marks", 0, True, lambda item: language.count_markup(item.text)),
    Rule("duplicate_picture", f"bits of {HASH_SIDE**2} that differ from an earlier picture", 6, False),
    Rule("duplicate_text", "earlier texts with the same words", 0, True),
    Rule("ungrounded_sentence", "grounding of the least supported sentence", 0.1, False, _grounding("lowest")),
    Rule("ungrounded_text", "grounding of the whole text", 0.2, False, _grounding("whole")),
)
Thresholds = Mapping[str, float | None]
DEFAULTS: Thresholds = {rule.name: rule.threshold for rule in RULES}


def load_thresholds(path: Path | None) -> dict[str, float | None]:
    """The thresholds of a YAML file, and the defaults for rules that it does not name.

    Raises UserError for a file that is not `rule: number` lines, or names a rule that does not exist.
    """
    if path is None:
        return dict(DEFAULTS)
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"rules {path}: expected `rule: number` lines")
    for name, value in values.items():
        if name not in DEFAULTS:
            near = difflib.get_close_matches(str(name), DEFAULTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the rules are {', '.join(DEFAULTS)}"
            raise UserError(f"rules {path}: there is no rule {name!r:.60}; {hint}")
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"rules {path}: {name} = {value!r:.60}: expected a number, or null to switch the rule off")
    return {**DEFAULTS, **values}


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write the thresholds as a YAML file that explains itself."""
    lines = ["# minigpt4 curate filter: what lies beyond its number is left out; null switches a rule off."]
    for rule in RULES:
        value = thresholds[rule.name]
        beyond = "above" if rule.above else "below"
        lines.append(f"{rule.name}: {'null' if value is None else value}  # {beyond}: {rule.what}")
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def difference_hash(image: Image.Image) -> np.ndarray:
    """A perceptual hash: whether each of 16 x 16 cells is brighter than its right neighbour, as 4 uint64.

    Pictures that were scaled, recompressed or slightly recoloured differ in few bits of 256.
    """
    small = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, :-1] > small[:, 1:]).view(np.uint64)


def picture_hashes(ledger: Ledger, items: Sequence[Item]) -> dict[str, np.ndarray]:
    """The hash of every picture that can be read; each picture is decoded once in the life of a project."""
    known = {e.picture: np.array(e.data["hash"], dtype=np.uint64) for e in ledger.events("hash")}
    settings = ledger.settings("hash", {"side": HASH_SIDE})
    missing = {item.picture.name: item for item in items if item.picture.name not in known}
    with progress_bar() as bar:
        task = bar.add_task("hash pictures", total=len(missing), note="")
        for name, item in missing.items():
            try:
                known[name] = difference_hash(open_image(item.picture.read()))
                ledger.add("hash", settings, [((name, 0), 0, {"hash": known[name].tolist()})])
            except UserError as error:
                logger.warning("left out: %s", error)
            bar.advance(task)
    return known


def measure_all(items: Sequence[Item], hashes: Mapping[str, np.ndarray]) -> list[dict[str, float | None]]:
    """What every rule measures of every item, in order; a duplicate is one of something that stands before it."""
    names = list(dict.fromkeys(item.picture.name for item in items if item.picture.name in hashes))
    table = np.stack([hashes[name] for name in names]) if names else np.zeros((0, 4), dtype=np.uint64)
    nearest: dict[str, float | None] = {}
    for i, name in enumerate(names):
        nearest[name] = float(np.bitwise_count(table[:i] ^ table[i]).sum(1).min()) if i else None
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        values = {rule.name: rule.measure(item) for rule in RULES if rule.measure is not None}
        said = " ".join(language.words(item.text))
        values["duplicate_picture"] = nearest.get(item.picture.name)
        values["duplicate_text"] = seen[said]
        seen[said] += 1
        found.append({rule.name: values[rule.name] for rule in RULES})
    return found


def caught_by(values: Mapping[str, float | None], thresholds: Thresholds) -> list[str]:
    """The names of the rules that catch a text with these measures."""
    return [rule.name for rule in RULES if rule.catches(values[rule.name], thresholds[rule.name])]


def filter_items(ledger: Ledger, thresholds: Thresholds, *, only: Iterable[str] = ()) -> dict[str, Any]:
    """Judge every present text; returns `{"kept": n, "caught": {rule: how many}, "changed": n}`.

    `only` records verdicts for these pictures alone; duplicates are still looked for among all.
    """
    with ledger.lock("filter"):
        items = ledger.items()
        wanted = {item.picture.name for item in ledger.items(only)}
        measured = measure_all(items, picture_hashes(ledger, items))
        settings = ledger.settings("filter", dict(thresholds))
        rows, caught, kept = [], Counter[str](), 0
        for item, values in zip(items, measured, strict=True):
            if item.picture.name not in wanted:
                continue
            data = {"caught": caught_by(values, thresholds), "values": values}
            caught.update(data["caught"])
            kept += not data["caught"]
            last = item.verdict
            if last is None or last.settings != settings or last.data != data:
                rows.append((item.key, item.source.seq, data))
        ledger.add("filter", settings, rows, ledger.next_turn("filter"))
        return {"kept": kept, "caught": {rule.name: caught[rule.name] for rule in RULES}, "changed": len(rows)}


def write_stats(ledger: Ledger, thresholds: Thresholds, out: Path, examples: int = 3) -> Path:
    """Write `stats.png` (every measure's distribution, with its threshold) and `stats.md` (the texts nearest to each
    threshold, on both sides) into `out`, and `rules.yaml` to edit; returns the path of `stats.md`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import io

    from matplotlib import pyplot

    items = ledger.items()
    if not items:
        raise UserError(f"{ledger.project}: holds no text yet; describe or import first")
    measured = measure_all(items, picture_hashes(ledger, items))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be made ({error.strerror})") from None
    rows = -(-len(RULES) // 3)
    figure, axes = pyplot.subplots(rows, 3, figsize=(13, 2.6 * rows), layout="constrained")
    lines = [f"# What the rules measure: {len(items)} texts", ""]
    for axis in axes.flat[len(RULES) :]:
        axis.set_visible(False)
    for rule, axis in zip(RULES, axes.flat, strict=False):
        threshold = thresholds[rule.name]
        having = [
            (value, item)
            for item, values in zip(items, measured, strict=True)
            if (value := values[rule.name]) is not None
        ]
        axis.hist([value for value, _ in having], bins=40)
        axis.set_title(rule.name, fontsize=9)
        axis.set_xlabel(rule.what, fontsize=8)
        caught = [rule.catches(value, threshold) for value, _ in having]
        lines += [f"## {rule.name}", ""]
        if threshold is None:
            lines += ["Switched off.", ""]
            continue
        axis.axvline(threshold, color="tab:red")
        beyond = "above" if rule.above else "below"
        lines += [f"Catches {sum(caught)} of {len(having)}: {rule.what}, {beyond} {threshold:g}.", ""]
        for side, title in ((True, "Just caught"), (False, "Just kept")):
            near = sorted(
                (pair for pair, is_caught in zip(having, caught, strict=True) if is_caught is side),
                key=lambda pair: abs(pair[0] - threshold),
            )[:examples]
            for value, item in near:
                line = f"- {title} ({value:.3g}), {item.picture.name}: {' '.join(item.text.split())}"
                lines.append(shown(line).replace("<", "&lt;"))
        lines.append("")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    pyplot.close(figure)
    write_atomically(out / "stats.png", picture.getvalue())
    write_atomically(out / "stats.md", "\n".join(lines).encode())
    write_thresholds(out / "rules.yaml", thresholds)
    return out / "stats.md"
