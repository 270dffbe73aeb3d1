"""How fast the photo model answers: `python bench/photo.py [--model photo] [--runs 7]`.

Prints the time to load the model, to encode a photograph, to the first token of an answer about a new photograph and
the tokens per second after it (medians of several runs), and the peak memory of the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from importlib.resources import files

import torch
from PIL import Image

from minigpt4 import MiniGPT4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="photo")
    parser.add_argument("--runs", type=int, default=7)
    arguments = parser.parse_args()
    start = time.perf_counter()
    model = MiniGPT4.from_pretrained(arguments.model)
    print(f"load: {time.perf_counter() - start:.1f} s")
    with Image.open(str(files("minigpt4") / "app" / "page" / "assets" / "coffee.jpg")) as file:
        photo = file.convert("RGB")
    encode, first, rate = [], [], []
    for run in range(arguments.runs + 1):
        view = photo.crop((run, run, photo.width, photo.height))  # a new photograph: nothing of it is kept
        start = time.perf_counter()
        model.encode_images([view])
        encode.append(time.perf_counter() - start)
        chat = model.start_chat()
        start = time.perf_counter()
        pieces = chat.stream("Write a story about this image.", image=view, max_new_tokens=100, repetition_penalty=1.3)
        next(pieces)
        first.append(time.perf_counter() - start)
        start, text = time.perf_counter(), "".join(pieces)
        rate.append(len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) / (time.perf_counter() - start))
    medians = (statistics.median(figures[1:]) for figures in (encode, first, rate))  # the first run warms up
    seconds, soon, tokens = medians
    print(f"encode {1000 * seconds:.0f} ms, first token {soon:.2f} s, {tokens:.0f} tokens/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"peak {peak:.2f} GB, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
