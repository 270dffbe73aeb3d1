"""The command line: parsing and printing only.

What a command does lies in the function that it calls, imported when the command runs, so that `--help` costs nothing.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from minigpt4.curation.cli import curate
from minigpt4.errors import UserError


class _Commands(TyperGroup):
    """Tells a user's mistake and Ctrl-C apart from errors: one line on stderr, exit code 2 or 130."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except UserError as mistake:
            typer.echo(f"minigpt4: {mistake}", err=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt as stop:
            typer.echo(f"minigpt4: {str(stop) or 'stopped'}", err=True)
            raise SystemExit(130) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
pocket = typer.Typer(no_args_is_help=True, help="The pocket world: its pictures, datasets and towers.")
build = typer.Typer(no_args_is_help=True, help="Train the pocket towers from nothing (hours on a CPU).")
app.add_typer(curate, name="curate")
app.add_typer(pocket, name="pocket")
pocket.add_typer(build, name="build")


def _version(asked: bool) -> None:
    if asked:
        from minigpt4 import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """MiniGPT-4: a frozen vision tower and a frozen LLM, aligned by one linear layer."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where data, checkpoints and results go.")] = Path("runs/demo"),
    pairs: Annotated[int, typer.Option(min=64, help="Pictures with short captions for stage 1.")] = 6400,
    descriptions: Annotated[int, typer.Option(min=12, help="Pictures with descriptions for stage 2.")] = 400,
    questions: Annotated[int, typer.Option(min=4, help="Held-out questions for each ability.")] = 50,
) -> None:
    """Align the pocket model in both stages, measure it on held-out pictures, write a page of pictures and answers.

    Example: minigpt4 demo --out runs/demo
    """
    from minigpt4.evaluation.demo import run_demo

    run_demo(out, pairs=pairs, descriptions=descriptions, questions=questions)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships: pocket-stage1.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to change.")] = None,
) -> None:
    """Carry out a recipe: train the projection. A run that was stopped goes on where its last checkpoint stood.

    Example: minigpt4 train pocket-stage1 steps=200 output=runs/short
    """
    from minigpt4.training.recipe import Recipe
    from minigpt4.training.run import train as run

    logging.getLogger("minigpt4").setLevel(logging.INFO)
    typer.echo(run(Recipe.load(recipe, overrides or [])))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="pocket, pocket-stage1, pocket-blip2, or a model's directory.")],
    picture: Annotated[Path | None, typer.Argument(help="The picture to talk about.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat format; the model's own by default.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 300,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest word.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes answers at a temperature above 0 repeatable.")] = None,
) -> None:
    """Talk about a picture in the terminal. /help lists what else can be typed.

    Example: minigpt4 chat pocket picture.png
    """
    from minigpt4.data.images import open_image

    if picture is not None:
        open_image(picture)  # a wrong path is known before the model is loaded
    from minigpt4.model.alignment import MiniGPT4
    from minigpt4.terminal import Terminal

    talk = MiniGPT4.from_pretrained(model).start_chat(template)
    sampling = {"do_sample": True, "temperature": temperature, "seed": seed} if temperature else {"do_sample": False}
    terminal = Terminal(talk, picture, {"max_new_tokens": max_new_tokens, **sampling})
    terminal.run()
    if terminal.mistakes and not terminal.interactive:
        raise typer.Exit(2)  # a script's caller must know; its user has read what was wrong


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
    typer.echo(f"{count} pictures and truth.jsonl are in {out}")


@pocket.command()
def data(
    stage: Annotated[str, typer.Argument(help="stage1 (short captions) or stage2 (detailed descriptions).")],
    out: Annotated[Path, typer.Option(help="A new directory for the dataset.")],
    count: Annotated[int, typer.Option(min=1, help="How many pictures.")] = 6400,
) -> None:
    """Write pocket pictures as a dataset in the format that the stage reads.

    Example: minigpt4 pocket data stage1 --count 6400 --out runs/pocket/data/stage1
    """
    from minigpt4.pocket import dataset

    writers = {"stage1": dataset.write_stage1, "stage2": dataset.write_stage2}
    if stage not in writers:
        raise UserError(f"there is no dataset {stage!r}; choose stage1 or stage2")
    typer.echo(f"{count} pictures with texts are in {writers[stage](out, count)}")


_Work = Annotated[Path, typer.Option("--out", help="Directory of checkpoints and results; a run there goes on.")]


@build.command()
def language(
    out: _Work = Path("runs/towers"),
    steps: Annotated[int, typer.Option(min=1, help="Batches of about 8,000 tokens for the pocket LLM.")] = 3200,
    captioner_steps: Annotated[int, typer.Option(min=1, help="The same for the captioning LM.")] = 700,
    start: Annotated[
        Path | None, typer.Option(help="Only train this finished pocket LLM on, with new text; a directory.")
    ] = None,
) -> None:
    """Train the captioning LM and the pocket LLM on text alone.

    Example: minigpt4 pocket build language --out runs/towers
    """
    from minigpt4.pocket.language_tower import build_captioner, build_language

    logging.getLogger("minigpt4").setLevel(logging.INFO)
    if start is None:
        typer.echo(build_captioner(out, captioner_steps))
    typer.echo(build_language(out, steps, start=start))


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
    typer.echo(build_vision(out, steps, generation_steps, start=start))


def main() -> None:
    """The `minigpt4` command: exit code 2 for a mistake of the user's, 130 for Ctrl-C."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    app()
