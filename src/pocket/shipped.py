"""What ships with the pocket world: weights of its models and parts, recipes, tables of words and tasks, templates."""

import os
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def weights() -> Path:
    """The folder of the shipped weights, or the one that MINIGPT4_POCKET_WEIGHTS names."""
    return Path(os.environ.get("MINIGPT4_POCKET_WEIGHTS") or HERE / "weights")


def models() -> dict[str, Path]:
    """Directories by name: aligned models, then the parts from which they are made."""
    alignments = {name: weights() / "alignments" / name for name in ("pocket", "pocket-stage1", "pocket-blip2")}
    drafts = {"pocket-drafts": HERE / "drafts" / "alignment", "pocket/drafts": HERE / "drafts" / "vision"}
    return alignments | drafts | {f"pocket/{part}": weights() / part for part in ("vision", "language", "captioner")}


def recipes() -> Path:
    """The folder of the recipes for the pocket parts."""
    return HERE / "recipes"


def read_table(name: str) -> Any:
    """What the YAML file of this name (without its ending) below the package holds."""
    return yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8"))


def render(name: str, **values: Any) -> str:
    """The template of this name below the package, filled in. Values in HTML are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(name).render(values)
