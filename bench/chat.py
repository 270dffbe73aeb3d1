"""What a kept KV cache saves: `python bench/chat.py [--model pocket] [--turns 10] [--runs 3]`.

Prints the time to the first token at turns 1, 2, 5 and 10 of a chat about one picture, with the cache that a chat
keeps and the plain way that reads the whole conversation again, and their ratio. Median of several runs; the answers
of both ways are compared.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from minigpt4 import MiniGPT4
from minigpt4.prompts.templates import Message

QUESTIONS = ("Describe this image in detail.", "What colours are there?", "Where is the largest object?")
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 24}


def first_token(pieces: Iterator[str]) -> tuple[float, str]:
    """Seconds to the first piece of a streamed answer, and the whole answer."""
    start = time.perf_counter()
    text = next(pieces, "")
    seconds = time.perf_counter() - start
    return seconds, text + "".join(pieces)


def talk(model: MiniGPT4, picture: Image.Image, turns: int) -> tuple[list[float], list[float], bool]:
    """Seconds to the first token of each turn with the cache and without, and whether the answers were the same."""
    chat, features = model.start_chat(), model.encode_images([picture])
    kept, plain, same = [], [], True
    for turn in range(turns):
        question = QUESTIONS[turn % len(QUESTIONS)]
        said = [*chat.history, Message("user", question, images=1 if turn == 0 else 0)]
        seconds, answer = first_token(chat.stream(question, image=picture if turn == 0 else None, **GREEDY))
        kept.append(seconds)
        start = time.perf_counter()
        if turn == 0:
            model.encode_images([picture])  # the first turn has to see the picture either way
        encoding = time.perf_counter() - start
        start = time.perf_counter()
        model.generate(prompts=said, features=features, do_sample=False, max_new_tokens=1)
        plain.append(time.perf_counter() - start + encoding)
        same = same and [answer] == model.generate(prompts=said, features=features, **GREEDY)
    return kept, plain, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="an alignment, an export, or a pocket name")
    parser.add_argument("--turns", type=int, default=10, help="how long the chat is")
    parser.add_argument("--runs", type=int, default=3, help="how often each figure is measured")
    arguments = parser.parse_args()

    model = MiniGPT4.from_pretrained(arguments.model)
    picture = Image.radial_gradient("L").convert("RGB")
    talk(model, picture, 2)  # warm up
    runs = [talk(model, picture, arguments.turns) for _ in range(arguments.runs)]
    table = Table(title=f"{arguments.model}: time to the first token, {torch.get_num_threads()} threads")
    for heading in ("turn", "cache kept", "read again", "ratio"):
        table.add_column(heading, justify="right")
    for turn in sorted({1, 2, 5, 10, arguments.turns}):
        if turn <= arguments.turns:
            kept, plain = (statistics.median(run[way][turn - 1] for run in runs) for way in (0, 1))
            table.add_row(str(turn), f"{1000 * kept:.1f} ms", f"{1000 * plain:.1f} ms", f"{plain / kept:.1f} x")
    Console().print(table)
    print(f"same answers both ways: {'yes' if all(run[2] for run in runs) else 'NO'}")


if __name__ == "__main__":
    main()
