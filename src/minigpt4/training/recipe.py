"""A recipe: everything that decides what one stage of training does, read from YAML and checked before any work.

Knows nothing about models or tensors; reading a recipe is instant.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minigpt4.errors import UserError


class Recipe(BaseModel):
    """One stage of training. Every key can stand in the YAML file and be overridden as `key=value`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: Literal[1, 2] = Field(
        description="1: align on image-text pairs, no instruction. 2: polish on descriptions in conversation format."
    )
    # What is trained
    vision_qformer: str | None = Field(
        None, description="Frozen vision tower and Q-Former: a directory, a hub id, or `pocket/vision`."
    )
    llm: str | None = Field(
        None, description="Frozen LLM with its tokenizer: a directory, a hub id, or `pocket/language`."
    )
    qformer: bool = Field(
        True, description="`false`: the paper's variant that projects the tower's patches, four at a time, themselves."
    )
    template: str | None = Field(None, description="Name of the chat template that the alignment is saved with.")
    init: str | None = Field(
        None,
        description="Alignment to start from (a directory or a shipped name); it names the parts and the template, "
        "so it takes the place of `vision_qformer`, `llm` and `template`. Without it the projection starts at random.",
    )
    # What it is trained on
    data: str = Field(
        description="Stage 1: img2dataset tar shards (a directory, one file, or a pattern like `{00000..00012}.tar`). "
        "Stage 2: a directory in `cc_sbu_align` layout (`filter_cap.json` and `image/`)."
    )
    instructions: tuple[str, ...] = Field(
        (), description="Stage 2: ways to ask for a description; one is drawn for each sample in each epoch."
    )
    max_text_tokens: int = Field(
        32, ge=1, description="Tokens of a caption or description that are kept, its end symbol included."
    )
    feature_cache: Path = Field(
        Path("runs/features"),
        description="Directory of the vision side's cached outputs. Runs may share it: it is keyed by picture content "
        "and by the vision side's weights.",
    )
    # How
    steps: int = Field(ge=1, description="Optimiser steps in all.")
    batch_size: int = Field(ge=1, description="Samples per step.")
    learning_rate: float = Field(gt=0, description="Peak learning rate, reached after the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up.")
    warmup_learning_rate: float = Field(1e-6, ge=0, description="Learning rate of the first step of the warm-up.")
    final_learning_rate: float = Field(0.0, ge=0, description="Learning rate at which the cosine decay ends.")
    weight_decay: float = Field(0.05, ge=0, description="AdamW's weight decay; biases and norms get none.")
    seed: int = Field(0, ge=0, description="Seeds the projection's start, the order of samples and the instructions.")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="Type in which the frozen weights are held and compute; the projection's weights stay in float32. "
        "Left out: bfloat16 where the processor multiplies it fast, else float32.",
    )
    load_in: Literal["8bit", "4bit"] | None = Field(
        None,
        description="Hold the frozen LLM's linear layers in 8 or 4 bits (bitsandbytes, on CUDA or the CPU) and train "
        "through them. Left out: in `dtype`.",
    )
    device: str | None = Field(
        None, description="`cpu`, `cuda`, `cuda:1`, `mps`. Left out: CUDA if there is one, else the CPU."
    )
    # What it leaves behind
    output: Path = Field(description="Directory for checkpoints, metrics and the resulting `alignment`.")
    save_every: int = Field(100, ge=1, description="Steps between checkpoints.")

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        parts = {"vision_qformer": self.vision_qformer, "llm": self.llm, "template": self.template}
        if self.init and any(parts.values()):
            named = ", ".join(key for key, value in parts.items() if value)
            raise ValueError(f"init already names the parts and the template; remove {named}, or set init=null")
        if not self.init and not all(parts.values()):
            missing = ", ".join(key for key, value in parts.items() if not value)
            raise ValueError(f"give {missing}, or an alignment to start from as init")
        if self.stage == 2 and not self.instructions:
            raise ValueError("stage 2 needs at least one of instructions")
        if self.stage == 1 and self.instructions:
            raise ValueError("stage 1 has no instructions; remove them, or set stage=2")
        return self

    @property
    def parts(self) -> tuple[str, str, str]:
        """`vision_qformer`, `llm` and `template` of a recipe without `init`."""
        if not (self.vision_qformer and self.llm and self.template):
            raise ValueError("a recipe with init takes its parts from there")
        return self.vision_qformer, self.llm, self.template

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a recipe from a YAML file or, by bare name, from those that come with the package.

        Args:
            name_or_path: `recipes/mine.yaml`, or a packaged name such as `pocket-stage1`.
            overrides: `key=value` texts; a value is read as YAML.
        Raises:
            UserError: no such recipe, not YAML, or a key or value that is not valid.
        """
        path = find_recipe(name_or_path)
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(f"recipe {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, Mapping):
            raise UserError(f"recipe {path} must hold `key: value` lines, but holds {type(values).__name__}")
        return cls.parse({**values, **_parse_overrides(overrides)}, source=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """A recipe from keys and values.

        Raises:
            UserError: names `source`, the key at fault, and the nearest valid key where there is one.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise UserError(f"{source}: {_explain(error)}") from error

    def to_yaml(self) -> str:
        """The recipe as YAML text that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def differing_keys(self, other: Recipe) -> list[str]:
        """Keys whose values differ and would change the losses; where files lie and how often they are saved do not."""
        harmless = {"output", "save_every", "feature_cache"}
        return [
            key for key in type(self).model_fields if key not in harmless and getattr(self, key) != getattr(other, key)
        ]


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    directory = Path(str(resources.files("minigpt4") / "recipes"))
    return {path.stem: path for path in sorted(directory.glob("*.yaml"))}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe that is named by its path or, if it comes with the package, by its bare name.

    Raises:
        UserError: neither a file nor a packaged name.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    packaged = packaged_recipes()
    if str(name_or_path) in packaged:
        return packaged[str(name_or_path)]
    raise UserError(
        f"no recipe {str(name_or_path)!r}: neither a file nor one of those that come with the package "
        f"({', '.join(packaged)})" + _did_you_mean(path.stem, packaged)
    )


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override; write key=value, for example steps=100")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"the value in {override!r} is not valid YAML; quote it if it holds : # [ or {{") from error
    return values


def _explain(error: ValidationError) -> str:
    """The first mistake in one line."""
    mistake = error.errors()[0]
    key = ".".join(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {key!r}" + (_did_you_mean(key, Recipe.model_fields) or "; docs/recipe.md lists the keys")
    if mistake["type"] == "missing":
        return f"key {key!r} is missing: {Recipe.model_fields[key].description}"
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    return f"{key} = {mistake['input']!r}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
