"""How many pictures a second are described: `python bench/serving.py [--model pocket] [--pictures 32] [--runs 3]`.

Prints one table: requests per second of the local engine one at a time, of the local engine in batches, and of vLLM,
which gets all requests at once. All answer the same requests with the likeliest tokens in float32, take turns, and get
new pictures in each run, so that no cache can help. Every figure is the median of the runs. vLLM has an environment of
its own (`make venv-vllm`); without it the table has the local rows alone, and the last line says what to do.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

QUESTION = "Describe this image in detail."
TOKENS = 120
BATCHES = (8, 32)


def new_pictures(run: int, count: int) -> list[bytes]:
    """PNG files of scenes, others in each run."""
    from pocket.world.draw import draw
    from pocket.world.world import SEEDS, sample

    files = []
    for seed in range(count * run, count * (run + 1)):
        buffer = io.BytesIO()
        draw(sample(SEEDS["development"][0] + seed, "scene")).save(buffer, "PNG")
        files.append(buffer.getvalue())
    return files


def local(model: Any, batch: int) -> Callable[[list[bytes]], list[str]]:
    """The local engine, `batch` pictures at a time."""

    def describe(pictures: list[bytes]) -> list[str]:
        found: list[str] = []
        for start in range(0, len(pictures), batch):
            part = pictures[start : start + batch]
            found += model.generate(part, QUESTION, do_sample=False, max_new_tokens=TOKENS)
        return found

    return describe


def vllm(export: Path) -> Callable[[list[bytes]], list[str]]:
    """vLLM's engine on an export, with what a server does for a request: data URL, chat template, answer as text."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(export), dtype="float32", enforce_eager=True)
    greedy = SamplingParams(temperature=0, max_tokens=TOKENS)

    def describe(pictures: list[bytes]) -> list[str]:
        urls = ["data:image/png;base64," + base64.b64encode(data).decode() for data in pictures]
        chats: list[Any] = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": QUESTION},
                    ],
                }
            ]
            for url in urls
        ]
        return [output.outputs[0].text.strip() for output in llm.chat(chats, greedy, use_tqdm=False)]

    return describe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="an alignment, an export, or a pocket name")
    parser.add_argument("--pictures", type=int, default=32, help="requests in a run")
    parser.add_argument("--runs", type=int, default=3, help="how often each figure is measured")
    arguments = parser.parse_args()

    from minigpt4 import MiniGPT4

    model = MiniGPT4.from_pretrained(arguments.model, dtype="float32", device="cpu")
    ways = {"local engine, one at a time": local(model, 1)}
    ways |= {f"local engine, batches of {batch}": local(model, batch) for batch in BATCHES}
    has_vllm = importlib.util.find_spec("vllm") is not None
    with tempfile.TemporaryDirectory() as directory:
        if has_vllm:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
            export = Path(directory) / "export"
            model.export(export)
            ways["vLLM, all at once"] = vllm(export)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        same = dict.fromkeys(ways, 0)
        for run in range(arguments.runs + 1):  # the first, which warms up, does not count
            pictures = new_pictures(run, arguments.pictures)
            expected: list[str] = []
            for name, describe in ways.items():
                start = time.perf_counter()
                found = describe(pictures)
                seconds[name].append(time.perf_counter() - start)
                expected = expected or found
                same[name] += sum(a == b for a, b in zip(found, expected, strict=True))

    title = f"{arguments.model}: {arguments.pictures} requests of at most {TOKENS} tokens, median of {arguments.runs}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("requests/s", "speed-up", "same answer"):
        table.add_column(column, justify="right")
    middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    slowest = middle["local engine, one at a time"]
    for name, time_taken in middle.items():
        share = same[name] / (arguments.pictures * (arguments.runs + 1))
        speed = f"{arguments.pictures / time_taken:.2f}"
        table.add_row(name, speed, f"{slowest / time_taken:.1f} x", f"{100 * share:.0f} %")
    Console().print(table)
    if not has_vllm:
        Console().print(
            "vLLM is not installed here; for its row: make venv-vllm && .venv-vllm/bin/python bench/serving.py"
        )


if __name__ == "__main__":
    main()
