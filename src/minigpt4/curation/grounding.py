"""How far the picture supports each sentence: how much likelier the model finds it than with other pictures.

A sentence that the picture supports loses likelihood when other pictures take its place; one that could be said of any
picture, or was made up from habit, does not. The loss is given relative to how unlikely the sentence is with the other
pictures: 1 - nll(own picture) / mean nll(other pictures), the share of its surprise that the picture explains. It is 1
for a sentence that the picture makes certain, 0 for one that it says nothing about, below 0 for one that it speaks
against. (On pocket sentences this finds false ones better than the plain difference, in which a rare word weighs more
than a doubtful one.) Knows nothing about thresholds or what becomes of a sentence.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt4.curation.describe import Describing, model_fingerprint
from minigpt4.curation.language import sentences
from minigpt4.curation.ledger import Item, Ledger, Picture
from minigpt4.endpoint import STOPPED
from minigpt4.errors import UserError
from minigpt4.images import open_image
from minigpt4.progress import progress_bar
from minigpt4.prompts.encode import encode_chat, plain
from minigpt4.prompts.templates import Message
from minigpt4.stopping import StopSignals

if TYPE_CHECKING:
    from minigpt4.minigpt4 import MiniGPT4

logger = logging.getLogger(__name__)

BATCH = 32


@dataclass(frozen=True)
class Score:
    """How one text is grounded.

    Attributes:
        sentences: (start, end, grounding) of each sentence.
        whole: grounding of the text as a whole.
        fluency: mean log-likelihood of its tokens with other pictures, in nats: how likely it is as language.
    """

    sentences: list[tuple[int, int, float]]
    whole: float
    fluency: float

    @property
    def lowest(self) -> float:
        """Of the sentence that the picture supports least; 0 for a text without any."""
        return min((score for _, _, score in self.sentences), default=0.0)


@torch.inference_mode()
def token_likelihoods(
    model: MiniGPT4, instruction: str, texts: Sequence[str], features: Tensor, pairs: Sequence[tuple[int, int]]
) -> list[Tensor]:
    """For each (text, picture) of `pairs`, the log-likelihood of every token of that text given that picture.

    The text is the answer to `instruction` in the model's chat format. `features`: (pictures, q, d_qformer). Returns
    float32 tensors of the lengths of the texts in tokens, in nats.
    """
    prompt = encode_chat(
        model.tokenizer,
        model.template,
        [Message("user", instruction, images=1)],
        model.num_query_tokens,
        model.image_token_id,
    )
    targets = [_tokens(model, text)[0] for text in texts]
    limit = getattr(model.blip2.language_model.config, "max_position_embeddings", None)
    found: list[Tensor] = [torch.empty(0)] * len(pairs)
    by_length = sorted(range(len(pairs)), key=lambda i: len(targets[pairs[i][0]]))
    for start in range(0, len(by_length), BATCH):
        rows = by_length[start : start + BATCH]
        answers = [targets[pairs[i][0]][: limit and limit - len(prompt)] for i in rows]
        ids = torch.zeros(len(rows), len(prompt) + max(map(len, answers)), dtype=torch.int64)
        for row, answer in enumerate(answers):
            ids[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        # Padding stands on the right of causal attention, so nothing real sees it.
        hidden = model.hidden_states(ids, features[[pairs[i][1] for i in rows]].to(model.device))
        logits = model.logits(hidden[:, len(prompt) - 1 : -1]).float()
        likely = -F.cross_entropy(logits.transpose(1, 2), ids[:, len(prompt) :].to(logits.device), reduction="none")
        for row, i in enumerate(rows):
            found[i] = likely[row, : len(answers[row])].cpu()
    return found


def _tokens(model: MiniGPT4, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text as the model would write it, and where in the text each stands."""
    shown = plain(model.tokenizer, text)
    encoded = model.tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True)
    return encoded["input_ids"], [tuple(span) for span in encoded["offset_mapping"]]


def score(model: MiniGPT4, text: str, own: Tensor, others: Tensor) -> Score:
    """A text's score from its tokens' log-likelihoods with its own picture (t,) and with others (n, t)."""
    kept = len(own)  # fewer than there are, where the text is longer than the model reads
    _, spans = _tokens(model, text)
    elsewhere = others.mean(0)
    found = []
    for start, end in sentences(text):
        inside = [i for i, (first, last) in enumerate(spans[:kept]) if first < end and last > start]
        if inside:
            found.append((start, end, _explained(own[inside], elsewhere[inside])))
    fluency = float(elsewhere.mean()) if kept else 0.0
    return Score(found, _explained(own, elsewhere), fluency)


def _explained(own: Tensor, elsewhere: Tensor) -> float:
    nll = -float(elsewhere.sum())
    return round(1 + float(own.sum()) / nll, 4) if nll > 0 else 0.0


def ground(
    ledger: Ledger,
    name: str | Path,
    *,
    instruction: str = Describing().instruction,
    others: int = 4,
    seed: int = 0,
    only: Iterable[str] = (),
) -> dict[str, int]:
    """Score every present text that has no score of this model and these settings; returns counts.

    `others` pictures of the project, drawn for each picture from `seed`, take its place. Raises UserError for fewer
    than two pictures, KeyboardInterrupt after Ctrl-C; what is scored is recorded.
    """
    from minigpt4.minigpt4 import MiniGPT4

    with ledger.lock("ground"), StopSignals() as stop:
        model = MiniGPT4.from_pretrained(name)
        record = {"model": str(name), "projection": model_fingerprint(model), "instruction": instruction}
        settings = ledger.settings("ground", {**record, "others": others, "seed": seed})
        done = {event.source for event in ledger.events("ground") if event.settings == settings}
        items = [item for item in ledger.items(only) if item.source.seq not in done]
        counts = {"scored": 0, "left out": 0, "done before": len(ledger.items(only)) - len(items)}
        if not items:
            return counts
        features = Features(model, ledger.pictures())
        with progress_bar() as bar:
            task = bar.add_task("ground", total=len(items), note="")
            for start in range(0, len(items), BATCH):
                if stop.received:
                    raise KeyboardInterrupt(STOPPED)
                batch = [item for item in items[start : start + BATCH] if item.text.strip()]
                rows = _score_batch(model, instruction, batch, features, others, seed)
                counts["scored"] += ledger.add("ground", settings, rows)
                counts["left out"] += len(items[start : start + BATCH]) - len(rows)
                bar.update(task, advance=len(items[start : start + BATCH]))
        return counts


def _score_batch(
    model: MiniGPT4, instruction: str, batch: Sequence[Item], features: Features, others: int, seed: int
) -> list[tuple[tuple[str, int], int, dict[str, Any]]]:
    features.load(
        name for item in batch for name in (item.picture.name, *features.drawn(item.picture.name, seed)[:others])
    )
    items = [item for item in batch if features.has(item.picture.name)]
    pairs: list[tuple[int, int]] = []
    rows: list[str] = []
    for i, item in enumerate(items):
        for name in [item.picture.name, *features.others(item.picture.name, others, seed)]:
            pairs.append((i, len(rows)))
            rows.append(name)
    if not items:
        return []
    vectors = torch.stack([features[name] for name in rows])
    found = token_likelihoods(model, instruction, [item.text for item in items], vectors, pairs)
    scored = []
    for i, item in enumerate(items):
        own, *elsewhere = [found[k] for k, (text, _) in enumerate(pairs) if text == i]
        result = score(model, item.text, own, torch.stack(elsewhere))
        data = {"sentences": result.sentences, "lowest": result.lowest, "whole": result.whole}
        scored.append((item.key, item.source.seq, {**data, "fluency": round(result.fluency, 4)}))
    return scored


class Features:
    """The vision side's output for the project's pictures, computed when asked for."""

    def __init__(self, model: MiniGPT4, pictures: Sequence[Picture]) -> None:
        self._model = model
        self._pictures = {picture.name: picture for picture in pictures}
        self._names = list(self._pictures)
        self._found: dict[str, Tensor | None] = {}
        if len(self._names) < 2:
            raise UserError("grounding compares a picture with others, so the project needs at least two")

    def has(self, name: str) -> bool:
        """Whether the picture can be read; says why, once, if not."""
        if name not in self._found:
            self.load([name])
        return self._found[name] is not None

    def load(self, names: Iterable[str]) -> None:
        """Compute the features of these pictures in one batch."""
        opened = {}
        for name in dict.fromkeys(names):
            if name not in self._found:
                try:
                    opened[name] = open_image(self._pictures[name].read())
                except UserError as error:
                    logger.warning("left out: %s", error)
                    self._found[name] = None
        if opened:
            self._found |= dict(zip(opened, self._model.encode_images(list(opened.values())), strict=True))

    def __getitem__(self, name: str) -> Tensor:
        assert self.has(name)
        return self._found[name]  # type: ignore[return-value]

    def others(self, name: str, count: int, seed: int) -> list[str]:
        """`count` other pictures that can be read, or as many as there are; the same ones for the same `seed`."""
        return list(itertools.islice((other for other in self.drawn(name, seed) if self.has(other)), count))

    def drawn(self, name: str, seed: int) -> list[str]:
        """All other pictures in an order of their own for each name and seed."""
        names = [other for other in self._names if other != name]
        random.Random(f"{seed} {name}").shuffle(names)
        return names
