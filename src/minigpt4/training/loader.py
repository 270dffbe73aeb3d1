"""What each step trains on, read ahead: cached features, or images as they stream; its place goes into checkpoints."""

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from minigpt4.data.batches import Batch, Batches, Samples, tokenise
from minigpt4.data.mixture import TRIED, PairStream, check_skipped, tell, tell_first
from minigpt4.data.pairs import Pair
from minigpt4.data.sources import open_source
from minigpt4.data.workers import read_shares
from minigpt4.errors import UserError
from minigpt4.images import open_image, to_pixels
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.stopping import StopSignals
from minigpt4.training.checks import mixture
from minigpt4.training.distributed import Processes
from minigpt4.training.features import FeatureCache, Prepare, Prepared, cache_features, features_fingerprint
from minigpt4.training.recipe import Recipe

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Batches that are sorted by length together. Fewer than of cached features, since their images are in memory.
POOL = 4
#: Shares of a stream, at most, over all processes together. More keep more workers busy, but sort fewer by length.
LANES = 32
AHEAD = 3  # batches


@dataclass(frozen=True)
class Loaded:
    """One process's rows of a batch, and their `images`: features (n, q, d_qformer) or pixels (n, 3, h, w)."""

    batch: Batch
    images: Tensor
    state: dict[str, Any] | None = None  # the place in the data after it; None if it follows from the step

    @property
    def are_features(self) -> bool:
        """Whether `images` were encoded before."""
        return self.images.dim() == 3

    def part(self, chosen: slice) -> "Loaded":
        """Some of the rows."""
        return Loaded(self.batch.rows(chosen), self.images[chosen])


def make_loader(
    recipe: Recipe, model: MiniGPT4, processes: Processes, stop: StopSignals, progress: bool
) -> "tuple[CachedLoader | StreamedLoader, str]":
    """The batches of the recipe's data, and the data's fingerprint. Without `stream` images are encoded now."""
    sources, rank, world = mixture(recipe), processes.rank, processes.world
    open_stream = partial(
        PairStream, sources, stage=recipe.stage, seed=recipe.seed, max_skipped_share=recipe.max_skipped
    )
    tokenised = partial(
        tokenise, model.tokenizer, instructions=recipe.instructions, max_text_tokens=recipe.max_text_tokens,
        num_query_tokens=model.num_query_tokens, image_token_id=model.image_token_id, template=model.template,
    )  # fmt: skip
    if recipe.stream:
        once_opened = partial(open_stream, readers=[open_source(source) for source in sources])
        streamed = StreamedLoader(once_opened, model.image_processor, tokenised, recipe, rank, world)
        return streamed, f"stream {recipe.sources}"
    cache = FeatureCache(recipe.feature_cache, features_fingerprint(model))
    prepare = Prepare(model.image_processor, cache.index, rank, world)
    pairs = open_stream(shuffle_buffer=0, repeat=False, prepare=prepare)
    seen: list[tuple[bytes, Pair]] = []

    def noted() -> Iterator[Prepared]:
        for key, pair, pixels in pairs:
            seen.append((key, pair))
            yield key, pair, pixels

    cache_features(model, cache, noted(), progress=progress and processes.is_main, check_stop=stop.check)
    # Every process reads all pairs, but decodes and encodes only its share of the images.
    unreadable = sum(processes.gather(pairs.skipped["unreadable image"]))
    if world > 1:
        cache = FeatureCache(recipe.feature_cache, features_fingerprint(model))  # with what the others encoded
    usable = [(key, pair) for key, pair in seen if key in cache]
    skipped = +Counter({**pairs.skipped, "unreadable image": unreadable})
    if skipped and processes.is_main:
        logger.warning("data: %d pairs used; left out: %s%s", len(usable), tell(skipped), tell_first(skipped))
    samples: Samples = tokenised(usable)
    loader = CachedLoader(Batches(samples, recipe.batch_size, recipe.seed), cache, rank, world)
    if processes.is_main:
        tell_mended(samples.mended)
        loader.skipped, loader.seen = dict(skipped), len(usable) + skipped.total()
    check_skipped(recipe.data_named, len(usable) + skipped.total(), skipped, recipe.max_skipped)
    return loader, samples.fingerprint()


def tell_mended(texts: int) -> None:
    if texts:
        logger.warning("data: %d texts held the stop string of the template, which was taken out of them", texts)


class CachedLoader:
    """Rows `rank`, `rank + world`, ... of each step's batch, with features from the cache."""

    def __init__(self, batches: Batches, features: FeatureCache, rank: int = 0, world: int = 1) -> None:
        self._batches, self._features, self._rows = batches, features, slice(rank, None, world)
        self.skipped: dict[str, int] = {}  # causes of pairs that were left out, and how many
        self.seen = 0  # pairs, those included

    def start(self, first_step: int, state: dict[str, Any] | None = None) -> Iterator[Loaded]:
        """The batches of step `first_step` (the first is 0) and of all that follow."""
        for step in count(first_step):
            batch = self._batches[step].rows(self._rows)
            yield Loaded(batch, self._features[batch.images])


class StreamedLoader:
    """Batches of a stream's pairs of like length, from lanes divided over the processes: the same for any number."""

    def __init__(
        self,
        open_stream: Callable[..., PairStream],
        image_processor: Any,
        tokenised: Callable[[list[tuple[bytes, Pair]]], Samples],
        recipe: Recipe,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`open_stream` makes one lane's stream, of `rank` among `world_size`; images are decoded in it."""
        self._lanes, self._mine = lanes(recipe, world), range(rank, lanes(recipe, world), world)
        self._recipe = recipe
        buffer = recipe.shuffle_buffer and max(2, math.ceil(recipe.shuffle_buffer / self._lanes))
        rows = recipe.batch_size // self._lanes
        prepare = partial(_prepare, image_processor)
        self._work = [
            _Lane(
                partial(open_stream, rank=lane, world_size=self._lanes, shuffle_buffer=buffer, prepare=prepare),
                tokenised, rows, recipe.seed,
            )
            for lane in self._mine
        ]  # fmt: skip
        self.skipped: dict[str, int] = {}  # causes of pairs that were left out so far, and how many
        self.seen = 0  # pairs, those included
        self.mended = 0  # texts of the first batch that had any to be mended

    def start(self, first_step: int, state: dict[str, Any] | None = None) -> Iterator[Loaded]:
        """The batches after `state`, which may hold that of other processes' lanes too, or from the first."""
        if state and state["lanes"] != self._lanes:
            raise UserError(
                f"the stream was read in {state['lanes']} lanes, now there are {self._lanes}: it goes on only with a "
                f"number of processes that divides {state['lanes']}"
            )
        states = state["states"] if state else {}
        self._count([states[number] for number in self._mine if number in states])
        return self._batches(states)

    def _batches(self, states: Mapping[int, Any]) -> Iterator[Loaded]:
        starts = [partial(lane.chunks, states.get(number)) for lane, number in zip(self._work, self._mine, strict=True)]
        # Each worker takes as many lanes in turn, and is a whole pool of each ahead: it decodes while others wait.
        workers = next((n for n in range(self._recipe.workers, 0, -1) if len(starts) % n == 0), 0)
        rows: Iterator[_Rows] = read_shares(starts, workers, POOL * len(starts))
        while True:
            of_lanes = [next(rows) for _ in starts]
            if error := next((each.error for each in of_lanes if each.error), None):
                raise UserError(error)
            self._count([each.state for each in of_lanes])
            if not self.mended and (mended := sum(each.mended for each in of_lanes)):
                tell_mended(mended)  # the first of them; others follow
                self.mended = mended
            if self.seen >= TRIED:
                check_skipped(self._recipe.data_named, self.seen, Counter(self.skipped), self._recipe.max_skipped)
            rows_of_all = zip(*(each.rows for each in of_lanes), strict=True)
            batch = Batch.of(*([*chain.from_iterable(part)] for part in rows_of_all))
            reached = {number: each.state for number, each in zip(self._mine, of_lanes, strict=True)}
            pixels = torch.from_numpy(np.concatenate([each.pixels for each in of_lanes]))
            yield Loaded(batch, pixels, {"lanes": self._lanes, "states": reached})

    def _count(self, states: Sequence[Mapping[str, Any]]) -> None:
        skipped = sum((Counter(state["skipped"]) for state in states), Counter[str]())
        self.skipped, self.seen = dict(skipped), sum(state["read"] for state in states) + skipped.total()


def joined(states: Iterable[dict[str, Any] | None]) -> dict[str, Any]:
    """The state of a stream over all processes, from the states of each."""
    known = [state for state in states if state]
    return {"lanes": known[0]["lanes"], "states": {k: v for state in known for k, v in state["states"].items()}}


def lanes(recipe: Recipe, world: int) -> int:
    """Into how many shares a stream is cut: the same for one, two, four, ... processes, and so are the batches."""
    whole = math.gcd(recipe.batch_size, LANES)
    return whole if whole % world == 0 else world * math.gcd(recipe.batch_size // world, max(1, LANES // world))


@dataclass(frozen=True)
class _Rows:
    """One lane's rows of a batch, good to be sent from process to process: no tensors, which take a file each."""

    rows: tuple[list[bytes], list[list[int]], list[list[int]]]  # image keys, prompts and targets
    pixels: np.ndarray
    state: dict[str, Any]  # the place in the data, and how many pairs were read and skipped
    error: str | None = None
    mended: int = 0  # texts of its pool that held the stop string


@dataclass(frozen=True)
class _Lane:
    """A share of the stream, in pools that are sorted by length, cut into rows and shuffled, in all lanes alike."""

    open_stream: Callable[[], PairStream]
    tokenised: Callable[[list[tuple[bytes, Pair]]], Samples]
    size: int
    seed: int

    def chunks(self, state: Mapping[str, Any] | None) -> Iterator[_Rows]:
        """The rows of every batch after `state`; an error is the last of them."""
        try:
            stream, number, taken = self.open_stream(), 0, 0
            if state:
                stream.load_state_dict(state["stream"])
                number, taken = state["pool"], state["taken"]
            pairs = iter(stream)
            while True:
                before = stream.state_dict()
                pool = list(islice(pairs, POOL * self.size))
                samples = self.tokenised([(pair.name.encode(errors="backslashreplace"), pair) for pair, _ in pool])
                batches = Batches(samples, self.size, (self.seed, number), pool=POOL)
                counts = {"read": stream.yielded, "skipped": stream.state_dict()["skipped"]}
                for position in range(taken, POOL):
                    pixels = np.stack([pool[i][1] for i in batches.chosen(position)])
                    here = {"stream": before, "pool": number, "taken": position + 1, **counts}
                    yield _Rows(batches.rows(position), pixels, here, mended=samples.mended)
                number, taken = number + 1, 0
        except (UserError, OSError) as error:
            yield _Rows(([], [], []), np.empty(0), {}, str(error))


def _prepare(image_processor: Any, pair: Pair) -> tuple[Pair, np.ndarray]:
    """The pair without its image, and the image's pixels (3, h, w), preprocessed."""
    return replace(pair, image=b""), to_pixels(image_processor, [open_image(pair.image)])[0]


def read_ahead(items: Iterator[T], depth: int = AHEAD) -> Generator[T, None, None]:
    """The same endless items, made in a thread that is up to `depth` of them ahead."""
    thread = ThreadPoolExecutor(1, "read_ahead")
    try:
        ready = deque(thread.submit(next, items) for _ in range(depth))
        while True:
            item = ready.popleft().result()
            ready.append(thread.submit(next, items))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)
        if hasattr(items, "close"):
            items.close()
