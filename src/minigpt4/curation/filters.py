"""The rules that leave out broken texts (paper, 3.2): each compares a number with a threshold, from a YAML file."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minigpt4.curation import language
from minigpt4.curation.ledger import Description, Ledger
from minigpt4.documents import did_you_mean, read_yaml
from minigpt4.errors import UserError
from minigpt4.files import failed_write_is_a_user_error, write_atomically
from minigpt4.images import figure_png, open_image
from minigpt4.progress import progress_bar
from minigpt4.telling import shown
from minigpt4.text_failures import failure, foreign_share, words

HASH_SIDE = 16


@dataclass(frozen=True)
class FilterRule:
    """A rule: it catches a text whose measure lies on this side, "above" or "below", of the threshold."""

    name: str
    unit: str
    side: str
    threshold: float

    def catches(self, value: float | None, threshold: float | None) -> bool:
        """Whether a text with this measure is caught; never without a measure, or if the rule is switched off."""
        if value is None or threshold is None:
            return False
        return value > threshold if self.side == "above" else value < threshold


RULES = tuple(FilterRule(name, **told) for name, told in read_yaml(Path(__file__).with_name("rules.yaml")).items())
Thresholds = Mapping[str, float | None]
DEFAULTS: Thresholds = {rule.name: rule.threshold for rule in RULES}


def load_thresholds(path: Path | None) -> dict[str, float | None]:
    """The thresholds of a YAML file, with defaults for the rules that it leaves out. Raises UserError."""
    values = (read_yaml(path) or {}) if path is not None else {}
    if not isinstance(values, dict):
        raise UserError(f"rules {path}: expected `rule: number` lines")
    for name, value in values.items():
        if name not in DEFAULTS:
            hint = did_you_mean(str(name), DEFAULTS, cutoff=0.6) or f"; the rules are {', '.join(DEFAULTS)}"
            raise UserError(f"rules {path}: there is no rule {name!r:.60}{hint}")
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise UserError(f"rules {path}: {name} = {value!r:.60}: expected a number, or null to switch the rule off")
    return {**DEFAULTS, **values}


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Write the thresholds as a YAML file with a comment on each rule."""
    lines = ["# minigpt4 curate filter: texts on the given side of a threshold are left out; null switches a rule off."]
    lines += [f"{rule.name}: {json.dumps(thresholds[rule.name])}  # {rule.side}: {rule.unit}" for rule in RULES]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def difference_hash(image: Image.Image) -> np.ndarray:
    """A perceptual hash of 256 bits, as 4 uint64: whether a cell of 16 x 16 is brighter than its right neighbour."""
    small = np.asarray(image.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(small[:, :-1] > small[:, 1:]).view(np.uint64)


def image_hashes(ledger: Ledger, items: Sequence[Description]) -> dict[str, np.ndarray]:
    """The hash of every image that can be read, by its name; each is decoded once in the life of a project."""
    known = {event.image: np.array(event.data["hash"], dtype=np.uint64) for event in ledger.events("hash")}
    settings = ledger.settings("hash", {"side": HASH_SIDE})
    missing = {item.image.name: item.image for item in items if item.image.name not in known}
    with progress_bar() as bar:
        task = bar.add_task("hash images", total=len(missing), note="")
        for name, image in missing.items():
            if (data := image.read_if_there()) is not None:
                known[name] = difference_hash(open_image(data))
                ledger.add("hash", settings, [((name, 0), 0, {"hash": known[name].tolist()})])
            bar.advance(task)
    return known


def measure_all(items: Sequence[Description], hashes: Mapping[str, np.ndarray]) -> list[dict[str, float | None]]:
    """The measures of every text by rule; a duplicate is a text or image that repeats an earlier one."""
    names = list(dict.fromkeys(item.image.name for item in items if item.image.name in hashes))
    table = np.array([hashes[name] for name in names])
    nearest = {names[i]: float(np.bitwise_count(table[:i] ^ table[i]).sum(1).min()) for i in range(1, len(names))}
    seen: Counter[str] = Counter()
    found: list[dict[str, float | None]] = []
    for item in items:
        text, said = item.text, words(item.text)
        grounding = item.grounding or {}
        found.append({
            "too_short": len(said), "too_long": len(said),
            "unfinished": int(failure(text, item.ended) in ("fragment", "no end", "empty")),
            "fragments": language.count_fragments(text), "repeated_ngrams": language.repeated_share(text),
            "repeated_sentences": language.count_repeated_sentences(text),
            "apology": len(language.APOLOGIES.findall(text)),
            "assistant_talk": len(language.ASSISTANT_TALK.findall(text)),
            "non_english": foreign_share(text), "markup": len(language.MARKUP.findall(text)),
            "duplicate_picture": nearest.get(item.image.name), "duplicate_text": seen[" ".join(said)],
            "ungrounded_sentence": grounding.get("lowest"), "ungrounded_text": grounding.get("whole"),
        })  # fmt: skip
        seen[" ".join(said)] += 1
    return found


def caught_by(values: Mapping[str, float | None], thresholds: Thresholds) -> list[str]:
    """The names of the rules that catch a text with these measures."""
    return [rule.name for rule in RULES if rule.catches(values[rule.name], thresholds[rule.name])]


def filter_items(ledger: Ledger, thresholds: Thresholds, *, only: Iterable[str] = ()) -> dict[str, Any]:
    """Apply the rules to every current text, and record verdicts (on images `only`); {"kept", "caught", "changed"}."""
    with ledger.lock("filter"):
        items, wanted = ledger.items(), {image.name for image in ledger.images(only)}
        measured = measure_all(items, image_hashes(ledger, items))
        settings = ledger.settings("filter", dict(thresholds))
        rows, caught, kept = [], Counter[str](), 0
        for item, values in zip(items, measured, strict=True):
            if item.image.name not in wanted:
                continue
            data = {"caught": caught_by(values, thresholds), "values": values}
            caught.update(data["caught"])
            kept += not data["caught"]
            if item.verdict is None or (item.verdict.settings, item.verdict.data) != (settings, data):
                rows.append((item.key, item.source.seq, data))
        ledger.add("filter", settings, rows, ledger.next_turn("filter"))
        return {"kept": kept, "caught": {rule.name: caught[rule.name] for rule in RULES}, "changed": len(rows)}


def write_stats(ledger: Ledger, thresholds: Thresholds, out: Path) -> Path:
    """Write `stats.png` (distributions), `stats.md` (texts near thresholds) and `rules.yaml`; returns `stats.md`."""
    from matplotlib.figure import Figure

    items = ledger.items()
    if not items:
        raise UserError(f"{ledger.project}: holds no text yet; describe or import first")
    measured = measure_all(items, image_hashes(ledger, items))
    with failed_write_is_a_user_error(out):
        out.mkdir(parents=True, exist_ok=True)
    lines = -(-len(RULES) // 3)
    figure = Figure(figsize=(13, 2.6 * lines), layout="constrained")
    page = [f"# What the rules measure: {len(items)} texts\n"]
    for number, rule in enumerate(RULES, 1):
        values = [row[rule.name] for row in measured]
        having = [(value, item) for value, item in zip(values, items, strict=True) if value is not None]
        axis = figure.add_subplot(lines, 3, number)
        axis.hist([value for value, _ in having], bins=40)
        axis.set_title(rule.name, fontsize=9)
        axis.set_xlabel(rule.unit, fontsize=8)
        if (threshold := thresholds[rule.name]) is not None:
            axis.axvline(threshold, color="tab:red")
        page += [f"## {rule.name}\n", *_examples(rule, threshold, having), ""]
    write_atomically(out / "stats.png", figure_png(figure))
    write_atomically(out / "stats.md", "\n".join(page).encode())
    write_thresholds(out / "rules.yaml", thresholds)
    return out / "stats.md"


def _examples(
    rule: FilterRule, threshold: float | None, having: list[tuple[float, Description]], count: int = 3
) -> list[str]:
    """How many texts the rule catches, and the `count` texts nearest to the threshold on either side."""
    if threshold is None:
        return ["Switched off."]
    near = sorted(having, key=lambda pair: abs(pair[0] - threshold))
    caught = [pair for pair in near if rule.catches(pair[0], threshold)]
    kept = [pair for pair in near if not rule.catches(pair[0], threshold)]
    lines = [f"Catches {len(caught)} of {len(having)}: {rule.unit}, {rule.side} {threshold:g}.\n"]
    for title, texts in (("Just caught", caught), ("Just kept", kept)):
        for value, item in texts[:count]:
            line = f"- {title} ({value:.3g}), {item.image.name}: {' '.join(item.text.split())}"
            lines.append(shown(line).replace("<", "&lt;"))
    return lines
