"""Requests per second and the wait for the first token at `minigpt4 serve`, batched against one at a time.

Two servers, each a process of its own, are asked in turn: `--max-batch 1`, which answers one request at a time, and
`--max-batch 16`. Turns are short, so that other work on the machine meets both. So many clients stay in conversation
with a server that there are always as many requests under way: each asks about another picture, streams the answer,
and asks again. Answers must be those of the model itself.

    python bench/api.py
"""

from __future__ import annotations

import asyncio
import base64
import io
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from openai import AsyncOpenAI
from rich.console import Console
from rich.table import Table

from minigpt4 import MiniGPT4
from pocket.world.draw import draw
from pocket.world.world import sample

CLIENTS = (1, 4, 16, 64)
BATCHES = {"one at a time": 1, "batched": 16}
REQUESTS = 64
QUESTIONS = ("Describe this image in detail.", "Write a poem about it.", "How many objects are there?", "What is this?")
SEED = 12_000_000


async def measure(url: str, asked: list[dict], expected: list[str], clients: int) -> tuple[float, list[float], int]:
    """(seconds for all requests, seconds to each first token, how many answers were as expected)."""
    waits: list[float] = []
    right = 0
    numbers = iter(range(len(asked)))

    async def converse(client: AsyncOpenAI) -> None:
        nonlocal right
        for number in numbers:
            started, said = time.perf_counter(), ""
            stream = await client.chat.completions.create(
                model="pocket", messages=[asked[number]], temperature=0, stream=True
            )
            async for chunk in stream:
                if not said and chunk.choices[0].delta.content:
                    waits.append(time.perf_counter() - started)
                said += chunk.choices[0].delta.content or ""
            right += said == expected[number]

    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
        started = time.perf_counter()
        await asyncio.gather(*(converse(client) for _ in range(clients)))
        return time.perf_counter() - started, waits, right


def prepare(model: MiniGPT4, seed: int, count: int) -> tuple[list[dict], list[str]]:
    """Messages about as many pictures as there are, none of which another round shows, and the model's own answers."""
    pictures = [draw(sample(seed + i)) for i in range(count)]
    questions = [QUESTIONS[i % len(QUESTIONS)] for i in range(count)]
    asked = []
    for picture, question in zip(pictures, questions, strict=True):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        asked.append({"role": "user", "content": parts})
    expected = []
    for start in range(0, count, 16):
        part = slice(start, start + 16)
        expected += model.generate(pictures[part], questions[part], do_sample=False)
    return asked, expected


@contextmanager
def server(batch: int) -> Iterator[str]:
    """The address of a server that answers so many requests together."""
    command = [str(Path(sys.executable).with_name("minigpt4")), "serve", "pocket", "--port", "0"]
    command += ["--max-batch", str(batch), "--dtype", "float32", "--timeout", "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split(" at ")[1].split()[0]
        finally:
            process.terminate()


def main() -> None:
    model = MiniGPT4.from_pretrained("pocket", dtype="float32", device="cpu")
    counts = [4, *(min(REQUESTS, 8 * clients) for clients in CLIENTS)]  # the first to warm up
    rounds = [prepare(model, SEED + 100 * i, count) for i, count in enumerate(counts)]
    del model
    table = Table("clients", "server", "requests/s", "speed-up", "first token p50", "p95", "same answer")
    with ExitStack() as stack:
        urls = {name: stack.enter_context(server(batch)) for name, batch in BATCHES.items()}
        for url in urls.values():
            asyncio.run(measure(url, *rounds[0], 4))
        for clients, (asked, expected) in zip(CLIENTS, rounds[1:], strict=True):
            alone = None
            for name, url in urls.items():
                seconds, waits, right = asyncio.run(measure(url, asked, expected, clients))
                rate = len(asked) / seconds
                alone = alone or rate
                cuts = statistics.quantiles(waits, n=20)
                table.add_row(
                    str(clients), name, f"{rate:.2f}", f"{rate / alone:.1f} x",
                    f"{statistics.median(waits):.2f} s", f"{cuts[-1]:.2f} s", f"{right / len(asked):.0%}",
                )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
