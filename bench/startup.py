"""How fast the pocket model starts and talks: `python bench/startup.py [--model pocket] [--runs 5] [--demo runs/demo]`.

Prints one table: start-up of the package and of the command line, loading, the first token of an answer, tokens per
second, and what a second turn costs with the KV cache that a chat keeps, beside the plain way that reads the whole
conversation again. Every figure is the median of several runs. Time and memory of a demo that was run come last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

QUESTION, SECOND_QUESTION = "Describe this image in detail.", "Write a poem about it."
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 120}


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def process_seconds(command: list[str], runs: int) -> float:
    """Median wall time of a process from start to end; a first run that fills the disk's cache does not count."""
    times = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(runs + 1)]
    return statistics.median(times[1:])


def first_and_rest(pieces: Iterator[str]) -> tuple[float, float, str]:
    """Seconds to the first piece of a streamed answer, seconds from there to its end, and the answer."""
    start = time.perf_counter()
    text = next(pieces, "")
    first = time.perf_counter()
    text += "".join(pieces)
    return first - start, time.perf_counter() - first, text


def talk(name: str, runs: int) -> Iterator[tuple[str, str, str]]:
    """Rows about loading and talking: what, measured, target."""
    from minigpt4 import MiniGPT4
    from minigpt4.prompts.templates import Message
    from pocket.world.draw import draw
    from pocket.world.world import SEEDS, sample

    loading = [seconds(lambda: MiniGPT4.from_pretrained(name)) for _ in range(runs + 1)]
    yield "load the model, torch imported", f"{statistics.median(loading[1:]):.2f} s", ""
    model = MiniGPT4.from_pretrained(name)
    firsts, speeds, cached, plain = [], [], [], []
    with tempfile.TemporaryDirectory() as directory:
        picture = Path(directory) / "picture.png"
        draw(sample(SEEDS["development"][0], "scene")).save(picture)
        features = model.encode_images([picture])
        for _ in range(runs + 1):
            chat = model.start_chat()
            first, rest, answer = first_and_rest(chat.stream(QUESTION, image=picture, **GREEDY))
            tokens = len(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
            firsts.append(first)
            speeds.append((tokens - 1) / rest)
            turns = [*chat.history, Message("user", SECOND_QUESTION)]
            first, _, kept = first_and_rest(chat.stream(SECOND_QUESTION, **GREEDY))
            cached.append(first)
            once = {"prompts": turns, "features": features}
            plain.append(seconds(lambda once=once: model.generate(**once, do_sample=False, max_new_tokens=1)))
            [recomputed] = model.generate(**once, **GREEDY)
    middle = [statistics.median(times[1:]) for times in (firsts, speeds, cached, plain)]
    yield "first token about a new picture", f"{1000 * middle[0]:.0f} ms", "500 ms"
    yield "tokens per second after it", f"{middle[1]:.0f}", ""
    yield "first token of turn 2, KV cache kept", f"{1000 * middle[2]:.1f} ms", "500 ms"
    yield "... whole conversation read again", f"{1000 * middle[3]:.1f} ms ({middle[3] / middle[2]:.1f} x)", ""
    yield "... both give the same answer", "yes" if kept == recomputed else "NO", "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="an alignment, an export, or a pocket name")
    parser.add_argument("--runs", type=int, default=5, help="how often each figure is measured")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="where the demo left its results")
    arguments = parser.parse_args()

    table = Table(title=f"{arguments.model}: median of {arguments.runs}", title_justify="left")
    table.add_column("")
    table.add_column("measured", justify="right")
    table.add_column("target", justify="right")
    bare = process_seconds([sys.executable, "-c", "pass"], arguments.runs)
    imported = process_seconds([sys.executable, "-c", "import minigpt4"], arguments.runs)
    table.add_row("import minigpt4 (beyond bare Python)", f"{imported - bare:.3f} s", "0.3 s")
    command = str(Path(sys.executable).with_name("minigpt4"))
    table.add_row(
        "minigpt4 --help, start to end", f"{process_seconds([command, '--help'], arguments.runs):.3f} s", "0.3 s"
    )
    for row in talk(arguments.model, arguments.runs):
        table.add_row(*row)
    demo = arguments.demo / "results.json"
    if demo.is_file():
        whole = json.loads(demo.read_text())["phases"][-1]
        table.add_row("minigpt4 pocket demo, after installation", f"{whole['seconds']:.0f} s", "360 s")
        table.add_row("... its peak memory", f"{whole['peak_mb']:.0f} MB", "4096 MB")
    Console().print(table)


if __name__ == "__main__":
    main()
