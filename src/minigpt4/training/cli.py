"""`minigpt4 recipe ...`: parsing and printing only."""

from __future__ import annotations

from typing import Annotated

import typer

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
