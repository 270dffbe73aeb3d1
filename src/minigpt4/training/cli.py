"""`minigpt4 recipe ...` and `data features`: parsing and printing only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minigpt4 import cli_options as options
from minigpt4.data.cli import CaptionKey, SourceName, Stage, data
from minigpt4.telling import say

recipes = typer.Typer(no_args_is_help=True, help="Recipes: those that ship, and what their keys mean.")


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes that come with the package, each with the first line of its file.

    Example: minigpt4 recipe list | grep vicuna
    """
    from minigpt4.training.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        say(f"{name:<24}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@recipes.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to change.")] = None,
) -> None:
    """Print a recipe whole: every key, those of its base and the defaults included.

    Example: minigpt4 recipe show vicuna-13b-stage1
    """
    from minigpt4.training.recipe import Recipe

    say(Recipe.load(recipe, overrides or []).to_yaml(), end="")


@recipes.command()
def explain(
    key: Annotated[str, typer.Argument(help="A key of a recipe: batch_size.")],
) -> None:
    """Say what a key of a recipe means, which values it takes, and its default.

    Example: minigpt4 recipe explain batch_size
    """
    from minigpt4.training.recipe import explain as explain_key

    say(explain_key(key))


@data.command()
def features(
    source: SourceName,
    model: Annotated[str, typer.Option(help="Whose vision side: an alignment or an export, or pocket.")],
    out: Annotated[Path, typer.Option(help="The cache, which recipes name as feature_cache.")],
    stage: Stage = 1,
    caption_key: CaptionKey = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images.")] = 0,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Share of unusable pairs that ends it.")] = 0.1,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Run the frozen vision side over a source once, and keep its output for training. Goes on where it was stopped.

    Example: minigpt4 data features runs/pocket/data/stage1 --model pocket --out runs/pocket/features
    """
    from minigpt4.data.mixture import Source, check_sources

    pairs = Source(source, caption_key=caption_key)
    check_sources([pairs], stage)  # a wrong path is known before the model is loaded
    from minigpt4.model.precision import resolve_device, training_dtype
    from minigpt4.model.vision import load_vision_side
    from minigpt4.training.features import encode_source

    resolved = resolve_device(device)
    loaded = load_vision_side(model, dtype=dtype or training_dtype(resolved), device=resolved)
    say(encode_source(loaded, out, pairs, stage=stage, workers=workers, max_skipped=max_skipped))
