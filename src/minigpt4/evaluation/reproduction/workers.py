"""Processes that make arms, one arm each at a time. Which arm may be made when is decided here, how is the workshop's.

Every arm is made in a process with one torch thread, however many processes there are, so that figures do not depend on
their number. What a process has to say goes to a log of its own. When the command ends, in whatever way, its processes
end with it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from minigpt4.errors import UserError
from minigpt4.evaluation.reproduction.plan import Arm
from minigpt4.evaluation.reproduction.spent import measured
from minigpt4.evaluation.reproduction.workshop import Workshop
from minigpt4.telling import LogFormatter

Job = tuple[Arm, int]
#: Seconds that a process gets to save what it is at when it is told to stop.
GRACE = 20.0


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    log: Path
    job: Job | None = None


def make_all(
    workshop: Workshop, jobs: Sequence[Job], processes: int, started: Callable[[Job], None], done: Callable[[Job], None]
) -> None:
    """Make `jobs` (each behind the one that it begins with) in `processes` processes; tells of each start and end.

    Raises:
        UserError: an arm cannot be made, or its process was killed; the others were told to save and stop.
        RuntimeError: an arm failed in a way that was not foreseen; its message holds the process's traceback.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    waiting = list(jobs)
    fresh = Workshop(workshop.out, workshop.scale, workshop.parts, workshop.changes)
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    workers: list[_Worker] = []
    try:
        workers += (_start(fresh, number) for number in range(1, min(processes, len(waiting)) + 1))
        used: set[tuple[int, int]] = set()
        while waiting or any(worker.job for worker in workers):
            for worker in workers:
                job = None if worker.job else _next(waiting, [w.job for w in workers if w.job], used)
                if job is not None:
                    waiting.remove(job)
                    worker.job = job
                    with suppress(ConnectionError):  # a process that was killed while idle: `_hear` tells of it
                        worker.pipe.send((job[0].name, job[1]))
                    started(job)
            for ready in wait([worker.pipe for worker in workers if worker.job]):
                worker = next(worker for worker in workers if worker.pipe is ready)
                assert worker.job is not None
                _hear(worker)
                used.add(worker.job[0].data)
                ended, worker.job = worker.job, None
                done(ended)
    finally:
        _stop(workers)
        signal.signal(signal.SIGTERM, former)


def _next(waiting: Sequence[Job], running: Sequence[Job], used: set[tuple[int, int]]) -> Job | None:
    """The first arm that builds on nothing unmade and whose pictures no process is drawing and encoding just now."""
    unmade = {(arm.name, seed) for arm, seed in (*waiting, *running)}
    drawing = {arm.data for arm, _ in running if arm.recipe} - used
    for arm, seed in waiting:
        if unmade.isdisjoint({(arm.start, seed), (arm.after, seed)}) and arm.data not in drawing:
            return arm, seed
    return None


def _start(workshop: Workshop, number: int) -> _Worker:
    spawn = multiprocessing.get_context("spawn")
    log = workshop.out / f"process-{number}.log"
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_work, args=(workshop, theirs, log), name=f"arms-{number}")
    process.start()
    theirs.close()
    return _Worker(process, ours, log)


def _hear(worker: _Worker) -> None:
    """Take a process's word that its arm is made; raises what went wrong otherwise."""
    assert worker.job is not None
    arm, seed = worker.job
    what = f"{arm.name}, seed {seed}"
    try:
        mistake, failure = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        raise UserError(
            f"{what}: its process {how} (no memory left? see {worker.log}); what is made is kept, and the same command "
            "goes on"
        ) from None
    if failure:
        raise RuntimeError(f"{what} failed; what is made is kept, and the same command goes on\n{failure}")
    if mistake:
        raise UserError(f"{what}: {mistake}")


def _stop(workers: Sequence[_Worker]) -> None:
    """Let idle processes end, and busy ones save and end; who does not within the grace is killed."""
    for worker in workers:
        if worker.job and worker.process.is_alive():
            worker.process.terminate()
        worker.pipe.close()
    for worker in workers:
        worker.process.join(GRACE)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()


def _work(workshop: Workshop, pipe: Connection, log: Path) -> None:
    """What a process does: make the arms that it is told, until no more are told or the command is gone."""
    os.setsid()  # Ctrl-C is for the command, which then tells its processes
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    logging.basicConfig()
    logging.getLogger().handlers[0].setFormatter(LogFormatter("%(asctime)s %(message)s"))
    logging.getLogger("minigpt4").setLevel(logging.INFO)
    threading.Thread(target=_end_with_the_command, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            name, seed = pipe.recv()
        except (EOFError, ConnectionError):
            return
        arm = workshop.arms[name]
        mistake = failure = None
        try:
            with measured(lambda arm=arm, seed=seed: workshop.directory(arm, seed)):  # type: ignore[misc]
                workshop.make(arm, seed)
        except KeyboardInterrupt:
            return
        except UserError as error:
            mistake = str(error)
        except Exception:
            failure = traceback.format_exc()
        pipe.send((mistake, failure))


def _end_with_the_command() -> None:
    """An arm whose command was killed must not go on: the next command would make it a second time beside it."""
    command = multiprocessing.parent_process()
    assert command is not None
    wait([command.sentinel])
    os._exit(1)
