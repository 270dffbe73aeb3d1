"""`minigpt4 pocket ...`, the one door of the laboratory: parsing and printing only."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from minigpt4 import cli_options as options
from minigpt4.errors import UserError
from minigpt4.telling import say

pocket = typer.Typer(no_args_is_help=True, help="The pocket world: demo, pictures, datasets, towers, experiments.")
build = typer.Typer(no_args_is_help=True, help="Train the pocket towers from nothing (hours on a CPU).")
pocket.add_typer(build, name="build")


@pocket.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where data, checkpoints and results go.")] = Path("runs/demo"),
    pairs: Annotated[int, typer.Option(min=64, help="Pictures with short captions for stage 1.")] = 6400,
    descriptions: Annotated[int, typer.Option(min=12, help="Pictures with descriptions for stage 2.")] = 400,
    questions: Annotated[int, typer.Option(min=4, help="Held-out questions for each ability.")] = 50,
) -> None:
    """Align the pocket model in both stages, measure it on held-out pictures, write a page of pictures and answers.

    Example: minigpt4 pocket demo --out runs/demo
    """
    from pocket.demo.run import run_demo

    run_demo(out, pairs=pairs, descriptions=descriptions, questions=questions)


@pocket.command()
def draw(
    out: Annotated[Path, typer.Option(help="A new directory for the pictures and truth.jsonl.")],
    seed: Annotated[int, typer.Option(min=0, help="The first picture's seed.")] = 0,
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 16,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 384,
    type: Annotated[str | None, typer.Option(help="scene, food, product, odd or draft; all by default.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Draw pictures of the pocket world and write what is true of them.

    Example: minigpt4 pocket draw --seed 7 --count 16 --out pictures
    """
    from pocket.world.draw import write_pictures

    write_pictures(seed, count, out, size, type, overwrite)
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
    overwrite: options.Overwrite = False,
) -> None:
    """Write pocket pictures as a dataset in the format that the stage or the benchmark reads.

    Example: minigpt4 pocket data stage1 --count 6400 --out runs/pocket/data/stage1
    """
    from pocket.data import training_sets as dataset
    from pocket.data.benchmarks import write_benchmarks

    writers = {"stage1": dataset.write_stage1, "stage2": dataset.write_stage2, "benchmarks": write_benchmarks}
    if stage not in writers:
        raise UserError(f"there is no dataset {stage!r}; choose stage1, stage2 or benchmarks")
    say(f"{count} pictures with texts are in {writers[stage](out, count, overwrite)}")


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
    from pocket.towers.language import CAPTIONER, LANGUAGE, LOOKUPS, build_text_model

    logging.getLogger("pocket").setLevel(logging.INFO)
    if lookups and start is None:
        raise UserError("--lookups goes on from a finished pocket LLM; name its directory with --start")
    if start is None:
        say(build_text_model(CAPTIONER, out, captioner_steps))
    say(build_text_model(LOOKUPS if lookups else LANGUAGE, out, steps, start))


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
    from pocket.towers.vision import build_vision

    logging.getLogger("pocket").setLevel(logging.INFO)
    say(build_vision(out, steps, generation_steps, start=start))


@pocket.command()
def curate(
    out: Annotated[Path, typer.Option(help="Where the project, models and report go.")] = Path("runs/curation"),
    pictures: Annotated[int, typer.Option(min=40, help="Pictures to curate.")] = 480,
    questions: Annotated[int, typer.Option(min=8, help="Held-out pictures to measure each trained model on.")] = 150,
    trainings: Annotated[int, typer.Option(min=1, help="Models that stage 2 makes of each dataset, by seed.")] = 3,
) -> None:
    """Curate pocket pictures, whose truth is known, and measure what every step is worth.

    Example: minigpt4 pocket curate --out runs/curation
    """
    from pocket.curation_demo.run import run_curation

    logging.getLogger("minigpt4").setLevel(logging.WARNING)
    say(run_curation(out, pictures=pictures, questions=questions, trainings=trainings))


_REPRODUCTION, _SUITES = Path("runs/reproduce"), Path("runs/eval")
_TEXTS = Path("datasets/photo-descriptions/descriptions.jsonl")
_Seeds = Annotated[int | None, typer.Option(help="Another number of seeds, 1 to 10; 3 by default.")]
_Plan = Annotated[bool, typer.Option("--plan", help="Only list what would be done, and what is done.")]
_Processes = Annotated[
    int | None,
    typer.Option(min=1, max=64, help="Processes that make models beside each other; as many as cores, up to 8."),
]


_PHOTOGRAPHS = " --world photographs --flickr8k DIR --coco DIR"


def _command(name: str, quick: bool, seeds: int | None) -> str:
    """The command as it was typed, for the page that it writes."""
    logging.getLogger("minigpt4").setLevel(logging.INFO)
    return f"minigpt4 pocket {name}" + (" --quick" if quick else "") + (f" --seeds {seeds}" if seeds else "")


@pocket.command()
def reproduce(
    world: Annotated[
        str, typer.Option(help="pocket, or photographs, for which --flickr8k and --coco are needed.")
    ] = "pocket",
    flickr8k: Annotated[Path | None, typer.Option(help="Directory of Flickr8k's parquet files.")] = None,
    coco: Annotated[Path | None, typer.Option(help="Directory of COCO's images and annotations.")] = None,
    texts: Annotated[Path, typer.Option(help="Detailed descriptions of photographs, for stage 2.")] = _TEXTS,
    out: Annotated[Path | None, typer.Option(help="Where models and answers go; a run there goes on.")] = None,
    page: Annotated[Path | None, typer.Option(help="The page; its plots go to assets beside it.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, fewer arms: 15 minutes; photographs an hour, by estimate.")
    ] = False,
    seeds: _Seeds = None,
    processes: _Processes = None,
    plan: _Plan = False,
    write: Annotated[bool, typer.Option("--write", help="Only write the page, from what is done so far.")] = False,
) -> None:
    """Test every claim of the paper in the pocket world, and write the page of results. A run that stopped goes on.

    Example: minigpt4 pocket reproduce --quick
    """
    from pocket.reproduce import photographs, run
    from pocket.reproduce.artifacts import Workshop
    from pocket.reproduce.experiments import find_scale

    pages = {"pocket": "docs/notes/results.md", "photographs": "docs/notes/photographs.md"}
    if world not in pages:
        raise UserError(f"there is no world {world!r}; choose pocket or photographs")
    page = page or Path(pages[world])
    workshop = Workshop(out or _REPRODUCTION, find_scale(quick, seeds))
    if world == "photographs":
        if flickr8k is None or coco is None:
            raise UserError("this world is made of photographs; name their directories with --flickr8k and --coco")
        workshop = photographs.workshop(out or Path("runs/photographs"), flickr8k, coco, texts, quick, seeds)
    if plan:
        say("\n\n".join(run.plan(each) for each in (*workshop.beside.values(), workshop)))
        return
    command = _command("reproduce", quick, seeds) + (_PHOTOGRAPHS if world == "photographs" else "")
    if write:
        run.write(workshop, page, command)
        say(page)
        return
    run.reproduce(workshop, page, command, processes=processes)


@pocket.command()
def ablations(
    out: Annotated[Path, typer.Option(help="Where the results go, in a directory named by the suite.")] = _SUITES,
    arms: Annotated[
        Path, typer.Option(help="Where models and answers go, shared with `minigpt4 pocket reproduce --out`.")
    ] = _REPRODUCTION,
    seeds: _Seeds = None,
    quick: Annotated[bool, typer.Option("--quick", help="One seed, and fewer questions.")] = False,
    processes: _Processes = None,
    plan: _Plan = False,
) -> None:
    """Train and compare what the paper ablates: layers, Q-Former, stages, the sets of both stages, BLIP-2 with stage 2.

    A run that was stopped goes on, and what `minigpt4 pocket reproduce` has trained is not trained again.

    Example: minigpt4 pocket ablations --seeds 3 --out runs/eval
    """
    from minigpt4.evaluation.results import RESULTS, TABLE
    from pocket.reproduce import run
    from pocket.reproduce.artifacts import Workshop
    from pocket.reproduce.experiments import ablation_scale

    workshop = Workshop(arms, ablation_scale(quick, seeds))
    if plan:
        say(run.plan(workshop))
        return
    directory = run.ablations(workshop, out, _command("ablations", quick, seeds), processes=processes)
    say((directory / TABLE).read_text(encoding="utf-8"))
    say(f"every prompt, answer and verdict: {directory / RESULTS}")
