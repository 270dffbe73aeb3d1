"""Shares of a stream, each read in a process of its own, handed out in turn.

PyTorch's `DataLoader` starts, feeds and watches the processes. Knows nothing about what is in a chunk.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
import weakref
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from threading import Thread
from typing import Any, Protocol

from minigpt4.errors import UserError


@dataclass
class Chunk:
    """A few pairs (or what they were prepared to), and where their share stands after them."""

    items: list[Any]
    state: dict[str, Any] | None
    skipped: Counter[str]
    done: bool = False
    error: str | None = None


class Share(Protocol):
    """What one process reads."""

    def chunks(self, state: Mapping[str, Any] | None) -> Iterator[Chunk]:
        """Chunks for ever, from `state` on."""


Work = tuple[Share, "dict[str, Any] | None"]


class _Shares:
    """The shares as `DataLoader` wants them: chunk number n comes from worker n modulo their number, for ever."""

    def __init__(self, work: Sequence[Work]) -> None:
        self._work = work
        self._chunks: Iterator[Chunk] | None = None  # of the share of this process

    def __getitem__(self, number: int) -> Chunk:
        if self._chunks is None:
            share, state = self._work[number % len(self._work)]
            self._chunks = share.chunks(state)
        return next(self._chunks)


def in_processes(work: Sequence[Work]) -> Iterator[Chunk]:
    """The chunks of every share, each from a process of its own, in turn."""
    import datasets  # noqa: F401  # once, before the processes part
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Chunk] = DataLoader(
        _Shares(work),  # type: ignore[arg-type]
        sampler=count(),
        batch_size=None,
        num_workers=len(work),
        collate_fn=_same,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the loader would otherwise draw from training's
    )

    def chunks() -> Generator[Chunk, None, None]:
        try:
            yield from loader
        except RuntimeError as error:
            raise UserError(
                f"a process that reads data ended ({' '.join(str(error).split())}); if memory ran out, use fewer "
                "workers or a smaller shuffle_buffer"
            ) from error

    running = chunks()
    # Readers leave signals alone, so Python would wait for them at its end. (Of such hooks the last one runs first.)
    atexit.register(_close, weakref.ref(running))
    return running


def _close(running: weakref.ref[Generator[Chunk, None, None]]) -> None:
    chunks = running()
    if chunks is not None:
        chunks.close()


def _same(chunk: Any) -> Any:
    return chunk


def _start_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM reach every process of a group; when to stop is the first process's decision."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone, killed perhaps: it would wait for ever to hand its chunks over."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
