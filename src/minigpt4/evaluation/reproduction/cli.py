"""`minigpt4 reproduce` and `minigpt4 eval ablations`: parsing and printing only."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from minigpt4.evaluation.cli import eval_
from minigpt4.telling import say

Processes = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Processes that make models beside each other; as many as cores, up to 8."),
]


def default_processes(asked: int | None) -> int:
    """As many as cores that this process may use, up to eight: each takes about 1.5 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return asked or min(cores, 8)


def reproduce(
    out: Annotated[Path, typer.Option(help="Where models and answers go; a run there goes on.")] = Path(
        "runs/reproduce"
    ),
    page: Annotated[Path, typer.Option(help="The page of results; its pictures go to assets beside it.")] = Path(
        "docs/results.md"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, fewer arms and questions: about 15 minutes.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Another number of seeds, 1 to 10; 3 by default.")] = None,
    processes: Processes = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only list what would be done, and what it costs.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Only write the page, from what is done so far.")] = False,
) -> None:
    """Test every claim of the paper in the pocket world, and write the page of results. A run that stopped goes on.

    Example: minigpt4 reproduce --quick
    """
    from minigpt4.evaluation.reproduction import run
    from minigpt4.evaluation.reproduction.plan import find_scale
    from minigpt4.evaluation.reproduction.workshop import Workshop

    workshop = Workshop(out, find_scale(quick, seeds))
    if plan:
        say(run.plan(workshop, default_processes(processes)).table())
        return
    command = "minigpt4 reproduce" + (" --quick" if quick else "") + (f" --seeds {seeds}" if seeds else "")
    if write:
        run.write_page(workshop, page, command)
        say(page)
        return
    logging.getLogger("minigpt4").setLevel(logging.INFO)
    run.reproduce(workshop, page, command, processes=default_processes(processes))


@eval_.command()
def ablations(
    out: Annotated[Path, typer.Option(help="Where the results go, in a directory named by the suite.")] = Path(
        "runs/eval"
    ),
    arms: Annotated[
        Path, typer.Option(help="Where models and answers go, shared with `minigpt4 reproduce --out`.")
    ] = Path("runs/reproduce"),
    seeds: Annotated[int | None, typer.Option(help="Another number of seeds, 1 to 10; 3 by default.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, and fewer questions.")] = False,
    processes: Processes = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only list what would be done, and what it costs.")] = False,
) -> None:
    """Train and compare what the paper ablates: layers, Q-Former, stages, the sets of both stages, BLIP-2 with stage 2.

    In the pocket world. A run that was stopped goes on, and what `minigpt4 reproduce` has trained is not trained again.

    Example: minigpt4 eval ablations --seeds 3 --out runs/eval
    """
    from minigpt4.evaluation.reproduction import run
    from minigpt4.evaluation.reproduction.ablations import ablations as compare
    from minigpt4.evaluation.reproduction.plan import ablation_scale
    from minigpt4.evaluation.reproduction.workshop import Workshop
    from minigpt4.evaluation.table import RESULTS, TABLE

    workshop = Workshop(arms, ablation_scale(quick, seeds))
    if plan:
        say(run.plan(workshop, default_processes(processes)).table())
        return
    logging.getLogger("minigpt4").setLevel(logging.INFO)
    command = "minigpt4 eval ablations" + (" --quick" if quick else "") + (f" --seeds {seeds}" if seeds else "")
    directory = compare(workshop, out, command, processes=default_processes(processes))
    say((directory / TABLE).read_text(encoding="utf-8"))
    say(f"every prompt, answer and verdict: {directory / RESULTS}")
