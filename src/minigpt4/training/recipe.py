"""A recipe: everything that decides what one stage of training does, read from YAML and checked before any work."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import to_jsonable_python

from minigpt4.documents import did_you_mean, parse_yaml, read_yaml, requirement
from minigpt4.errors import UserError
from minigpt4.extensions import extensions
from minigpt4.files import expand

logger = logging.getLogger(__name__)

#: Keys by their former names, which are read for one more release.
RENAMED = {
    "accumulate": "gradient_accumulation_steps", "keep_checkpoints": "save_total_limit",
    "sample_pictures": "sample_images",
}  # fmt: skip
GONE = {"projection_from"}  # keys that are no more; runs that saved them as null go on
#: Keys that may differ in a run that continues: they do not change the losses.
HARMLESS = {
    "base", "output", "save_every", "feature_cache", "save_total_limit", "trackers", "max_skipped", "workers",
    "sample_every", "sample_images", "sample_prompt",
}  # fmt: skip

_STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
_Whole = Annotated[int, Field(ge=0, le=10**9)]
_Count = Annotated[int, Field(ge=1, le=10**9)]
_UpTo1024 = Annotated[int, Field(ge=0, le=1024)]
_Seed = Annotated[int, Field(ge=0, lt=2**63)]
_Rate = Annotated[float, Field(ge=0, le=1e3)]


def _expanded(value: Any) -> Any:
    """A path, or several, or none, as `expand` reads it."""
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if not isinstance(value, str | Path) or Path(value) == (path := expand(value)):
        return value
    return type(value)(path)


class DataSource(BaseModel):
    """One of several sources of pairs, as an entry of `data`."""

    model_config = _STRICT

    path: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)
    caption_key: str | None = None

    _paths = field_validator("path")(_expanded)


class Recipe(BaseModel):
    """One stage of training. Each key, told in `keys.yaml`, can be in the YAML file or be given as `key=value`."""

    model_config = _STRICT

    base: str | None = None
    stage: Literal[1, 2]
    # What is trained
    vision_qformer: str | None = None
    llm: str | None = None
    qformer: bool = True
    group: int = Field(4, ge=1, le=2**14)
    projection_layers: Literal[1, 3] = 1
    train_qformer: bool = False
    lora_rank: _UpTo1024 = 0
    template: str | None = None
    init: str | None = None
    # What it is trained on
    data: str | tuple[DataSource, ...]
    stream: bool = False
    shuffle_buffer: _Whole = 10_000
    workers: _UpTo1024 = 0
    max_skipped: float = Field(0.5, gt=0, le=1)
    instructions: tuple[str, ...] = ()
    max_text_tokens: _Count = 32
    feature_cache: Path = Path("runs/features")
    # How
    steps: _Count
    batch_size: _Count
    gradient_accumulation_steps: _Count = 1
    learning_rate: float = Field(gt=0, le=1e3)
    warmup_steps: _Whole = 0
    warmup_learning_rate: _Rate = 1e-6
    final_learning_rate: _Rate = 0.0
    weight_decay: _Rate = 0.05
    seed: _Seed = 0
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    load_in: Literal["8bit", "4bit", "fp8", "int8"] | None = None
    vision_load_in: Literal["fp8", "int8"] | None = None
    device: str | None = None
    shard_llm: bool = False
    compile: bool | None = None
    # What it leaves behind
    output: Path
    save_every: _Count = 100
    save_total_limit: _Count = 2
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    sample_every: _Whole = 0
    sample_images: tuple[str, ...] = ()
    sample_prompt: str = "Describe this image in detail."

    _paths = field_validator("vision_qformer", "llm", "init", "data", "feature_cache", "output", "sample_images")(
        _expanded
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        parts = {"vision_qformer": self.vision_qformer, "llm": self.llm, "template": self.template}
        variant = ("projection_layers", "train_qformer", "lora_rank", "qformer", "group")
        changed = [key for key in variant if getattr(self, key) != type(self).model_fields[key].default]
        if self.init and (named := ", ".join([*(key for key, value in parts.items() if value), *changed])):
            raise ValueError(f"init already names the parts and the template; remove {named}, or set init=null")
        if not self.init and not (self.vision_qformer and self.llm):
            missing = ", ".join(key for key in ("vision_qformer", "llm") if not parts[key])
            raise ValueError(f"give {missing}, or an alignment to start from as init")
        if self.stage == 2 and not self.instructions:
            raise ValueError("stage 2 needs at least one of instructions")
        if self.stage == 1 and self.instructions:
            raise ValueError("stage 1 has no instructions; remove them, or set stage=2")
        if self.batch_size % (pieces := self.gradient_accumulation_steps):
            raise ValueError(f"batch_size {self.batch_size} cannot be divided by gradient_accumulation_steps={pieces}")
        if self.train_qformer and not (self.stream and self.qformer):
            raise ValueError("train_qformer needs stream=true and a Q-Former: what is trained cannot be cached")
        if self.vision_load_in and not self.stream:
            raise ValueError("vision_load_in needs stream=true; features that are cached are encoded in full precision")
        if not self.stream and len({source.weight for source in self.sources}) > 1:
            raise ValueError("weights of data need stream=true; cached data are all seen once in each epoch")
        if not self.sources:
            raise ValueError("data names no source")
        if self.sample_every and not self.sample_images:
            raise ValueError("sample_every needs sample_images")
        return self

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """`data` as a list of sources, also when it is one path."""
        return (DataSource(path=self.data, weight=1.0),) if isinstance(self.data, str) else self.data

    @property
    def data_named(self) -> str:
        """The paths of all sources."""
        return ", ".join(source.path for source in self.sources)

    @property
    def num_samples(self) -> int:
        """Samples that the whole run trains on, repeated ones included."""
        return self.steps * self.batch_size

    @property
    def parts(self) -> tuple[str, str, str | None]:
        """`vision_qformer`, `llm` and `template` of a recipe without `init`; without a template the LLM's own holds."""
        assert self.vision_qformer
        assert self.llm
        return self.vision_qformer, self.llm, self.template

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """A recipe by its path or, if it ships, its name, with `key=value` texts (in YAML). Raises UserError."""
        path = find_recipe(name_or_path)
        return cls.parse(_read(path) | _renamed(_parse_overrides(overrides), "override"), source=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """A recipe from keys and values. Raises UserError that names `source` and the key at fault."""
        try:
            return cls.model_validate(_renamed(values, source))
        except ValidationError as error:
            raise UserError(f"{source}: {_explain(error)}") from error

    def to_yaml(self) -> str:
        """The recipe as YAML text that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def differing_keys(self, other: "Recipe") -> list[str]:
        """Keys whose values differ and would change the losses (paths of files and how often they are saved do not).

        `compile` was chosen for the run that is saved as this recipe, and stays so where `other` leaves it out.
        """
        skipped = HARMLESS | ({"compile"} if other.compile is None else set())
        keys = (key for key in type(self).model_fields if key not in skipped)
        return [key for key in keys if getattr(self, key) != getattr(other, key)]


for _key, _meaning in read_yaml(Path(__file__).with_name("keys.yaml")).items():
    Recipe.model_fields[_key].description = _meaning


def packaged_recipes() -> dict[str, Path]:
    """The recipes that ship, the library's and those of installed extensions, by name."""
    directories = [Path(__file__).parents[1] / "recipes", *(recipes() for recipes in extensions("recipes"))]
    paths = [path for directory in directories for path in directory.glob("*.yaml")]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.name)}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe, by its path or, if it ships, its bare name. Raises UserError if it is neither."""
    path = expand(name_or_path)
    if path.is_file():
        return path
    name, packaged = str(name_or_path), packaged_recipes()
    if name not in packaged:
        known = f"({', '.join(packaged)}){did_you_mean(path.stem, packaged)}"
        raise UserError(f"no recipe {name!r}: neither a file nor one of those that come with the package {known}")
    return packaged[name]


def explain(key: str) -> str:
    """What a key of a recipe means, which values it takes, and its default. Raises UserError for an unknown key."""
    if key not in Recipe.model_fields:
        near = did_you_mean(key, Recipe.model_fields)
        raise UserError(f"unknown key {key!r}" + (near or f"; the keys are {', '.join(Recipe.model_fields)}"))
    entry = Recipe.model_fields[key]
    kind = re.sub(r"typing\.|pathlib\.|<class '|'>", "", str(entry.annotation)).replace("NoneType", "None")
    kind = kind.replace("minigpt4.training.recipe.DataSource", "{path, weight, caption_key}")
    if entry.is_required():
        return f"{key} ({kind}; required)\n{entry.description}"
    default = yaml.safe_dump(to_jsonable_python(entry.default), default_flow_style=True).removesuffix("...\n").strip()
    return f"{key} ({kind}; default: {default})\n{entry.description}"


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a file, those of its `base` beneath them."""
    if path in seen:
        raise UserError(f"recipe {path}: is its own base ({' -> '.join(str(p) for p in (*seen, path))})")
    values = read_yaml(path)
    if not isinstance(values, Mapping):
        raise UserError(f"recipe {path} must hold `key: value` lines, but holds {type(values).__name__}")
    own = _renamed({str(key): value for key, value in values.items()}, f"recipe {path}")
    base = own.get("base")
    if base is None:
        return own
    beside = path.parent / expand(str(base))
    beneath = _read(beside if beside.is_file() else find_recipe(str(base)), (*seen, path))
    return beneath | own | {"base": None}


def _renamed(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The same with former names of keys replaced, and a notice for each. Raises UserError if both names are given."""
    new = {key: value for key, value in values.items() if key not in GONE or value is not None}
    for former in sorted(RENAMED.keys() & new.keys()):
        name = RENAMED[former]
        if name in new:
            raise UserError(f"{source}: {former} is the former name of {name}; give only {name}")
        logger.warning("%s: %s is called %s now; the former name works for one more release", source, former, name)
        new[name] = new.pop(former)
    return new


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"{override!r} is not an override; write key=value, for example steps=100")
        try:
            values[key.strip()] = parse_yaml(value, "line")
        except UserError as error:
            hint = "quote it if it holds : # [ or {"
            raise UserError(f"the value in {override!r:.80} is not valid YAML ({error}); {hint}") from None
    return values


def _explain(error: ValidationError) -> str:
    """The first mistake in one line; of a list of sources, that of its first entry at fault."""
    mistakes = error.errors()
    mistake = next((m for m in mistakes if len(m["loc"]) > 2), mistakes[0])
    place = mistake["loc"]
    key = ".".join(str(part) for part in (place[:1] + place[2:] if place and place[0] == "data" else place))
    known = DataSource.model_fields if len(place) > 2 else Recipe.model_fields
    if mistake["type"] == "extra_forbidden":
        return f"unknown key {key!r}" + (did_you_mean(str(place[-1]), known) or "; docs/recipe.md lists the keys")
    if mistake["type"] == "missing":
        return f"key {key!r} is missing: {known[str(place[-1])].description or 'every source has one'}"
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    return f"{key} = {mistake['input']!r:.60}: {requirement(mistake)}"
