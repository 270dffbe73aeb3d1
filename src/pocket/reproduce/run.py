"""`minigpt4 pocket reproduce`: make every arm that is not made yet, judge the claims, write the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.evaluation.machine import machine
from minigpt4.evaluation.statistics import Rate
from minigpt4.files import only_process
from pocket.reproduce.artifacts import Workshop
from pocket.reproduce.claims import Claim
from pocket.reproduce.experiments import ALL_SKILLS, Arm, arm_without, expected_seconds, jobs
from pocket.reproduce.results import Circumstances, write_results
from pocket.reproduce.spent import Run, read_runs, read_spent, write_runs
from pocket.reproduce.survey import Evidence, Figures
from pocket.reproduce.workers import Job, make_all


@dataclass(frozen=True)
class Budget:
    """What is planned: (arm, seed, seconds of processor time, whether it is done).

    The seconds of what is done are those that it took; of the rest they are expected, after what the done ones took.
    """

    rows: tuple[tuple[Arm, int, float, bool], ...]
    processes: int

    @property
    def seconds(self) -> float:
        """By the clock, on as many free cores as processes: of all, also of what is done."""
        return sum(seconds for _, _, seconds, _ in self.rows) / self.processes

    @property
    def left(self) -> float:
        """The same of what is not done."""
        return sum(seconds for _, _, seconds, done in self.rows if not done) / self.processes

    def table(self) -> str:
        """One line for each arm with its seeds, its cost, and how much of it is done."""
        arms = dict.fromkeys(arm for arm, _, _, _ in self.rows)
        lines = [f"{'arm':<42}{'seeds':>6}{'steps':>7}{'pictures':>10}{'minutes':>9}{'done':>6}"]
        for arm in arms:
            own = [row for row in self.rows if row[0] == arm]
            steps, pictures = dict(arm.changes).get("steps", "–"), arm.data[1] or "–"
            minutes, done = sum(row[2] for row in own) / 60, sum(row[3] for row in own)
            lines.append(f"{arm.name:<42}{len(own):>6}{steps:>7}{pictures:>10}{minutes:>9.1f}{done:>6}")
        processor = sum(row[2] for row in self.rows) / 60
        lines.append(
            f"in all {processor:.0f} minutes of processor time: with {self.processes} processes, each on a free core, "
            f"{self.seconds / 60:.0f} minutes by the clock, {self.left / 60:.0f} of them to do"
        )
        return "\n".join(lines)


def plan(workshop: Workshop, processes: int = 1) -> Budget:
    """What the scale costs, and what of it is done below the workshop's directory."""
    found = []
    for arm, seed in jobs(workshop.scale):
        done = workshop.is_done(arm, seed)
        took = read_spent(workshop.directory(arm, seed)).processor if done else 0.0
        found.append((arm, seed, expected_seconds(arm, workshop.scale), took, done))
    known = [(expected, took) for _, _, expected, took, _ in found if took]
    pace = sum(took for _, took in known) / sum(expected for expected, _ in known) if known else 1.0
    rows = tuple((arm, seed, took if done else pace * expected, done) for arm, seed, expected, took, done in found)
    return Budget(rows, processes)


def make(workshop: Workshop, command: str, processes: int, console: Console) -> None:
    """Make every arm of the workshop's scale that is not made, each in one of `processes` processes.

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
        budget = plan(workshop, processes)
        console.print(budget.table(), highlight=False, soft_wrap=True)
        todo = [(arm, seed) for arm, seed, _, done in budget.rows if not done]
        if not todo:
            return
        before, start, total = read_runs(workshop.out), time.monotonic(), len(budget.rows)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        run = Run(command, now, _machine(), processes, 0.0, 0)

        def tell(job: Job) -> None:
            console.print(f"{job[0].name}, seed {job[1]} ...", highlight=False, markup=False)

        def note(job: Job) -> None:
            nonlocal run
            run = replace(run, clock=round(time.monotonic() - start, 1), made=run.made + 1)
            write_runs(workshop.out, [*before, run])
            spent, left = read_spent(workshop.directory(*job)), plan(workshop, processes).left
            # On cores that are shared with others the clock runs ahead of the processor time.
            slower = max(1.0, spent.clock / max(spent.processor, 0.1))
            console.print(
                f"[{total - len(todo) + run.made}/{total}] {job[0].name}, seed {job[1]}: {spent.processor:.0f} s of "
                f"processor time, {spent.clock:.0f} s by the clock; about {left * slower / 60:.0f} min left",
                highlight=False,
                markup=False,
            )

        make_all(workshop, todo, processes, tell, note)


def reproduce(
    workshop: Workshop, page: Path, command: str, console: Console | None = None, processes: int = 1
) -> list[Claim]:
    """Make what is not made, then write `page`; returns the claims as judged. Raises what `make` raises."""
    console = console or Console()
    _check_page(page)
    make(workshop, command, processes, console)
    claims = write_page(workshop, page, command)
    for claim in claims:
        console.print(f"{claim.verdict.value:>22}  {claim.title}", highlight=False)
    console.print(f"\nThe page: {page}", soft_wrap=True, highlight=False)
    return claims


def write_page(workshop: Workshop, page: Path, command: str) -> list[Claim]:
    """Write the page from the arms that are done, whatever is not. Raises UserError if none is."""
    _check_page(page)
    evidence = collect(workshop)
    if not evidence.of:
        raise UserError(f"{workshop.out}: nothing of `{command}` is done there yet; run it, or give another --out")
    return write_results(page, evidence, workshop.scale, _in_words(workshop), circumstances(workshop, command))


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
    return Evidence(found)


def _in_words(workshop: Workshop) -> dict[str, dict[str, Rate]]:
    """What each LLM that was taught can do in words, of those whose arm is done."""
    scale = workshop.scale
    skills = (ALL_SKILLS, *scale.skills) if scale.skills else ()
    return {
        skill: workshop.in_words(skill)
        for skill in skills
        if workshop.is_done(workshop.arms[arm_without(skill)], scale.seeds[0])
    }


def circumstances(workshop: Workshop, command: str) -> Circumstances:
    """How the arms that are done came to be, from what was noted while they were made."""
    done: Sequence[Job] = [job for job in jobs(workshop.scale) if workshop.is_done(*job)]
    missing = [f"{arm.name} (seed {seed})" for arm, seed in jobs(workshop.scale) if (arm, seed) not in done]
    return Circumstances(
        command=command,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        runs=tuple(read_runs(workshop.out)),
        weights=workshop.weights(),
        seconds=sum(read_spent(workshop.directory(*job)).processor for job in done),
        missing=tuple(missing),
    )


def _machine() -> str:
    found = machine()
    return f"{found['cores']} CPU cores ({found['processor']}), torch {found['torch']}"
