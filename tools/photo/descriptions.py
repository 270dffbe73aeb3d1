"""Stage 2's dataset of the photo model: what readers wrote goes into a curation project, and out as a dataset.

python tools/photo/descriptions.py draw --flickr8k DIR --out PHOTOS
minigpt4 curate describe PROJECT --images PHOTOS --model photo-stage1
python tools/photo/descriptions.py rewrite PROJECT --reader first --texts written.jsonl
minigpt4 curate filter PROJECT
python tools/photo/descriptions.py review PROJECT --reader second --texts read-again.jsonl
python tools/photo/descriptions.py publish PROJECT --out datasets/photo-descriptions

A rewritten text stands in the ledger where an LLM's would, but whoever wrote it saw the photograph and its captions. A
line of the review's texts is `{"name": ..., "verdict": "accept", "edit" or "reject", "text": ...}`. `publish` writes
the finished texts by the photographs' file names (the photographs are others' and stay out), and the history of each.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from minigpt4.curation.dataset import finished, summary
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.review import ReviewDesk
from minigpt4.files import write_atomically

SEED, COUNT = 20261129, 340


def draw(flickr8k: Path, out: Path) -> None:
    """Writes photographs of the train split that were drawn at random."""
    files = sorted(flickr8k.glob("**/train-*.parquet"))
    rows = [row["image"] for file in files for row in pq.read_table(file, columns=["image"]).to_pylist()]
    out.mkdir(parents=True, exist_ok=True)
    for image in random.Random(SEED).sample(rows, COUNT):
        (out / image["path"]).write_bytes(image["bytes"])


def rewrite(project: Path, reader: str, texts: Path) -> None:
    """What a reader wrote of each photograph takes the place of the model's text."""
    written = {row["name"]: row["text"] for row in _rows(texts) if "text" in row}
    with Ledger(project) as ledger:
        settings = ledger.settings("refine", {"reader": reader, "sees": "the photograph and its five captions"})
        data = {"ended": True, "accepted": True, "reason": None, "tokens": 0}
        new = [
            (item.key, item.raw.seq, {"text": written[item.image.path.name], **data})
            for item in ledger.items()
            if item.image.path.name in written
        ]
        print(ledger.add("refine", settings, new), "texts")


def review(project: Path, reader: str, texts: Path) -> None:
    """The decisions of one reader, as if they had been made on the page of `minigpt4 curate review`."""
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=1.0)
        places = {item.image.path.name: index for index, item in enumerate(desk.items)}
        for row in _rows(texts):
            if row["name"] in places and reader not in (item := desk.items[places[row["name"]]]).reviews:
                desk.decide(reader, places[row["name"]], item.source.seq, row["verdict"], row.get("text"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def publish(project: Path, out: Path) -> None:
    """`descriptions.jsonl`, a line for each finished text, and `history.jsonl`, a line for each event behind them."""
    out.mkdir(parents=True, exist_ok=True)
    with Ledger(project) as ledger:
        texts = [{"file_name": item.image.path.name, "text": text} for item, text in finished(ledger)]
        settings = ledger.all_settings()
        for _, value in settings.values():
            if "model" in value:
                value["model"] = Path(value["model"]).name  # not where it lay
        history = [
            {
                "name": event.image, "step": event.step, "at": event.at, "event": event.seq, "made_from": event.source,
                "settings": settings[event.settings][1], **event.data,
            }
            for event in ledger.events()
        ]  # fmt: skip
        print(json.dumps(summary(ledger)["counts"]))

    def lines(rows: list[dict[str, Any]]) -> bytes:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()

    write_atomically(out / "descriptions.jsonl", lines(texts))
    write_atomically(out / "history.jsonl", lines(history))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, options in (
        ("draw", ("--flickr8k", "--out")),
        ("rewrite", ("--reader", "--texts")),
        ("review", ("--reader", "--texts")),
        ("publish", ("--out",)),
    ):
        command = commands.add_parser(name)
        if name != "draw":
            command.add_argument("project", type=Path)
        for option in options:
            command.add_argument(option, type=str if option == "--reader" else Path, required=True)
    arguments = vars(parser.parse_args())
    {"draw": draw, "rewrite": rewrite, "review": review, "publish": publish}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
