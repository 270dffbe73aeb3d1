"""Whether descriptions of photographs name the main subject, and what they name that no person's caption supports.

python tools/photo/subjects.py photo --flickr8k DIR --split test --count 100

The main subject of a photograph is what most of its five captions name, and at least three do. Names count as one where
the tables of `minigpt4 eval` say so: COCO's 80 categories by their synonyms (`man` and `surfer` are persons), and
scenery. Answers are the likeliest words, with the repetition penalty of the model's record.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from minigpt4 import MiniGPT4
from minigpt4.evaluation.benchmarks.coco import Vocabulary
from minigpt4.statistics import Rate
from minigpt4.text_failures import failure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    parser.add_argument("--split", default="validation", choices=["validation", "test"])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--ask", default="Describe this image in detail.")
    parser.add_argument("--out", type=Path, help="a JSON file for the descriptions, with what was named")
    arguments = parser.parse_args()
    files = sorted(arguments.flickr8k.glob(f"**/{arguments.split}-*.parquet"))
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    rows = random.Random(0).sample(rows, min(arguments.count, len(rows)))
    model, things = MiniGPT4.from_pretrained(arguments.model), Vocabulary(None, "scenery")
    said: list[str] = []
    for start in range(0, len(rows), 25):
        images = [row["image"]["bytes"] for row in rows[start : start + 25]]
        said += model.generate(images, [arguments.ask] * len(images), do_sample=False, max_new_tokens=220)
    cases, named, unsupported, failed = [], [], Counter[str](), Counter[str]()
    for row, text in zip(rows, said, strict=True):
        captions = [{*things.mentions(row[f"caption_{k}"])} for k in range(5)]
        counts = Counter(name for found in captions for name in found)
        most = max(counts.values(), default=0)
        subjects = {name for name, times in counts.items() if times == most >= 3}
        told = {*things.mentions(text)}
        if subjects:
            named.append(bool(subjects & told))
        extra = told - set(counts)
        unsupported.update(extra)
        failed.update(filter(None, [failure(text, bool(re.search(r"[.!?…\"')*]$", text.strip())))]))
        cases.append({
            "photo": row["image"]["path"], "text": text, "subjects": sorted(subjects), "named": bool(subjects & told),
            "unsupported": sorted(extra),
        })  # fmt: skip
    rate = Rate.from_outcomes(named)
    print(f"{arguments.model}: main subject named in {rate.successes} of {rate.total} that have one")
    print(f"named, and in no caption: {sum(unsupported.values())} in {len(cases)} descriptions: {dict(unsupported)}")
    print(f"failures of language: {sum(failed.values())} {dict(failed)}")
    if arguments.out:
        arguments.out.write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()
