"""`minigpt4 reproduce`: make every arm that is not made yet, judge the claims, write the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from minigpt4.errors import UserError
from minigpt4.evaluation.machine import machine
from minigpt4.evaluation.reproduction.claims import Claim
from minigpt4.evaluation.reproduction.exam import Evidence, Figures
from minigpt4.evaluation.reproduction.plan import (
    ALL_SKILLS,
    LESSON_SECONDS,
    Arm,
    arm_without,
    asking_seconds,
    jobs,
    training_seconds,
)
from minigpt4.evaluation.reproduction.results import Circumstances, write_results
from minigpt4.evaluation.reproduction.workshop import Workshop
from minigpt4.evaluation.statistics import Rate


@dataclass(frozen=True)
class Budget:
    """What is planned: (arm, seed, seconds on two free cores, whether it is done), and the seconds that are left."""

    rows: tuple[tuple[Arm, int, float, bool], ...]

    @property
    def seconds(self) -> float:
        """Of all, also of what is done."""
        return sum(seconds for _, _, seconds, _ in self.rows)

    @property
    def left(self) -> float:
        """Of what is not done."""
        return sum(seconds for _, _, seconds, done in self.rows if not done)

    def table(self) -> str:
        """One line for each arm with its seeds, its cost, and how much of it is done."""
        arms = dict.fromkeys(arm for arm, _, _, _ in self.rows)
        lines = [f"{'arm':<42}{'seeds':>6}{'steps':>7}{'pictures':>10}{'minutes':>9}{'done':>6}"]
        for arm in arms:
            own = [row for row in self.rows if row[0] == arm]
            steps, pictures = dict(arm.changes).get("steps", "–"), arm.data[1] or "–"
            minutes, done = sum(row[2] for row in own) / 60, sum(row[3] for row in own)
            lines.append(f"{arm.name:<42}{len(own):>6}{steps:>7}{pictures:>10}{minutes:>9.1f}{done:>6}")
        lines.append(f"in all {self.seconds / 60:.0f} minutes on two free cores, {self.left / 60:.0f} of them to do")
        return "\n".join(lines)


def plan(workshop: Workshop) -> Budget:
    """What the scale costs, and what of it is done below the workshop's directory."""
    scale = workshop.scale
    rows = []
    for arm, seed in jobs(scale):
        seconds = training_seconds(arm) + asking_seconds(arm, scale)
        if arm.llm and arm.start is None:
            seconds += LESSON_SECONDS * scale.skill_steps
        rows.append((arm, seed, seconds, workshop.is_done(arm, seed)))
    return Budget(tuple(rows))


def reproduce(workshop: Workshop, page: Path, command: str, console: Console | None = None) -> list[Claim]:
    """Make what is not made, then write `page`; returns the claims as judged.

    Raises:
        UserError: a part is missing, or a directory cannot be written.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the same call goes on from there.
    """
    console = console or Console()
    _check_page(page)
    budget = plan(workshop)
    console.print(budget.table(), highlight=False, soft_wrap=True)
    expected = spent = 0.0
    for number, (arm, seed, seconds, done) in enumerate(budget.rows, 1):
        if done:
            continue
        console.print(f"[{number}/{len(budget.rows)}] {arm.name}, seed {seed}", highlight=False, markup=False)
        start, computed = time.perf_counter(), time.process_time()
        workshop.make(arm, seed)
        took = time.perf_counter() - start
        _note(workshop, arm, seed, time.process_time() - computed)
        spent, expected = spent + took, expected + max(seconds, 1.0)
        left = sum(row[2] for row in budget.rows[number:] if not row[3]) * spent / expected
        console.print(f"  {took:.0f} s; about {left / 60:.0f} min left", highlight=False)
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
    circumstances = _circumstances(workshop, command)
    return write_results(page, evidence, workshop.scale, _in_words(workshop), circumstances)


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


def _note(workshop: Workshop, arm: Arm, seed: int, seconds: float) -> None:
    """Add to the processor's seconds that an arm has taken, over all runs."""
    path = workshop.directory(arm, seed) / "processor-seconds.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{_seconds(path) + seconds:.1f}\n")


def _seconds(path: Path) -> float:
    return float(path.read_text()) if path.is_file() else 0.0


def _circumstances(workshop: Workshop, command: str) -> Circumstances:
    scale = workshop.scale
    done: Sequence[tuple[Arm, int]] = [job for job in jobs(scale) if workshop.is_done(*job)]
    missing = [f"{arm.name} (seed {seed})" for arm, seed in jobs(scale) if (arm, seed) not in done]
    seconds = sum(_seconds(workshop.directory(*job) / "processor-seconds.txt") for job in done)
    found = machine()
    return Circumstances(
        command=command,
        date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        machine=f"{found['cores']} CPU cores ({found['processor']}), torch {found['torch']}",
        weights=workshop.weights(),
        seconds=seconds,
        missing=tuple(missing),
    )
