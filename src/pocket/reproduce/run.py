"""`minigpt4 pocket reproduce` and `ablations`: make every arm that is not made, judge the claims, write the results.

Every arm is made in a process with one torch thread, however many processes there are, so that figures do not depend on
their number. What is made is kept, whatever ends the command.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timezone
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.evaluation.results import RESULTS, TABLE, machine, write_files
from minigpt4.files import only_process
from minigpt4.statistics import now
from minigpt4.telling import LogFormatter
from pocket.reproduce.artifacts import Workshop
from pocket.reproduce.claims import Outcome, read_claims
from pocket.reproduce.experiments import ALL_SKILLS, Arm, ablated, jobs
from pocket.reproduce.figures import draw
from pocket.reproduce.results import ablations_page, write_page
from pocket.reproduce.survey import Evidence, Figures

Job = tuple[Arm, int]
ABLATIONS, PLOT = "ablations", "plot.png"


def plan(workshop: Workshop) -> str:
    """One line for each arm with its seeds, its steps and pictures, and how many seeds are done."""
    planned = jobs(workshop.scale)
    lines = [f"{'arm':<42}{'seeds':>6}{'steps':>7}{'pictures':>10}{'done':>6}"]
    for arm in dict.fromkeys(arm for arm, _ in planned):
        seeds = [seed for other, seed in planned if other is arm]
        steps, done = dict(arm.changes).get("steps", "–"), sum(workshop.is_done(arm, seed) for seed in seeds)
        lines.append(f"{arm.name:<42}{len(seeds):>6}{steps:>7}{arm.data[1] or '–':>10}{done:>6}")
    return "\n".join(lines)


def make(workshop: Workshop, command: str, processes: int | None, console: Console) -> None:
    """Make every arm of the scale that is not made, in so many processes; None: as many as cores, 8 at most.

    Raises:
        UserError: a part is missing, a directory cannot be written, a process was killed, or another command is at work
            there.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    try:
        workshop.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{workshop.out}: cannot be written ({error.strerror}); give another --out") from None
    with only_process(workshop.out, "arms"):
        console.print(plan(workshop), highlight=False, soft_wrap=True)
        todo = [job for job in jobs(workshop.scale) if not workshop.is_done(*job)]
        make_all(workshop, todo, processes or min(machine()["cores"], 8), command, console)


def make_all(workshop: Workshop, todo: list[Job], processes: int, command: str, console: Console) -> None:
    """Make the arms of `todo`, each behind the one that it begins with; raises as `make`."""
    if not todo:
        return
    spawn, waiting, used = multiprocessing.get_context("spawn"), list(todo), set[tuple[int, int]]()
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    running: dict[Future[None], Job] = {}
    try:
        with ProcessPoolExecutor(min(processes, len(todo)), spawn, _begin, (workshop.out / "processes.log",)) as pool:
            try:
                while waiting or running:
                    while len(running) < processes and (job := _next(waiting, list(running.values()), used)):
                        waiting.remove(job)
                        running[pool.submit(workshop.make, *job, command)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        future.result()
                        arm, seed = running.pop(future)
                        used.add(arm.data)
                        done = len(todo) - len(waiting) - len(running)
                        console.print(f"[{done}/{len(todo)}] {arm.name}, seed {seed}", highlight=False, markup=False)
            except BaseException:
                for process in multiprocessing.active_children():
                    process.terminate()  # a training saves its state first
                pool.shutdown(cancel_futures=True)
                raise
    except BrokenProcessPool:
        at_work = "; ".join(f"{arm.name}, seed {seed}" for arm, seed in running.values())
        raise UserError(
            f"{at_work}: a process was killed (no memory left? see {workshop.out / 'processes.log'}); what is made is "
            "kept, and the same command goes on"
        ) from None
    finally:
        signal.signal(signal.SIGTERM, former)


def _next(waiting: list[Job], running: list[Job], used: set[tuple[int, int]]) -> Job | None:
    """The first arm that builds on nothing unmade and whose pictures no process is drawing and encoding just now."""
    unmade = {(arm.name, seed) for arm, seed in (*waiting, *running)}
    names = {name for name, _ in unmade}
    drawing = {arm.data for arm, _ in running if arm.recipe} - used
    for arm, seed in waiting:
        if (arm.start, seed) not in unmade and arm.after not in names and arm.data not in drawing:
            return arm, seed
    return None


def _begin(log: Path) -> None:
    """Begin a process: its words go to a log, and it ends with the command, however that ends."""
    os.setsid()  # Ctrl-C is for the command, which then ends its processes
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    logging.basicConfig()
    logging.getLogger().handlers[0].setFormatter(LogFormatter("%(asctime)s %(message)s"))
    for name in ("minigpt4", "pocket"):
        logging.getLogger(name).setLevel(logging.INFO)

    def watch() -> None:
        command = multiprocessing.parent_process()
        assert command is not None
        wait_for([command.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def reproduce(
    workshop: Workshop, page: Path, command: str, console: Console | None = None, processes: int | None = 1
) -> dict[str, Outcome]:
    """Make what is not made, then write `page`; returns the outcome of each claim. Raises what `make` raises."""
    console = console or Console()
    _check_page(page)
    for each in (*workshop.beside.values(), workshop):
        make(each, command, processes, console)
    outcomes = write(workshop, page, command)
    for claim in read_claims(workshop.scale.world):
        console.print(f"{outcomes[claim.key].value:>22}  {claim.title}", highlight=False)
    console.print(f"\nThe page: {page}", soft_wrap=True, highlight=False)
    return outcomes


def write(workshop: Workshop, page: Path, command: str) -> dict[str, Outcome]:
    """Write the page from the arms that are done, whatever is not. Raises UserError if none is."""
    _check_page(page)
    evidence = collect(workshop)
    if not evidence.of:
        raise UserError(f"{workshop.out}: nothing of `{command}` is done there yet; run it, or give another --out")
    taught = {arm.llm for arm, seed in jobs(workshop.scale) if arm.asked != "none" and workshop.is_done(arm, seed)}
    in_words = {skill: workshop.in_words(skill) for skill in (ALL_SKILLS, *workshop.scale.skills) if skill in taught}
    told = {**circumstances(workshop, command), **workshop.tell(evidence)}
    return write_page(page, evidence, workshop.scale, in_words, told)


def _check_page(page: Path) -> None:
    """Raises UserError for a page that could not be written, before hours of work."""
    if page.is_dir():
        raise UserError(f"{page}: is a directory; give a file for the page of results")
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{page}: cannot be written ({error.strerror}); give another file") from None


def collect(workshop: Workshop) -> Evidence:
    """The figures of every arm that is done."""
    found: dict[str, dict[int, Figures]] = {}
    for arm, seed in jobs(workshop.scale):
        if arm.asked != "none" and workshop.is_done(arm, seed):
            found.setdefault(arm.name, {})[seed] = workshop.figures(arm, seed)
    for name, other in workshop.beside.items():
        found |= {f"{name}: {arm}": dict(seeds) for arm, seeds in collect(other).of.items()}
    return Evidence(found)


def circumstances(workshop: Workshop, command: str) -> dict[str, Any]:
    """How the arms that are done came to be, from what was noted while they were made."""
    notes = workshop.notes()
    return {
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "minutes": sum(note["seconds"] for note in notes) / 60,
        "machines": dict.fromkeys(note["machine"] for note in notes),
        "others": dict.fromkeys(note["command"] for note in notes if note["command"] != command),
        "weights": workshop.weights(),
        "missing": workshop.missing(),
    }


def ablations(
    workshop: Workshop, out: Path, command: str, console: Console | None = None, processes: int | None = 1
) -> Path:
    """Make the ablations' arms that are not made, and write `out/ablations`: results.json, results.md, plot.png.

    Returns that directory. Raises what `make` raises.
    """
    make(workshop, command, processes, console or Console())
    directory = out / ABLATIONS
    directory.mkdir(parents=True, exist_ok=True)
    evidence, scale, run = collect(workshop), workshop.scale, circumstances(workshop, command)
    draw("ablations", evidence, scale, {}, directory / PLOT)
    arms = [workshop.arms[name] for name in ablated(scale)]
    rates = dict.fromkeys(rate for arm in arms for rate in evidence.pooled(arm.name).rates)
    results = {
        "suite": ABLATIONS, "title": "Ablations", "command": command, "machine": machine(),
        "created": now("seconds"),
        "settings": {"scale": scale.name, "seeds": scale.seeds, "questions": scale.questions, "temperature": 0},
        "judge": {"judge": "truth"},
        "models": [
            {"label": a.name, "recipe": a.recipe, "data": a.data, "start": a.start, "changes": dict(a.changes)}
            for a in arms
        ],
        "rows": [
            {
                "name": rate, "unit": "%", "figures": {arm.name: evidence.rate(arm.name, rate) for arm in arms},
                "seeds": {arm.name: evidence.by_seed(arm.name, rate) for arm in arms},
            }
            for rate in rates
        ],
        "answers": [row for arm in arms for seed in arm.seeds or scale.seeds for row in _answers(workshop, arm, seed)],
    }  # fmt: skip
    write_files(directory, results, {TABLE: ablations_page(evidence, scale, run, PLOT)}, name=RESULTS)
    return directory


def _answers(workshop: Workshop, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """Every question, answer and verdict of an arm."""
    exam = workshop.exam(arm, seed)
    return [
        {
            "model": arm.name, "seed": seed, "task": question.ability, "picture": exam.pictures[question.picture].seed,
            "prompt": question.request.text, "answer": record.text, "failure": record.failure,
            "success": record.verdict.success, "reason": record.verdict.reason,
        }
        for question, record in zip(exam.questions, workshop.records(arm, seed), strict=True)
    ]  # fmt: skip
