"""How far an image supports each sentence: how much likelier the model finds the sentence with it than with others.

The grounding of a sentence is 1 - nll(own image) / mean nll(other images): the share of its surprise that the image
explains. It is 1 if the image makes the sentence certain, 0 if the sentence could be said of any image, and negative if
the image speaks against it. (In the plain difference a rare word would weigh more than a doubtful one.)
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt4.curation.describe import Describing
from minigpt4.curation.language import sentences
from minigpt4.curation.ledger import Description, Ledger
from minigpt4.errors import UserError
from minigpt4.generation.likelihood import token_likelihoods
from minigpt4.images import open_image
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.loading import weights_fingerprint
from minigpt4.progress import progress_bar
from minigpt4.prompts.encode import encode_chat, plain
from minigpt4.prompts.templates import Message
from minigpt4.stopping import StopSignals

BATCH, SEED = 32, 0


def _tokens(model: MiniGPT4, text: str) -> Any:
    """A text as the model would write it, tokenised: `input_ids`, and the `offset_mapping` of each in the text."""
    return model.tokenizer(plain(model.tokenizer, text), add_special_tokens=False, return_offsets_mapping=True)


def measure_grounding(model: MiniGPT4, text: str, own: Tensor, others: Tensor) -> dict[str, Any]:
    """How one text is grounded, from its tokens' log-likelihoods with its own image (t,) and with others (n, t)."""
    spans = _tokens(model, text)["offset_mapping"][: len(own)]  # a text longer than the context was cut
    elsewhere = others.mean(0)
    found = []
    for start, end in sentences(text):
        inside = [i for i, (first, last) in enumerate(spans) if first < end and last > start]
        if inside:
            found.append((start, end, _explained(own[inside], elsewhere[inside])))
    return {
        "sentences": found,  # (start, end, grounding) of each
        "lowest": min((value for _, _, value in found), default=0.0),
        "whole": _explained(own, elsewhere),
        "fluency": round(float(elsewhere.mean()), 4) if len(own) else 0.0,  # nats per token
    }


def _explained(own: Tensor, elsewhere: Tensor) -> float:
    nll = -float(elsewhere.sum())
    return round(1 + float(own.sum()) / nll, 4) if nll > 0 else 0.0


def ground(
    ledger: Ledger,
    name: str | Path,
    *,
    instruction: str = Describing().instruction,
    others: int = 4,
    only: Iterable[str] = (),
) -> dict[str, int]:
    """Measure texts that have no grounding yet, against `others` images each; returns counts. Raises UserError."""
    with ledger.lock("ground"), StopSignals() as stop:
        model = MiniGPT4.from_pretrained(name)
        record = {"model": str(name), "projection": weights_fingerprint(name), "instruction": instruction}
        settings = ledger.settings("ground", {**record, "others": others, "seed": SEED})
        done, turn = {event.source: event.settings for event in ledger.events("ground")}, ledger.next_turn("ground")
        wanted = ledger.items(only)
        items = [item for item in wanted if item.grounding is None or done.get(item.source.seq) != settings]
        counts = {"scored": 0, "left out": 0, "done before": len(wanted) - len(items)}
        features = ImageFeatures(model, ledger)
        with progress_bar() as bar:
            task = bar.add_task("ground", total=len(items), note="")
            for start in range(0, len(items), BATCH):
                stop.check()
                batch = items[start : start + BATCH]
                rows = _ground_batch(model, instruction, batch, features, others)
                counts["scored"] += ledger.add("ground", settings, rows, turn)
                counts["left out"] += len(batch) - len(rows)
                bar.update(task, advance=len(batch))
        return counts


def _ground_batch(
    model: MiniGPT4, instruction: str, batch: Sequence[Description], features: "ImageFeatures", others: int
) -> list[tuple[tuple[str, int], int, dict[str, Any]]]:
    """The rows for the ledger; empty texts and texts whose image is gone are left out."""
    drawn = [(item, features.with_others(item.image.name)) for item in batch if item.text.strip()]
    features.load(itertools.chain.from_iterable(names[: 1 + others] for _, names in drawn))  # in one batch
    compared: list[tuple[Description, list[Tensor]]] = []
    for item, names in drawn:
        if features.get(names[0]) is not None:
            found = (one for name in names if (one := features.get(name)) is not None)
            compared.append((item, list(itertools.islice(found, 1 + others))))
            if len(compared[-1][1]) < 2:
                raise UserError("grounding compares an image with others, so the project needs at least two")
    image_tokens = model.num_query_tokens, model.image_token_id
    prompt = encode_chat(model.tokenizer, model.template, [Message("user", instruction, images=1)], *image_tokens)
    texts = [_tokens(model, item.text)["input_ids"] for item, vectors in compared for _ in vectors]
    images = [each for _, vectors in compared for each in vectors]
    likelihoods = iter(token_likelihoods(model, [prompt] * len(texts), texts, images, BATCH))
    rows: list[tuple[tuple[str, int], int, dict[str, Any]]] = []
    for item, vectors in compared:
        own, *elsewhere = itertools.islice(likelihoods, len(vectors))
        rows.append((item.key, item.source.seq, measure_grounding(model, item.text, own, torch.stack(elsewhere))))
    return rows


class ImageFeatures:
    """The vision encoder's output for the images of a project, (q, d_qformer) each, computed when asked for."""

    def __init__(self, model: MiniGPT4, ledger: Ledger) -> None:
        self._model = model
        self._images = {image.name: image for image in ledger.images()}
        self._found: dict[str, Tensor | None] = {}

    def load(self, names: Iterable[str]) -> None:
        """Compute the features of these images in one batch; those that cannot be read are logged, once."""
        opened = {}
        for name in dict.fromkeys(names):
            if name not in self._found:
                self._found[name] = None
                if (data := self._images[name].read_if_there()) is not None:
                    opened[name] = open_image(data)
        if opened:
            self._found |= dict(zip(opened, self._model.encode_images(list(opened.values())), strict=True))

    def get(self, name: str) -> Tensor | None:
        """The features of an image, or None if it cannot be read."""
        self.load([name])
        return self._found[name]

    def with_others(self, name: str) -> list[str]:
        """`name` and the names of all other images, in an order of their own for each name."""
        others = [other for other in self._images if other != name]
        random.Random(f"{SEED} {name}").shuffle(others)
        return [name, *others]
