"""Which image an answer tells: `python bench/second_image.py [--model pocket] [--pairs 50] [--images DIR]`.

One conversation shows two images, one after the other, and asks of each "Describe this image in detail." The second
answer is right if it equals, letter by letter, what the image gets in a conversation of its own (greedy). Pictures of
the pocket world (the default, development seeds) are also judged against the truth of both.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from minigpt4 import MiniGPT4
from minigpt4.images import find_images
from pocket.measure.truth import check
from pocket.text.requests import Request
from pocket.world.draw import draw
from pocket.world.world import SEEDS, sample

ASKED = Request("describe", "Describe this image in detail.")
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 160}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pocket", help="an alignment, an export, or a name")
    parser.add_argument("--pairs", type=int, default=50, help="how many conversations; each has two images of its own")
    parser.add_argument("--images", help="a directory of photographs in place of pictures of the pocket world")
    parser.add_argument("--pixels", type=int, default=224, help="the side of pictures of the pocket world")
    arguments = parser.parse_args()

    truths = [sample(SEEDS["development"][0] + 700_000 + k) for k in range(2 * arguments.pairs)]
    shown: list[Any] = [draw(truth, arguments.pixels) for truth in truths]
    if arguments.images:
        shown = find_images(Path(arguments.images))[: 2 * arguments.pairs]
    model = MiniGPT4.from_pretrained(arguments.model)
    told_alone = model.generate(shown[1::2], ASKED.text, **GREEDY)
    counts: Counter[str] = Counter()
    for one, alone in zip(range(0, len(shown), 2), told_alone, strict=False):
        chat = model.start_chat()
        first, second = (chat.ask(ASKED.text, image=image, **GREEDY) for image in shown[one : one + 2])
        counts["conversations"] += 1
        counts["second answer as in a conversation of its own"] += second == alone
        counts["second answer is the first again"] += second == first
        if not arguments.images:
            counts["second answer true of the second picture"] += check(ASKED, truths[one + 1], second).success
            counts["second answer true of the first picture"] += check(ASKED, truths[one], second).success
            counts["answer alone true of the second picture"] += check(ASKED, truths[one + 1], alone).success
        print(one // 2 + 1, second == alone, flush=True)
    for what, count in counts.items():
        print(f"{what}: {count}")


if __name__ == "__main__":
    main()
