"""`minigpt4 pocket ...`: parsing and printing only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from minigpt4.errors import UserError
from minigpt4.telling import say

pocket = typer.Typer(no_args_is_help=True, help="The pocket world: its pictures, datasets and towers.")
build = typer.Typer(no_args_is_help=True, help="Train the pocket towers from nothing (hours on a CPU).")
pocket.add_typer(build, name="build")


@pocket.command()
def draw(
    out: Annotated[Path, typer.Option(help="A new directory for the pictures and truth.jsonl.")],
    seed: Annotated[int, typer.Option(min=0, help="The first picture's seed.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 16,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 384,
    type: Annotated[str | None, typer.Option(help="scene, food, product, odd or draft; all by default.")] = None,
) -> None:
    """Draw pictures of the pocket world and write what is true of them.

    Example: minigpt4 pocket draw --seed 7 --count 16 --out pictures
    """
    from minigpt4.pocket.draw import write_pictures

    write_pictures(seed, count, out, size, type)
    say(f"{count} pictures and truth.jsonl are in {out}")


@pocket.command()
def data(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="stage1 (short captions), stage2 (detailed descriptions), or benchmarks: held-out pictures in the "
            "formats of COCO, A-OKVQA, GQA and VQA v2.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="A new directory for the dataset.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 6400,
) -> None:
    """Write pocket pictures as a dataset in the format that the stage or the benchmark reads.

    Example: minigpt4 pocket data stage1 --count 6400 --out runs/pocket/data/stage1
    """
    from minigpt4.pocket import dataset
    from minigpt4.pocket.benchmarks import write_benchmarks

    writers = {"stage1": dataset.write_stage1, "stage2": dataset.write_stage2, "benchmarks": write_benchmarks}
    if stage not in writers:
        raise UserError(f"there is no dataset {stage!r}; choose stage1, stage2 or benchmarks")
    say(f"{count} pictures with texts are in {writers[stage](out, count)}")


_Work = Annotated[Path, typer.Option("--out", help="Directory of checkpoints and results; a run there goes on.")]


@build.command()
def language(
    out: _Work = Path("runs/towers"),
    steps: Annotated[int, typer.Option(min=1, help="Batches of about 8,000 tokens for the pocket LLM.")] = 3200,
    captioner_steps: Annotated[int, typer.Option(min=1, help="The same for the captioning LM.")] = 700,
    start: Annotated[
        Path | None, typer.Option(help="Only train this finished pocket LLM on, with new text; a directory.")
    ] = None,
    lookups: Annotated[
        bool, typer.Option("--lookups", help="Teach the pocket LLM of --start to look words up; 4,000 tokens a batch.")
    ] = False,
) -> None:
    """Train the captioning LM and the pocket LLM on text alone.

    Example: minigpt4 pocket build language --out runs/towers
    """
    from minigpt4.pocket.language_tower import build_captioner, build_language, build_lookups

    logging.getLogger("minigpt4").setLevel(logging.INFO)
    if lookups:
        if start is None:
            raise UserError("--lookups goes on from a finished pocket LLM; name its directory with --start")
        say(build_lookups(out, steps, start))
        return
    if start is None:
        say(build_captioner(out, captioner_steps))
    say(build_language(out, steps, start=start))


@build.command()
def vision(
    out: _Work = Path("runs/towers"),
    steps: Annotated[int, typer.Option(min=0, help="Batches of 64 pictures against the world's truth.")] = 2000,
    generation_steps: Annotated[int, typer.Option(min=1, help="Then through the frozen captioning LM.")] = 400,
    start: Annotated[str | None, typer.Option(help="Go on from a finished baseline, as pocket-blip2.")] = None,
) -> None:
    """Train the vision tower and Q-Former; needs the captioning LM in the same directory.

    Example: minigpt4 pocket build vision --out runs/towers
    """
    from minigpt4.pocket.vision_tower import build_vision

    logging.getLogger("minigpt4").setLevel(logging.INFO)
    say(build_vision(out, steps, generation_steps, start=start))
