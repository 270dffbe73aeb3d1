"""What a chat with a large model takes on this machine: `python bench/laptop.py MODEL [--dtype float32]`.

Loads the model, encodes an image, reads a prompt of 128 tokens, writes some tokens, and asks about a new image. Prints
seconds by the clock, and the process's memory in GB (10^9 bytes). docs/laptop.md has the figures of a 7B of random
weights, which `bench/released_files.py` and `minigpt4 convert --quantize 4bit` make.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

PROMPT, TOKENS = 128, 8


def memory() -> str:
    """The process's peak, what it holds now, and how much of that is pages of files."""
    status = Path("/proc/self/status").read_text()
    kilobytes = [int(status.partition(f"{key}:")[2].split()[0]) for key in ("VmHWM", "VmRSS", "RssFile")]
    return "peak {:.2f} GB, now {:.2f}, of which files {:.2f}".format(*(1024e-9 * each for each in kilobytes))


@contextmanager
def timed(what: str, number: int = 1) -> Iterator[None]:
    start = time.perf_counter()
    yield
    print(f"{what:<32}{(time.perf_counter() - start) / number:>8.2f} s   {memory()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="an alignment or an export")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; the default of `minigpt4 chat`")
    parser.add_argument("--load-in", help="quantize the LLM while it is loaded")
    arguments = parser.parse_args()
    with timed("importing"):
        from minigpt4 import MiniGPT4
        from minigpt4.generation.batching import ContinuousBatch, Row
        from minigpt4.generation.decoding import Decoding
        from minigpt4.generation.engine import no_features
    with timed("loading"):
        model = MiniGPT4.from_pretrained(
            arguments.model, device="cpu", dtype=arguments.dtype, load_in=arguments.load_in
        )  # fmt: skip
    images = [made("L").resize((400, 300)).convert("RGB") for made in (Image.radial_gradient, Image.linear_gradient)]
    with timed("encoding an image"):
        model.encode_images(images[:1])
    batch, decoding = ContinuousBatch(model), Decoding(max_new_tokens=TOKENS + 1, do_sample=False)
    with timed(f"a prompt of {PROMPT} tokens"):
        batch.join([Row([100 + i % 100 for i in range(PROMPT)], no_features(model), decoding)])
    with timed("a token", TOKENS):
        for _ in range(TOKENS):
            batch.step()
    with timed("first token about a new image"):
        pieces = model.start_chat().stream(
            "Describe this image in detail.", image=images[1], do_sample=False, max_new_tokens=TOKENS
        )
        next(pieces, "")
    pieces.close()


if __name__ == "__main__":
    main()
