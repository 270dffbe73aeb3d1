"""Reads a stream in shares, one after the other: here, or in worker processes of PyTorch's `DataLoader`."""

import atexit
import os
import signal
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, Generic, TypeVar

from minigpt4.errors import UserError


@dataclass
class Chunk:
    """A few pairs (or what they were prepared to), and where their share stands after them."""

    items: list[Any]
    state: dict[str, Any] | None
    skipped: Counter[str]
    done: bool = False
    error: str | None = None


C = TypeVar("C")


class _Shares(Generic[C]):
    """The shares as `DataLoader` wants them: chunk number n is one of share n modulo their number, for ever."""

    def __init__(self, starts: Sequence[Callable[[], Iterator[C]]]) -> None:
        self._starts = starts
        self._chunks: dict[int, Iterator[C]] = {}  # of the shares of this process

    def __getitem__(self, number: int) -> C:
        at = number % len(self._starts)
        if at not in self._chunks:
            self._chunks[at] = self._starts[at]()
        return next(self._chunks[at])


def datasets_library() -> Any:
    """`datasets`. It wants a folder in the home directory; if it can have none there, it gets one for now."""
    import datasets

    try:
        Path(datasets.config.HF_DATASETS_CACHE).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=datasets.config.HF_DATASETS_CACHE).close()
    except OSError:
        folder = tempfile.TemporaryDirectory(prefix="minigpt4-datasets-")
        atexit.register(folder.cleanup)
        datasets.config.HF_DATASETS_CACHE = Path(folder.name)
    return datasets


def read_shares(starts: Sequence[Callable[[], Iterator[C]]], processes: int, ahead: int) -> Iterator[C]:
    """A chunk of each endless share in turn; `processes` (0: none) divides their number and reads `ahead` chunks on."""
    shares = _Shares(starts)
    if not processes:
        return (shares[number] for number in count())
    import torch
    from torch.utils.data import DataLoader

    datasets_library()  # once, before the processes part
    loader: DataLoader[C] = DataLoader(
        shares,  # type: ignore[arg-type]
        sampler=count(),  # number n is for worker n modulo their number, so each share stays with one
        batch_size=None,
        num_workers=processes,
        prefetch_factor=-(-ahead // processes),
        collate_fn=_same,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the loader would otherwise draw from training's
    )

    def chunks() -> Generator[C, None, None]:
        try:
            yield from loader
        except RuntimeError as error:
            told = f"a process that reads data ended ({' '.join(str(error).split())})"
            raise UserError(f"{told}; if memory ran out, use fewer workers or a smaller shuffle_buffer") from error

    running = chunks()
    # Readers leave signals alone, so Python would wait for them at its end. (Of such hooks the last one runs first.)
    atexit.register(_close, weakref.ref(running))
    return running


def _close(running: weakref.ref[Generator[Any, None, None]]) -> None:
    if (chunks := running()) is not None:
        chunks.close()


def _same(chunk: Any) -> Any:
    return chunk


def _start_worker(worker: int) -> None:
    """Ctrl-C and SIGTERM reach every process of a group; when to stop is the first process's decision."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else it warns that this process was forked
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once its parent is gone, killed perhaps: it would wait for ever to hand its chunks over."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
