"""What each step trains on, read ahead: batches of cached features, or of pictures as they stream in.

Each process gets its rows of every batch. Where a loader stands is part of a checkpoint, so a run that goes on sees
what it would have seen. Knows nothing about models, but for the preprocessing of pictures.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from minigpt4.data.batches import Batch, Batches, Samples
from minigpt4.data.features import FeatureCache
from minigpt4.data.images import open_image, to_pixels
from minigpt4.data.mixture import PairStream
from minigpt4.data.pairs import Pair
from minigpt4.errors import UserError

if TYPE_CHECKING:
    from minigpt4.training.recipe import Recipe

T = TypeVar("T")

#: Batches that are sorted by length together. Fewer than of cached features, for their pictures are in memory.
POOL = 4
AHEAD = 3  # batches


@dataclass(frozen=True)
class Loaded:
    """One process's rows of a batch, with their features (n, q, d_qformer) or their pictures' pixels (n, 3, h, w).

    `state` is where the loader stands after it, good for `torch.save`; None if that follows from the step.
    """

    batch: Batch
    features: Tensor | None = None
    pixels: Tensor | None = None
    state: dict[str, Any] | None = None

    def part(self, chosen: slice) -> Loaded:
        """Some of the rows."""
        return Loaded(
            self.batch.rows(chosen),
            None if self.features is None else self.features[chosen],
            None if self.pixels is None else self.pixels[chosen],
        )

    def to(self, device: torch.device) -> Loaded:
        """With its tensors on `device`; on CUDA they are pinned, so the copy runs beside the work."""

        def move(tensor: Tensor) -> Tensor:
            return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)

        if device.type == "cpu":
            return self
        batch = replace(self.batch, input_ids=move(self.batch.input_ids), is_target=move(self.batch.is_target))
        features, pixels = (None if tensor is None else move(tensor) for tensor in (self.features, self.pixels))
        return replace(self, batch=batch, features=features, pixels=pixels)


class CachedLoader:
    """Rows `rank`, `rank + world`, ... of each step's batch, with features from the cache."""

    def __init__(self, batches: Batches, features: FeatureCache, rank: int = 0, world: int = 1) -> None:
        self._batches, self._features, self._rows = batches, features, slice(rank, None, world)
        self.skipped: dict[str, int] = {}  # causes of pairs that were left out, and how many

    def start(self, first_step: int, state: dict[str, Any] | None = None) -> Iterator[Loaded]:
        """The batches of step `first_step` (the first is 0) and of all that follow."""
        step = first_step
        while True:
            batch = self._batches[step]
            if self._rows != slice(0, None, 1):
                batch = batch.rows(self._rows)
            yield Loaded(batch, features=self._features[batch.pictures])
            step += 1


class StreamedLoader:
    """Batches of a stream's pairs, those of like length together; `batch_size` is this process's share."""

    def __init__(
        self,
        open_stream: Callable[..., PairStream],
        image_processor: Any,
        tokenised: Callable[[list[tuple[bytes, Pair]]], Samples],
        batch_size: int,
        seed: tuple[int, int],
    ) -> None:
        self._stream = open_stream(prepare=partial(_prepare, image_processor))
        self._tokenised, self._batch_size, self._seed = tokenised, batch_size, seed

    @property
    def skipped(self) -> dict[str, int]:
        """Causes of pairs that were left out so far, and how many."""
        return dict(self._stream.skipped)

    def start(self, first_step: int, state: dict[str, Any] | None = None) -> Iterator[Loaded]:
        """The batches after `state`, or from the first."""
        number, taken = 0, 0
        if state:
            self._stream.load_state_dict(state["stream"])
            number, taken = state["pool"], state["taken"]
        pairs = iter(self._stream)
        while True:
            before = self._stream.state_dict()
            pool = list(islice(pairs, POOL * self._batch_size))
            if len(pool) < POOL * self._batch_size:
                raise UserError("the data ended before the last step")
            samples = self._tokenised([(pair.name.encode(), pair) for pair, _ in pool])
            batches = Batches(samples, self._batch_size, (*self._seed, number), pool=POOL)
            for position in range(taken, POOL):
                rows = batches.chosen(position)
                pixels = torch.from_numpy(np.stack([pool[i][1] for i in rows]))
                state = {"stream": before, "pool": number, "taken": position + 1}
                yield Loaded(batches[position], pixels=pixels, state=state)
            number, taken = number + 1, 0


def _prepare(image_processor: Any, pair: Pair) -> tuple[Pair, np.ndarray]:
    """The pair without its picture, and the picture's pixels (3, h, w) as the vision tower takes them."""
    return replace(pair, picture=b""), to_pixels(image_processor, [open_image(pair.picture)])[0]


def read_ahead(items: Iterator[T], depth: int = AHEAD) -> Generator[T, None, None]:
    """The same items, made in a thread that is up to `depth` of them ahead."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    over = threading.Event()

    def put(item: Any) -> bool:
        while not over.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            yield item
    finally:
        over.set()
        thread.join()
        if hasattr(items, "close"):
            items.close()


def rows_of_each(recipe: Recipe, world: int) -> int:
    """How many rows of a batch each process trains on. Raises UserError if that does not come out even."""
    if recipe.batch_size % (world * recipe.accumulate):
        raise UserError(
            f"batch_size {recipe.batch_size} cannot be divided over {world} processes x {recipe.accumulate} parts "
            f"(accumulate); give a multiple of {world * recipe.accumulate}"
        )
    return recipe.batch_size // world
