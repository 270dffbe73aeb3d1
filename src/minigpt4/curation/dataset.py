"""The finished dataset, `cc_sbu_align` or a Hugging Face image folder. An image's content decides its split."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from minigpt4.curation.ledger import Description, Ledger
from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.images import open_image
from minigpt4.telling import table

SPLITS = ("train", "validation")


def finished(ledger: Ledger) -> list[tuple[Description, str]]:
    """What to export, with final texts: for each image the accepted one, or else the best grounded, or the first."""
    best: dict[str, tuple[tuple[bool, float], Description, str]] = {}
    for item in ledger.items():
        if item.kept and (text := (item.final or "").strip()):
            worth = bool(item.reviews), item.grounding["whole"] if item.grounding else -math.inf
            if item.image.name not in best or worth > best[item.image.name][0]:
                best[item.image.name] = worth, item, text
    return [(item, text) for _, item, text in best.values()]


def write_dataset(
    ledger: Ledger,
    out: Path,
    form: str,
    *,
    validation: float = 0.0,
    license: str | None = None,
    overwrite: bool = False,
) -> dict[str, int]:
    """Write finished texts and images to `out`, a new directory or a dataset to `overwrite`; returns counts by split.

    `form` is "cc_sbu_align" or "imagefolder". With `validation` (a share below 1) a `cc_sbu_align` has two directories,
    `train` and `validation`, and an image folder two splits. Images that are gone are left out; UserError if all are.
    """
    counts: Counter[str] = Counter()
    rows: dict[Path, list[dict[str, Any]]] = {}
    is_folder = form == "imagefolder"
    marker = "README.md" if is_folder else "train/filter_cap.json" if validation else "filter_cap.json"
    with new_directory(out, overwrite=overwrite, marker=marker) as directory:
        for item, text in finished(ledger):
            data = item.image.read_if_there()
            if data is None:
                counts["left out"] += 1
                continue
            split = "validation" if int(item.image.sha256[:8], 16) / 2**32 < validation else "train"
            where = directory / split if is_folder or validation else directory
            images = where if is_folder else where / "image"
            images.mkdir(parents=True, exist_ok=True)
            counts[split] += 1
            # Plain numbers, as in the released set: names in a project may hold anything.
            image_id = str(sum(counts[name] for name in SPLITS))
            path = images / f"{image_id}.jpg"
            if data.startswith(b"\xff\xd8"):
                path.write_bytes(data)
            else:
                open_image(data).save(path, quality=95)
            row = _folder_row(image_id, item, text) if is_folder else {"image_id": image_id, "caption": text}
            rows.setdefault(where, []).append(row)
        if not counts["train"]:
            raise UserError(f"{ledger.project}: there is no finished text to export; {ledger.left_out()}")
        for where, part in rows.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
            annotations = json.dumps({"annotations": part}, indent=1, ensure_ascii=False)
            name, text = ("metadata.jsonl", lines) if is_folder else ("filter_cap.json", annotations)
            (where / name).write_text(text, encoding="utf-8")
        if is_folder:
            (directory / "README.md").write_text(dataset_card(ledger, counts, license), encoding="utf-8")
    return dict(counts)


def _folder_row(image_id: str, item: Description, text: str) -> dict[str, Any]:
    return {
        "file_name": f"{image_id}.jpg", "text": text, "raw_text": item.raw.data["text"],
        "source_name": item.image.name, "grounding": item.grounding["whole"] if item.grounding else None,
        "reviewed": bool(item.reviews),
    }  # fmt: skip


def summary(ledger: Ledger) -> dict[str, Any]:
    """Counts by step, and the settings of each: for the dataset card and `curate stats`."""
    items = ledger.items()
    verdicts = [item.verdict for item in items if item.verdict is not None]
    refined = [item.refined for item in items if item.refined is not None]
    events = {event.settings for event in ledger.events("describe", "refine", "ground")}
    used: dict[str, list[dict[str, Any]]] = {}
    for key, (step, value) in ledger.all_settings().items():
        if key in events:
            used.setdefault(step, []).append(value)
    return {
        "counts": {
            "images": len(ledger.images()),
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


def dataset_card(ledger: Ledger, splits: Counter[str], license: str | None) -> str:
    """The dataset card: front matter that the hub reads, counts per step, reasons, models and prompts."""
    facts = summary(ledger)
    front = {"license": license or "unknown", "task_categories": ["image-to-text"], "language": ["en"]}
    steps = facts["counts"] | {f"in split {name}": splits[name] for name in SPLITS if splits[name]}
    # Where the owner's data lay is not published.
    made = {
        step: [{key: value for key, value in used.items() if key != "from"} for used in settings]
        for step, settings in facts["made with"].items()
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {ledger.project.resolve().name}\n",
        "Images with detailed descriptions for stage 2, made with `minigpt4 curate`.\n",
        "" if license else "The licence of the images is not stated: find it out before you pass them on.\n",
        _counts("step", steps),
        facts["rules"] and f"## Caught by the rules\n\n{_counts('reason', facts['rules'])}",
        facts["refusals"] and f"## Refined texts not taken\n\n{_counts('reason', facts['refusals'])}",
        f"## Made with\n\n```yaml\n{yaml.safe_dump(made, allow_unicode=True, width=110)}```\n",
        "Fields: `text`, `raw_text` (before refining), `grounding` (of the whole text, at most 1),\n"
        "`reviewed` (whether a person looked at it), `source_name`.\n",
    ]
    return "\n".join(filter(None, parts))


def _counts(name: str, counts: dict[str, int]) -> str:
    return table([name, "texts"], [[what, f"{count:,}"] for what, count in counts.items()])
