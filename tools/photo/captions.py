"""Captions of Flickr8k's photographs by a model, scored against what five people wrote of each.

python tools/photo/captions.py photo-stage1 --flickr8k DIR --split test
python tools/photo/captions.py photo --flickr8k DIR --split test --ask "Describe this image in one short sentence."

Without --ask a caption follows the bare image, the form in which stage 1 is trained. Decoding is greedy.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from statistics import fmean

import pyarrow.parquet as pq
from rich.progress import track

from minigpt4 import MiniGPT4
from minigpt4.evaluation.benchmarks.coverage import caption_scores
from pocket.reproduce.photographs import BARE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--ask", help="the question; left out: none, the bare image")
    parser.add_argument("--out", type=Path, help="a JSON file for the captions and scores")
    arguments = parser.parse_args()
    model = MiniGPT4.from_pretrained(arguments.model)
    files = sorted(arguments.flickr8k.glob(f"**/{arguments.split}-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()][: arguments.count]
    said = {}
    for start in track(range(0, len(rows), 50), description="captions"):
        part = rows[start : start + 50]
        template = {} if arguments.ask else {"template": BARE}
        texts = model.generate(
            [row["image"]["bytes"] for row in part], [arguments.ask or ""] * len(part), do_sample=False,
            max_new_tokens=40, repetition_penalty=1.0, **template,
        )  # fmt: skip
        # One sentence: what a chat goes on to say is no caption.
        said |= {
            row["image"]["path"]: re.split(r"(?<=[.!?])\s", text.strip())[0]
            for row, text in zip(part, texts, strict=True)
        }
    people = {row["image"]["path"]: [row[f"caption_{k}"] for k in range(5)] for row in rows}
    each, corpus, notes = caption_scores(said, people)
    scores = {
        name: round(100 * value, 1) for name, value in {**corpus, **{k: fmean(v) for k, v in each.items()}}.items()
    }
    print(json.dumps({"model": arguments.model, "photographs": len(said), "asked": arguments.ask, **scores}))
    print(*notes, sep="\n")
    if arguments.out:
        arguments.out.write_text(json.dumps({"scores": scores, "captions": said}, indent=1))


if __name__ == "__main__":
    main()
