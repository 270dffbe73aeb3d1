"""Several sources of pairs as one stream: mixed by weight, shuffled, split over ranks and workers, resumable.

The order follows from the seed, the rank and the number of processes alone. `datasets` goes through the shards of a
source and knows where it stands there. Mixing and shuffling are done here, in blocks: `datasets`' own shuffle buffer
forgets what it holds when a run is resumed, and its interleaving repeats a source in the same order for ever.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any

import numpy as np

from minigpt4.data.formats import Reader
from minigpt4.data.pairs import Cause, Pair
from minigpt4.data.sources import Source, check_source, open_source
from minigpt4.data.workers import Chunk, datasets_library, read_shares
from minigpt4.errors import UserError

CHUNK = 16  # pairs that travel together from a worker
UNSHUFFLED_BLOCK = 256
#: With so many shards for each process, one more or less does not matter; with fewer, shards are shared.
SHARDS_EACH = 16
MIX, SHUFFLE = 0, 1  # uses of the random numbers of a block
TRIED = 1000  # pairs after which a source's share of skipped ones is judged; at its end in any case


def check_sources(sources: Sequence[Source], stage: int) -> None:
    """Raises UserError for what is missing or does not fit, in a moment: files, shards, the caption's key."""
    if not sources:
        raise UserError("data: no source is named")
    for source in sources:
        check_source(source, stage)


def count_pairs(sources: Sequence[Source]) -> int | None:
    """How many pairs the sources hold, if that can be known cheaply (broken ones included), else None."""
    counts = [open_source(source).count() for source in sources]
    return None if None in counts else sum(filter(None, counts))


def tell(skipped: Mapping[str, int]) -> str:
    """What was left out, in words: each cause with its count, the most frequent first."""
    return ", ".join(f"{cause} {number}" for cause, number in Counter(skipped).most_common())


def tell_first(skipped: Mapping[str, int]) -> str:
    """Where each cause came first and what was wrong there, in words, as far as that is known."""
    details = (getattr(cause, "detail", "") for cause, _ in Counter(skipped).most_common(3))
    return "".join(f"; {detail}" for detail in details if detail)


def _plain(skipped: Mapping[str, int]) -> dict[str, int]:
    """The causes as plain strings: a checkpoint, in which the state lies, holds no classes of ours."""
    return {str(cause): number for cause, number in skipped.items()}


def check_skipped(path: str, seen: int, skipped: Counter[str], most: float) -> None:
    """Raises UserError if more than the share `most` of the pairs was left out."""
    if skipped.total() > most * seen:
        told = f"{skipped.total()} of {seen} pairs cannot be used ({tell(skipped)}), more than a share of {most:g}"
        raise UserError(f"data {path}: {told}; `minigpt4 data inspect` shows them{tell_first(skipped)}")


class PairStream:
    """The pairs of all sources, endless if `repeat`; an iterable that can be stopped and resumed to the pair.

    Sources are drawn from by weight, or without `repeat` gone through once. `seed` decides the order, together with
    `shuffle_buffer` (pairs held in memory to be shuffled; 0 keeps the order), `rank`, `world_size` and `workers`. This
    process takes its share of every source, read in `workers` processes or here. `prepare` is applied there to each
    pair, and its result takes the pair's place; a UserError from it skips the pair. A source of which more than
    `max_skipped_share` is skipped ends the run with a UserError. `readers` are those of `sources`, if they are open.
    """

    def __init__(
        self, sources: Sequence[Source], *, stage: int, seed: int, shuffle_buffer: int = 10_000, rank: int = 0,
        world_size: int = 1, workers: int = 0, repeat: bool = True, prepare: Callable[[Pair], Any] | None = None,
        max_skipped_share: float = 0.1, readers: Sequence[Reader] | None = None,
    ) -> None:  # fmt: skip
        if not sources:
            raise UserError("data: no source is named")
        self.skipped: Counter[str] = Counter()  # causes of pairs that were left out so far
        self._settings: dict[str, Any] = {
            "sources": [[source.path, source.weight, source.caption_key] for source in sources],
            "stage": stage, "seed": seed, "shuffle_buffer": shuffle_buffer, "rank": rank, "world_size": world_size,
            "workers": workers, "repeat": repeat,
        }  # fmt: skip
        readers = readers or [open_source(source) for source in sources]
        shares = max(workers, 1)
        shuffle = shuffle_buffer > 1
        block = math.ceil(shuffle_buffer / shares) if shuffle else UNSHUFFLED_BLOCK
        size = CHUNK if workers else 1  # in this process a pair is prepared when it is asked for, no sooner

        def share(process: int) -> _Share:
            passes = [
                _Passes(source.path, reader, stage, (seed, i), process, world_size * shares, shuffle, max_skipped_share)
                for i, (source, reader) in enumerate(zip(sources, readers, strict=True))
            ]
            return _Share(passes, [s.weight for s in sources], (seed, process), block, shuffle, repeat, prepare, size)

        self._shares = [share(rank * shares + worker) for worker in range(shares)]
        self._states: list[dict[str, Any] | None] = [None] * shares
        self._turn = self._offset = 0
        self.yielded = 0  # pairs that were not left out
        self._max_skipped = max_skipped_share

    def __iter__(self) -> Iterator[Any]:
        number = len(self._shares)
        turns = [(self._turn + i) % number for i in range(number)]
        starts = [partial(self._shares[i].chunks, self._states[i]) for i in turns]
        done = [False] * number
        for chunk in read_shares(starts, self._settings["workers"], 2 * number):
            while self._offset < len(chunk.items):
                self._offset += 1
                yield chunk.items[self._offset - 1]
            if chunk.error:
                raise UserError(chunk.error)
            self.skipped += chunk.skipped
            self.yielded += len(chunk.items)
            self._states[self._turn] = chunk.state
            done[self._turn] = chunk.done
            self._turn, self._offset = (self._turn + 1) % number, 0
            seen = self.yielded + self.skipped.total()
            if seen >= TRIED or all(done):
                paths = ", ".join(path for path, *_ in self._settings["sources"])
                check_skipped(paths, seen, self.skipped, self._max_skipped)
            if all(done):
                return

    def state_dict(self) -> dict[str, Any]:
        """Where this rank's stream stands after the last pair that it yielded: small, and good for JSON."""
        here = {"turn": self._turn, "offset": self._offset, "yielded": self.yielded}
        return {"settings": self._settings, "shares": [*self._states], **here, "skipped": _plain(self.skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises UserError if it belongs to a stream of other settings, and says which."""
        differing = [key for key, value in self._settings.items() if state["settings"].get(key) != value]
        if differing:
            raise UserError(f"the data cannot be resumed with another {', '.join(differing)}: their order would change")
        self._states = list(state["shares"])
        self._turn, self._offset = state["turn"], state["offset"]
        self.yielded, self.skipped = state["yielded"], Counter(state["skipped"])


@dataclass
class _Share:
    """What one worker of one rank sees: blocks drawn by weight, shuffled, each yielded while the next is read."""

    sources: "list[_Passes]"
    weights: list[float]
    seeds: tuple[int, int]
    block: int
    shuffle: bool
    repeat: bool
    prepare: Callable[[Pair], Any] | None
    size: int  # pairs in a chunk

    def chunks(self, state: Mapping[str, Any] | None) -> Iterator[Chunk]:
        """The chunks after `state`, then empty ones for ever; the last one is an error's, if there is one."""
        number, position = (state["block"], state["position"]) if state else (0, 0)
        starts = state["sources"] if state else [None] * len(self.sources)
        try:
            for source, start in zip(self.sources, starts, strict=True):
                source.load(start)
            skipped: Counter[str] = Counter()
            block: list[Pair | None] = [*self._draw(number, skipped)]
            while block:
                order = self._random(number, SHUFFLE).permutation(len(block)) if self.shuffle else range(len(block))
                following: list[Pair | None] = []
                skipped_next: Counter[str] = Counter()
                next_starts = [source.state() for source in self.sources]
                draw = self._draw(number + 1, skipped_next)
                if position:
                    skipped.clear()  # what reading this block left out was told with its first chunk
                items = []
                for i, place in enumerate(order, 1):
                    pair, block[place] = block[place], None
                    following.extend(islice(draw, 1))
                    if i <= position:
                        continue
                    assert pair is not None  # each place comes once
                    try:
                        items.append(pair if self.prepare is None else self.prepare(pair))
                    except UserError as error:
                        skipped[Cause("unreadable image", f"{pair.name}: {error}")] += 1
                    if i % self.size == 0 and i < len(block):
                        yield Chunk(items, {"block": number, "position": i, "sources": starts}, skipped)
                        items, skipped = [], Counter()
                following.extend(draw)
                number, position, starts = number + 1, 0, next_starts
                yield Chunk(items, {"block": number, "position": 0, "sources": starts}, skipped)
                block, skipped = following, skipped_next
        except (UserError, OSError) as error:
            yield Chunk([], None, Counter(), error=str(error))
        while True:
            yield Chunk([], {"block": number, "position": 0, "sources": starts}, Counter(), done=True)

    def _draw(self, number: int, skipped: Counter[str]) -> Iterator[Pair]:
        """The pairs of a block in the order in which they are read."""
        weights = [0.0 if source.through else weight for source, weight in zip(self.sources, self.weights, strict=True)]
        places = list(accumulate(weights))
        for at in self._random(number, MIX).random(self.block):
            while places[-1] > 0:
                i = bisect_right(places, at * places[-1])
                pair = self.sources[i].next_pair(skipped, self.repeat)
                if pair is not None:
                    yield pair
                    break
                weights[i] = 0.0  # it is through, and leaves its share to the others
                places = list(accumulate(weights))

    def _random(self, block: int, use: int) -> np.random.Generator:
        return np.random.default_rng([*self.seeds, block, use])


@dataclass
class _Passes:
    """One process's share of one source, pass after pass; it knows how far it is."""

    path: str
    reader: Reader
    stage: int
    seeds: tuple[int, int]
    process: int
    processes: int
    shuffle: bool
    max_skipped_share: float

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Stand where `state` says, or at the start."""
        state = state or {"pass": 0, "seen": 0, "skipped": {}, "through": False, "position": None}
        self._pass, self._seen, self._skipped = state["pass"], state["seen"], Counter(state["skipped"])
        self.through, self._position = state["through"], state["position"]
        self._dataset: Any = None

    def state(self) -> dict[str, Any]:
        position = self._position if self._dataset is None else self._dataset.state_dict()
        here = {"pass": self._pass, "seen": self._seen, "skipped": _plain(self._skipped)}
        return {**here, "through": self.through, "position": position}

    def next_pair(self, skipped: Counter[str], repeat: bool) -> Pair | None:
        """The next usable pair; None when one pass is through and `repeat` is not set."""
        while not self.through:
            if self._dataset is None:
                arguments = {"reader": self.reader, "stage": self.stage, "shards": self._shards()}
                self._dataset = datasets_library().IterableDataset.from_generator(_read, gen_kwargs=arguments)
                if self._position is not None:
                    self._dataset.load_state_dict(self._position)
                # By `iter`: iterated plainly, a worker's dataset would share its shards out once more over all workers.
                self._items = chain.from_iterable(batch["item"] for batch in self._dataset.iter(batch_size=1))
            for item in self._items:
                self._seen += 1
                if isinstance(item, Pair):
                    return item
                skipped[item] += 1
                self._skipped[item] += 1
                if self._seen >= TRIED:
                    check_skipped(self.path, self._seen, self._skipped, self.max_skipped_share)
            if repeat and self._seen == self._skipped.total():
                none = f"share {self.process + 1} of {self.processes} finds no usable pair"
                raise UserError(f"data {self.path}: {none}; use fewer workers or processes, or leave out stream=true")
            self.through = not repeat
            self._pass, self._seen, self._skipped = self._pass + 1, 0, Counter()
            self._dataset = self._position = None
        return None

    def _shards(self) -> list[tuple[Any, int, int]]:
        """This process's shards in this pass. Every process takes as many, as nearly as may be."""
        shards = self.reader.shards()
        if self.shuffle:
            order = np.random.default_rng([*self.seeds, self._pass]).permutation(len(shards))
            shards = [shards[i] for i in order]
        even = self.processes // math.gcd(len(shards), self.processes)
        parts = max(1, min(even, math.ceil(SHARDS_EACH * self.processes / max(len(shards), 1))))
        shared = [(shard, (part + i) % parts, parts) for i, shard in enumerate(shards) for part in range(parts)]
        return shared[self.process :: self.processes]


def _read(reader: Reader, stage: int, shards: list[tuple[Any, int, int]]) -> Iterator[dict[str, Any]]:
    for shard, part, parts in shards:
        for item in reader.read(shard, part, parts, stage):
            yield {"item": item}
