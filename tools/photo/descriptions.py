"""Stage 2's dataset of the photo model: what readers wrote goes into a curation project, and out as a dataset.

minigpt4 curate describe PROJECT --images PHOTOS --model photo-stage1
python tools/photo/descriptions.py record PROJECT --reader first --texts written.jsonl
python tools/photo/descriptions.py record PROJECT --reader second --texts read-again.jsonl
minigpt4 curate filter PROJECT
python tools/photo/descriptions.py publish PROJECT --out datasets/photo-descriptions

A line of the texts is `{"name": ..., "verdict": "accept", "edit" or "reject", "text": ...}`, as a reader of
`minigpt4 curate review` decides. `publish` writes the finished texts by the photographs' file names (the photographs
are others' and stay out), and the history of each.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minigpt4.curation.dataset import finished, summary
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.review import ReviewDesk
from minigpt4.files import write_atomically


def record(project: Path, reader: str, texts: Path) -> None:
    """The decisions of one reader, as if they had been made on the page."""
    with Ledger(project) as ledger:
        desk = ReviewDesk(ledger, shared=1.0)
        places = {item.image.name: index for index, item in enumerate(desk.items)}
        for line in texts.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            index = places[Path(row["name"]).stem if row["name"] not in places else row["name"]]
            item = desk.items[index]
            if reader not in item.reviews:
                desk.decide(reader, index, item.source.seq, row["verdict"], row.get("text"))


def publish(project: Path, out: Path) -> None:
    """`descriptions.jsonl`, a line for each finished text, and `history.jsonl`, a line for each event behind them."""
    out.mkdir(parents=True, exist_ok=True)
    with Ledger(project) as ledger:
        texts = [{"file_name": item.image.path.name, "text": text} for item, text in finished(ledger)]
        settings = ledger.all_settings()
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
    for name, options in (("record", ("--reader", "--texts")), ("publish", ("--out",))):
        command = commands.add_parser(name)
        command.add_argument("project", type=Path)
        for option in options:
            command.add_argument(option, type=str if option == "--reader" else Path, required=True)
    arguments = vars(parser.parse_args())
    {"record": record, "publish": publish}[arguments.pop("command")](**arguments)


if __name__ == "__main__":
    main()
