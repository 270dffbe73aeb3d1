"""The finished dataset: `cc_sbu_align`, as stage 2 reads it, or a Hugging Face image folder with its card.

A split is decided by the picture's content, so the same picture never stands on both sides, and adding pictures moves
none. Knows nothing about how the texts came to be, beyond what the ledger tells for the card.
"""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import yaml

from minigpt4.curation.ledger import Item, Ledger
from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.images import open_image

logger = logging.getLogger(__name__)

Format = Literal["cc_sbu_align", "imagefolder"]


def finished(ledger: Ledger) -> list[tuple[Item, str]]:
    """The items to export, with their final texts: kept by rules and selection, not rejected in review.

    Of several samples of a picture it is the one that a person accepted, or else the best grounded, or the first.
    """
    best: dict[str, tuple[tuple[bool, float], Item, str]] = {}
    for item in ledger.items():
        text = item.final
        if not item.kept or text is None or not text.strip():
            continue
        worth = (bool(item.reviews), item.grounding.data["whole"] if item.grounding is not None else float("-inf"))
        if item.picture.name not in best or worth > best[item.picture.name][0]:
            best[item.picture.name] = (worth, item, text.strip())
    return [(item, text) for _, item, text in best.values()]


def export(
    ledger: Ledger, out: Path, form: Format, *, validation: float = 0.0, license: str | None = None
) -> dict[str, int]:
    """Write the finished texts and their pictures into `out`, a new directory; returns counts by split.

    With `validation` (a share) a `cc_sbu_align` has two directories, `train` and `validation`, and an image folder two
    splits. Pictures that are gone are left out, with a warning. Raises UserError if nothing is left.
    """
    if not 0 <= validation < 1:
        raise UserError(f"--validation {validation}: give a share from 0 to below 1")
    rows = finished(ledger)
    counts: Counter[str] = Counter()
    marker = "README.md" if form == "imagefolder" else ("train/filter_cap.json" if validation else "filter_cap.json")
    with new_directory(out, marker=marker) as directory:
        parts: dict[str, list[dict[str, Any]]] = {}
        for item, text in rows:
            try:
                data = item.picture.read()
                jpeg = data if data[:2] == b"\xff\xd8" else _to_jpeg(data)
            except UserError as error:
                logger.warning("left out: %s", error)
                counts["left out"] += 1
                continue
            split = "validation" if int(item.picture.sha256[:8], 16) / 2**32 < validation else "train"
            counts[split] += 1
            part = parts.setdefault(split, [])
            # Plain numbers, as in the released set: a name of the project's may hold anything.
            image_id = str(sum(map(len, parts.values())) + 1)
            place = _place(form, split, bool(validation))
            (directory / place).mkdir(parents=True, exist_ok=True)
            (directory / place / f"{image_id}.jpg").write_bytes(jpeg)
            part.append(_row(form, image_id, item, text))
        if not counts["train"]:
            raise UserError(f"{ledger.project}: there is no finished text to export")
        for split, part in parts.items():
            where = directory / _place(form, split, bool(validation))
            if form == "cc_sbu_align":
                text = json.dumps({"annotations": part}, indent=1, ensure_ascii=False)
                (where.parent / "filter_cap.json").write_text(text, encoding="utf-8")
            else:
                lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
                (where / "metadata.jsonl").write_text(lines, encoding="utf-8")
        if form == "imagefolder":
            (directory / "README.md").write_text(card(ledger, counts, license), encoding="utf-8")
    return dict(counts)


def _place(form: Format, split: str, is_split: bool) -> str:
    if form == "imagefolder":
        return split
    return f"{split}/image" if is_split else "image"


def _row(form: Format, image_id: str, item: Item, text: str) -> dict[str, Any]:
    if form == "cc_sbu_align":
        return {"image_id": image_id, "caption": text}
    return {
        "file_name": f"{image_id}.jpg",
        "text": text,
        "raw_text": item.raw.data["text"],
        "source_name": item.picture.name,
        "grounding": item.grounding.data["whole"] if item.grounding is not None else None,
        "reviewed": bool(item.reviews),
    }


def _to_jpeg(data: bytes) -> bytes:
    buffer = io.BytesIO()
    open_image(data).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def summary(ledger: Ledger) -> dict[str, Any]:
    """What every step did, by counts, and what it was done with: for the card and for `curate status`."""
    items = ledger.items()
    verdicts = [item.verdict for item in items if item.verdict is not None]
    refined = [item.refined for item in items if item.refined is not None]
    used: dict[str, list[dict[str, Any]]] = {}
    events = {event.settings for event in ledger.events("describe", "refine", "ground")}
    for key, (step, value) in ledger.all_settings().items():
        if key in events:
            used.setdefault(step, []).append(value)
    return {
        "counts": {
            "pictures": len(ledger.pictures()),
            "described": len(items),
            "asked to continue": sum(item.raw.data["continuations"] > 0 for item in items),
            "refined": sum(event.data["accepted"] for event in refined),
            "refined text rejected": sum(not event.data["accepted"] for event in refined),
            "caught by a rule": sum(bool(event.data["caught"]) for event in verdicts),
            "selected": sum(item.selection is not None and item.selection.data["selected"] for item in items),
            "reviewed": sum(bool(item.reviews) for item in items),
            "rejected in review": sum(bool(item.reviews) and item.final is None for item in items),
            "finished": len(finished(ledger)),
        },
        "rules": dict(Counter(name for event in verdicts for name in event.data["caught"]).most_common()),
        "refusals": dict(Counter(event.data["reason"] for event in refined if event.data["reason"]).most_common()),
        "made with": used,
    }


def card(ledger: Ledger, splits: Counter[str], license: str | None) -> str:
    """The dataset card: front matter that the hub reads, counts per step, reasons, models and prompts."""
    facts = summary(ledger)
    front = {
        "license": license or "unknown",
        "task_categories": ["image-to-text"],
        "language": ["en"],
        "size_categories": [_size(splits["train"] + splits["validation"])],
    }
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", "", f"# {ledger.project.resolve().name}", ""]
    lines += ["Pictures with detailed descriptions for stage 2, made with `minigpt4 curate`.", ""]
    if license is None:
        lines += ["The licence of the pictures is not stated: find it out before you pass them on.", ""]
    lines += ["| step | texts |", "|---|---|"]
    lines += [f"| {name} | {count:,} |" for name, count in facts["counts"].items()]
    lines += [f"| in split {name} | {splits[name]:,} |" for name in ("train", "validation") if splits[name]]
    for title, reasons in (("Caught by the rules", facts["rules"]), ("Refined texts not taken", facts["refusals"])):
        if reasons:
            lines += ["", f"## {title}", "", "| reason | texts |", "|---|---|"]
            lines += [f"| {reason} | {count:,} |" for reason, count in reasons.items()]
    lines += ["", "## Made with", "", "```yaml"]
    # Where the data lay is nobody's business but their owner's.
    made = {
        step: [{key: value for key, value in used.items() if key != "from"} for used in settings]
        for step, settings in facts["made with"].items()
    }
    lines += [yaml.safe_dump(made, sort_keys=True, allow_unicode=True, width=110).strip(), "```", ""]
    lines += ["Fields: `text`, `raw_text` (before refining), `grounding` (of the whole text, at most 1),"]
    lines += ["`reviewed` (whether a person looked at it), `source_name`.", ""]
    return "\n".join(lines)


def _size(count: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return name
    return "100K<n<1M"
