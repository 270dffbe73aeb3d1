"""Several sources of pairs as one stream: mixed by weight, shuffled, split over ranks and workers, resumable.

Skeleton: the interface that training builds on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minigpt4.data.pairs import Pair


@dataclass(frozen=True)
class Source:
    """One source of pairs, as a recipe names it.

    Attributes:
        path: tar pattern `{00000..10488}.tar`, a directory (image folder, cc_sbu_align, tars), a `.jsonl`, `.csv` or
            `.parquet` file, or `hub:owner/name[:split]`.
        weight: share of the samples drawn, relative to the other sources.
        caption_key: column or JSON key of the text; None takes the usual ones.
    """

    path: str
    weight: float = 1.0
    caption_key: str | None = None


class PairStream:
    """The pairs of all sources, endless when `repeat`; an iterable that can be stopped and resumed to the sample.

    Args:
        sources: drawn from by weight; with `repeat=False` each is gone through once.
        stage: 1: a text is a caption, on one line. 2: a description, with `instruction` or `messages` where given.
        seed: decides the order, together with rank, world size and workers.
        shuffle_buffer: pairs held in memory to be shuffled, by all workers of this rank together.
        rank, world_size: this process takes its share of every source; together they see every pair once a pass.
        workers: processes that read (and `prepare`); 0 reads in this one.
        repeat: start a source again, in a new order, when it is through.
        prepare: is applied to every pair, in the worker, and what it returns is yielded in its place: decode the
            picture there. A UserError from it skips the pair as an unreadable picture.
        max_skipped_share: a source of which more than this share is skipped ends the run with a UserError.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        stage: int,
        seed: int,
        shuffle_buffer: int = 10_000,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        repeat: bool = True,
        prepare: Callable[[Pair], Any] | None = None,
        max_skipped_share: float = 0.1,
    ) -> None:
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Any]:
        """Pairs, or what `prepare` makes of them. Goes on where the last `__iter__` or `load_state_dict` stood."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Where this rank's stream stands after the last pair that it yielded; small, JSON-able."""
        raise NotImplementedError

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises UserError if it belongs to a stream of other settings, and says which."""
        raise NotImplementedError


def check_sources(sources: Sequence[Source], stage: int) -> None:
    """Raises UserError for what is missing or does not fit, in a moment: files, shards, the caption's key."""
    raise NotImplementedError


def count_pairs(sources: Sequence[Source]) -> int | None:
    """How many pairs the sources hold, if that can be known cheaply (broken ones included), else None."""
    raise NotImplementedError
