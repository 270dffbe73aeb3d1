"""What fewer bits change: `python bench/precision.py`.

The loss and the projection's gradient through the frozen pocket LLM in each of the formats that a recipe knows, against
those in float32, at the start of stage 1 and at its end; and the features of the vision tower, which is held in 8 bits
by `vision_load_in`. On pairs of the pocket world, in batches of 16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from minigpt4.data.batches import Batches, tokenise
from minigpt4.data.mixture import PairStream, Source
from minigpt4.data.pairs import Pair
from minigpt4.images import open_image
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.lora import set_trainable
from minigpt4.model.quantization import FORMATS, LOAD_IN, quantize_linears
from minigpt4.training.features import image_key
from minigpt4.training.loss import next_token_loss
from pocket.data.training_sets import write_stage1

BATCH = 16
#: Its name in the table; the number format of the frozen parts, and the LLM's `load_in`.
HELD: dict[str, tuple[str, str | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    **{name: ("bfloat16", name) for name in LOAD_IN},
}


@dataclass
class Found:
    """Of each batch: its loss, and the projection's gradient (n,)."""

    losses: list[float]
    gradients: list[Tensor]


def encoded(model: MiniGPT4, pairs: list[Pair]) -> Tensor:
    """The features (n, q, d) of the pairs' pictures."""
    return model.encode_images([open_image(pair.image) for pair in pairs]).float()


def loaded(held: str, at_end: bool) -> MiniGPT4:
    """A pocket model before or after stage 1, its LLM held so."""
    dtype, load_in = HELD[held]
    if at_end:
        return MiniGPT4.from_pretrained("pocket-stage1", device="cpu", dtype=dtype, load_in=load_in)
    parts = ("pocket/vision", "pocket/language")
    return MiniGPT4.assemble(*parts, template="pocket", device="cpu", dtype=dtype, load_in=load_in)


def through(model: MiniGPT4, pairs: list[Pair], features: Tensor) -> Found:
    """What comes of the pictures' features (n, q, d)."""
    set_trainable(model, 1)
    keys = [image_key(pair.image) for pair in pairs]
    samples = tokenise(
        model.tokenizer, list(zip(keys, [pair.text for pair in pairs], strict=True)), (), max_text_tokens=64,
        num_query_tokens=model.num_query_tokens, image_token_id=model.image_token_id,
    )  # fmt: skip
    of_picture = dict(zip(keys, features, strict=True))
    batches, found = Batches(samples, BATCH, seed=0), Found([], [])
    for batch in (batches[step] for step in range(batches.per_epoch)):
        loss = next_token_loss(model, batch, torch.stack([of_picture[key] for key in batch.images]))
        found.losses.append(loss.item())
        found.gradients.append(torch.autograd.grad(loss, model.blip2.language_projection.weight)[0].flatten())
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=64)
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as directory:
        write_stage1(Path(directory) / "pairs", arguments.pairs)
        pairs = list(
            PairStream([Source(str(Path(directory) / "pairs"))], stage=1, seed=0, shuffle_buffer=0, repeat=False)
        )
    table = Table(title=f"through the frozen LLM, {len(pairs)} pairs in batches of {BATCH}")
    for heading in ("", "loss", "gradient: relative error, mean", "cosine, lowest"):
        table.add_column(heading, justify="right" if heading else "left")
    features = encoded(loaded("float32", at_end=True), pairs)
    for at_end in (False, True):
        exact = through(loaded("float32", at_end), pairs, features)
        table.add_row("at the end of stage 1" if at_end else "at the start", f"{statistics.mean(exact.losses):.4f}")
        for held in [name for name in HELD if name != "float32"]:
            found = through(loaded(held, at_end), pairs, features)
            both = list(zip(found.gradients, exact.gradients, strict=True))
            cosines = [float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in both]
            table.add_row(
                f"  {held}", f"{statistics.mean(found.losses):.4f}",
                f"{statistics.mean(difference(a, b) for a, b in both):.1%}", f"{min(cosines):.4f}",
            )  # fmt: skip
    console.print(table)
    table = Table(title="features of the pictures")
    table.add_column("vision side in")
    table.add_column("relative error", justify="right")
    for form in (None, *FORMATS):
        model = MiniGPT4.from_pretrained("pocket-stage1", device="cpu", dtype="bfloat16")
        if form:
            quantize_linears(form, model.blip2.vision_model)
        name = f"bfloat16, the tower in {form}" if form else "bfloat16"
        table.add_row(name, f"{difference(encoded(model, pairs), features):.2%}")
    console.print(table)


if __name__ == "__main__":
    main()
