"""What the photo model can do with photographs that it never saw: answers for people to judge, and their count.

python tools/photo/abilities.py ask --flickr8k DIR --split test --models photo photo-stage1 --out runs/photo/abilities
python tools/photo/abilities.py count runs/photo/abilities/answers.jsonl JUDGEMENTS.jsonl ...

`ask` writes `answers.jsonl`: 25 photographs for each of eight tasks, the answer of each model, in an order that tells
nothing about the model; and `key.json`, which says whose each answer is. Whoever judges sees photograph, question and
answer, and writes a line `{"id": ..., "success": true or false, "why": ...}` for each. Answers are the likeliest
words, with the repetition penalty of the model's record.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from minigpt4 import MiniGPT4
from minigpt4.files import write_atomically
from minigpt4.prompts.templates import Message
from minigpt4.statistics import Rate

SEED, COUNT = 20261129, 25
BEINGS = ("man", "woman", "boy", "girl", "dog", "child", "baby", "people", "men", "women", "children", "boys", "girls",
          "dogs", "horse", "bird", "player", "person")  # fmt: skip
FOOD = re.compile(
    r"\b(eat|eats|eating|food|drink|drinks|drinking|pizza|cake|bread|meat|soup|coffee|tea|beer|wine|fruit|apple|"
    r"ice cream|sandwich|dinner|lunch|meal|cook|cooks|cooking|fish|burger|noodles|bottle|popcorn|barbecue|grill)\b"
)
TASKS = {
    "description": "Describe this image in detail.",
    "poem": "Write a poem about this image.",
    "story": "Write a short story about this image.",
    "advertisement": "Write an advertisement that uses this image.",
    "recipe": "How do I make something to eat or drink like what is in this image? Give me a recipe.",
    "what next": "What could happen next?",
    "question": "What {} the {} doing?",
    "two turns": "Describe this image in one sentence.",
}
SECOND_TURN = "What could one hear or feel there?"
PLURAL = {"people", "men", "women", "children", "boys", "girls", "dogs"}


def being(captions: list[str]) -> str | None:
    """The person or animal that at least three of the captions name, if there is one."""
    named = Counter(word for text in captions for word in set(re.findall(r"[a-z]+", text.lower())) & {*BEINGS})
    word, times = max(named.items(), key=lambda pair: (pair[1], pair[0]), default=("", 0))
    return word if times >= 3 else None


def questions(rows: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any], str]]:
    """Task, photograph and question of each case; no photograph is used twice within a task."""
    found = []
    for task, text in TASKS.items():
        order = random.Random(f"{SEED} {task}").sample(rows, len(rows))
        if task == "recipe":
            order = [row for row in order if sum(bool(FOOD.search(t.lower())) for t in row["captions"]) >= 2]
        if task == "question":
            order = [row for row in order if being(row["captions"])]
        for row in order[:COUNT]:
            named = being(row["captions"]) or ""
            found.append((task, row, text.format("are" if named in PLURAL else "is", named)))
    return found


def ask(flickr8k: Path, split: str, names: list[str], out: Path) -> None:
    """Asks every model everything."""
    rows = [
        {"image": row["image"], "captions": [row[f"caption_{k}"] for k in range(5)]}
        for file in sorted(flickr8k.glob(f"**/{split}-*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    cases, told, key = questions(rows), [], {}
    images = [row["image"]["bytes"] for _, row, _ in cases]
    for name in names:
        model = MiniGPT4.from_pretrained(name)
        texts = [question for _, _, question in cases]
        said = [text.strip() for text in generate(model, images, texts)]
        two = [n for n, (task, _, _) in enumerate(cases) if task == "two turns"]
        chats = [
            [Message("user", texts[n], images=1), Message("assistant", said[n]), Message("user", SECOND_TURN)]
            for n in two
        ]
        second = dict(zip(two, generate(model, [[images[n]] for n in two], chats), strict=True))
        for n, (task, row, question) in enumerate(cases):
            turns = [[question, said[n]], *([[SECOND_TURN, second[n].strip()]] if n in second else [])]
            told.append({"task": task, "photo": row["image"]["path"], "turns": turns, "model": name})
    random.Random(SEED).shuffle(told)
    for number, case in enumerate(told):
        case["id"] = f"{number:04d}"
        key[case["id"]] = case.pop("model")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "answers.jsonl", "".join(json.dumps(case) + "\n" for case in told).encode())
    write_atomically(out / "key.json", json.dumps(key, indent=0).encode())


def generate(model: MiniGPT4, images: list[Any], prompts: list[Any]) -> list[str]:
    """Greedy answers, 25 at a time."""
    said: list[str] = []
    for start in range(0, len(prompts), COUNT):
        part = slice(start, start + COUNT)
        said += model.generate(images[part], prompts[part], do_sample=False, max_new_tokens=220)
    return said


def count(answers: Path, judgements: list[Path]) -> None:
    """Prints each model's rate of success, by task and over all."""
    cases = {case["id"]: case for case in map(json.loads, answers.read_text().splitlines())}
    key = json.loads((answers.parent / "key.json").read_text())
    judged: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for file in judgements:
        for line in map(json.loads, file.read_text().splitlines()):
            for task in (cases[line["id"]]["task"], "all"):
                judged[key[line["id"]]][task].append(line["success"])
    for name, tasks in judged.items():
        for task, outcomes in sorted(tasks.items()):
            rate = Rate.from_outcomes(outcomes)
            print(f"{name:14} {task:14} {rate.successes:3} of {rate.total:3}  {rate}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    asking = commands.add_parser("ask")
    asking.add_argument("--flickr8k", type=Path, required=True, help="directory of Flickr8k's parquet files")
    asking.add_argument("--split", default="validation", choices=["validation", "test"])
    asking.add_argument("--models", nargs="+", default=["photo"])
    asking.add_argument("--out", type=Path, required=True)
    counting = commands.add_parser("count")
    counting.add_argument("answers", type=Path)
    counting.add_argument("judgements", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "ask":
        ask(arguments.flickr8k, arguments.split, arguments.models, arguments.out)
    else:
        count(arguments.answers, arguments.judgements)


if __name__ == "__main__":
    main()
