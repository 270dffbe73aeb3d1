"""What making arms has cost, as it was measured: seconds beside each arm, and one line for each run of the command.

An arm that was stopped and went on has the sum. What a process had spent on an arm when it was killed outright is lost.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from minigpt4.files import write_atomically

SPENT, RUNS = "spent.json", "runs.json"


@dataclass(frozen=True)
class Spent:
    """Seconds: of processor time (with the child processes that ended), and by the clock."""

    processor: float = 0.0
    clock: float = 0.0


@dataclass(frozen=True)
class Run:
    """One run of a command that made arms: when (UTC), with how many processes, on what, how long, how many arms."""

    command: str
    started: str
    machine: str
    processes: int
    clock: float
    made: int


def read_spent(directory: Path) -> Spent:
    """What an arm has cost so far; nothing if its directory does not say."""
    path = directory / SPENT
    return Spent(**json.loads(path.read_text())) if path.is_file() else Spent()


@contextmanager
def measured(directory: Callable[[], Path]) -> Iterator[None]:
    """Adds what the block costs to the arm in `directory()`, which is asked at the end; also if the block is stopped.

    Nothing is noted while `directory` raises LookupError: the arm's directory has no name yet.
    """
    start, computed = time.monotonic(), _processor()
    try:
        yield
    finally:
        with suppress(LookupError):
            where = directory()
            where.mkdir(parents=True, exist_ok=True)
            before = read_spent(where)
            processor = round(before.processor + _processor() - computed, 2)
            clock = round(before.clock + time.monotonic() - start, 2)
            write_atomically(where / SPENT, json.dumps(asdict(Spent(processor, clock))).encode())


def _processor() -> float:
    return sum(os.times()[:4])


def read_runs(out: Path) -> list[Run]:
    """The runs that made arms below `out`, the oldest first."""
    path = out / RUNS
    return [Run(**row) for row in json.loads(path.read_text())] if path.is_file() else []


def write_runs(out: Path, runs: list[Run]) -> None:
    """Save the runs; called after every arm, so that a killed run is on record too."""
    write_atomically(out / RUNS, json.dumps([asdict(run) for run in runs], indent=1).encode())
