"""Many at once, who come in bursts and go when they like: everybody gets their own answer, and nothing piles up."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from typing import TYPE_CHECKING, Any

import psutil
from api_server import Running, serving, shown, user, wait_until
from openai import AsyncOpenAI
from PIL import Image

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4

SETTINGS: dict[str, Any] = {"model": "toy", "temperature": 0, "max_tokens": 30}


async def ask(client: AsyncOpenAI, asked: Any, expected: str, rng: random.Random) -> str:
    """One client of the crowd. Returns how it went; raises if the answer is not its own."""
    way = rng.choice(["whole", "stream", "stream", "leaves", "leaves early", "impatient"])
    if way == "whole":
        response = await client.chat.completions.create(messages=[asked], **SETTINGS)
        assert response.choices[0].message.content == expected
    elif way == "impatient":  # hangs up while it waits
        pending = asyncio.ensure_future(client.chat.completions.create(messages=[asked], **SETTINGS))
        await asyncio.sleep(rng.random() * 0.2)
        pending.cancel()
    else:
        stream = await client.chat.completions.create(messages=[asked], stream=True, **SETTINGS)
        said, pieces = "", 0
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""
            pieces += 1
            assert expected.startswith(said), (said, expected)
            if way == "leaves early" or (way == "leaves" and pieces > 4):
                await stream.close()
                return way
        assert said == expected
    return way


async def burst(server: Running, asked: list[Any], expected: list[str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    url = f"http://127.0.0.1:{server.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=20, timeout=120) as client:
        drawn = [rng.randrange(len(asked)) for _ in range(count)]
        return await asyncio.gather(*(ask(client, asked[i], expected[i], random.Random(rng.random())) for i in drawn))


def test_500_in_bursts(varied: MiniGPT4) -> None:
    pictures = [Image.new("RGB", (40, 30), (i * 40, 255 - i * 40, 90)) for i in range(5)]
    questions = [f"What is it? {'Well? ' * i}" for i in range(8)]
    pairs = [(picture, question) for picture in pictures for question in questions]
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": 30}
    expected = [varied.generate(picture, question, **settings)[0] for picture, question in pairs]
    assert len(set(expected)) > 8, "else one could get another's answer, and nobody would see it"
    asked = [user(shown(picture), question) for picture, question in pairs]
    process = psutil.Process()

    def state() -> tuple[int, int, int]:
        gc.collect()
        return process.memory_info().rss, threading.active_count(), process.num_fds()

    with serving(varied, batch=8, queue=40) as server:
        asyncio.run(burst(server, asked, expected, 100, seed=0))  # buffers and threads that stay are made
        wait_until(lambda: server.service.scheduler.running == server.service.scheduler.waiting == 0)
        memory, threads, files = state()
        ways: list[str] = []
        for seed in range(1, 6):
            ways += asyncio.run(burst(server, asked, expected, 100, seed))
        assert len(ways) == 500
        assert set(ways) == {"whole", "stream", "leaves", "leaves early", "impatient"}
        wait_until(lambda: server.service.scheduler.running == server.service.scheduler.waiting == 0)
        wait_until(lambda: state()[2] <= files + 2)
        assert state()[1] <= threads
        assert state()[0] - memory < 40e6
        assert server.service.scheduler._batch.rows == []
        assert server.metric("minigpt4_running") == 0
