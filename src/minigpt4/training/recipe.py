"""A recipe: everything that decides what one stage of training does, read from YAML and checked before any work."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import to_jsonable_python

from minigpt4.documents import parse_yaml, read_yaml
from minigpt4.errors import UserError
from minigpt4.extensions import extensions
from minigpt4.files import expand

logger = logging.getLogger(__name__)


#: Keys by their former names, which are read for one more release.
RENAMED = {
    "accumulate": "gradient_accumulation_steps", "keep_checkpoints": "save_total_limit",
    "sample_pictures": "sample_images",
}  # fmt: skip
#: Keys that are no more. Runs saved them as null; those runs go on.
GONE = {"projection_from"}
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
    """One stage of training. Every key can stand in the YAML file and be overridden as `key=value`."""

    model_config = _STRICT

    base: str | None = Field(None, description="A recipe (a file or a shipped name) whose keys this one overrides.")
    stage: Literal[1, 2] = Field(
        description="1: align on image-text pairs, no instruction. 2: polish on descriptions in conversation format."
    )
    # What is trained
    vision_qformer: str | None = Field(
        None, description="Frozen vision tower and Q-Former: a directory, a hub id, or `pocket/vision`."
    )
    llm: str | None = Field(
        None, description="Frozen LLM with its tokenizer: a directory, a hub id, a GGUF file, or `pocket/language`."
    )
    qformer: bool = Field(
        True,
        description="`false`: the paper's variant without it: groups of patches. `vision_qformer` may then be any "
        "vision encoder of transformers (CLIP, SigLIP, DINOv2).",
    )
    group: int = Field(
        4, ge=1, le=2**14, description="Without a Q-Former: neighbouring patches that become one image token."
    )
    projection_layers: Literal[1, 3] = Field(1, description="3: the paper's variant with GELUs between three layers.")
    train_qformer: bool = Field(False, description="`true`: the variant that trains the Q-Former too. Needs `stream`.")
    lora_rank: _UpTo1024 = Field(
        0, description="Above 0: train LoRA matrices of this rank on the LLM's attention (q and v) too."
    )
    template: str | None = Field(
        None, description="Name of the chat template that the alignment is saved with. Left out: the LLM's own."
    )
    init: str | None = Field(
        None,
        description="Alignment to start from (a directory or a shipped name). It names the parts, template and "
        "variant, so it replaces those keys. Left out: a random projection, the LLM's mean word embedding as its bias.",
    )
    # What it is trained on
    data: str | tuple[DataSource, ...] = Field(
        description="Pairs: img2dataset tar shards (a directory, one file, or a pattern like `{00000..00012}.tar`), "
        "parquet, JSONL or CSV with images, an image folder, `hub:owner/name`; for stage 2 also a directory in "
        "`cc_sbu_align` layout. Or a list of several, each with `path`, and optionally `weight` and `caption_key`."
    )
    stream: bool = Field(
        False,
        description="`true`: images are read as they come and go through the vision side in every step, for data "
        "that are seen once. `false`: their features are computed once and kept in `feature_cache`.",
    )
    shuffle_buffer: _Whole = Field(10_000, description="With `stream`: pairs in memory to shuffle, over all processes.")
    workers: _UpTo1024 = Field(
        0, description="With `stream`: processes that read images, for each GPU. Any number gives the same batches."
    )
    max_skipped: float = Field(
        0.5, gt=0, le=1, description="Share of a source's pairs that may be unusable; if more are, the run stops."
    )
    instructions: tuple[str, ...] = Field((), description="Stage 2: ways to ask, one drawn per sample and epoch.")
    max_text_tokens: _Count = Field(32, description="Tokens of a text that are kept, its end symbol included.")
    feature_cache: Path = Field(
        Path("runs/features"),
        description="Directory of the vision side's cached outputs. Runs may share it: it is keyed by image content "
        "and by the vision side's weights.",
    )
    # How
    steps: _Count = Field(description="Optimizer steps in all.")
    batch_size: _Count = Field(description="Samples per step, over all processes together.")
    gradient_accumulation_steps: _Count = Field(1, description="Parts a step is computed in: less memory, same result.")
    learning_rate: float = Field(gt=0, le=1e3, description="Peak learning rate, reached after the warm-up.")
    warmup_steps: _Whole = Field(0, description="Steps of linear warm-up.")
    warmup_learning_rate: _Rate = Field(1e-6, description="Learning rate of the first step of the warm-up.")
    final_learning_rate: _Rate = Field(0.0, description="Learning rate at which the cosine decay ends.")
    weight_decay: _Rate = Field(0.05, description="AdamW's weight decay; biases and norms get none.")
    seed: _Seed = Field(0, description="Seeds the projection's start, the order of samples and the instructions.")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None,
        description="Type of the frozen weights and of computation; the projection's weights stay in float32. "
        "float16 scales the loss. Left out: bfloat16 where the processor multiplies it fast, else float32.",
    )
    load_in: Literal["8bit", "4bit", "fp8", "int8"] | None = Field(
        None,
        description="Hold the frozen LLM's linear layers in 8 or 4 bits (bitsandbytes, on CUDA or the CPU) and train "
        "through them; `fp8` computes in 8-bit floats too, on GPUs from L4, RTX 40 and H100 on, `int8` in 8-bit "
        "integers, on the CPU; both want `compile`. Left out: in `dtype`.",
    )
    vision_load_in: Literal["fp8", "int8"] | None = Field(
        None,
        description="`fp8` or `int8`: the frozen vision tower's linear layers compute in 8-bit floats or integers too, "
        "where every step reads images. Needs `stream`; `compile` compiles them too. Left out: in `dtype`.",
    )
    device: str | None = Field(None, description="`cpu`, `cuda`, `cuda:1`, `mps`. Left out: CUDA, else the CPU.")
    shard_llm: bool = Field(False, description="`true`: each process holds a shard of a large LLM (FSDP).")
    compile: bool = Field(False, description="`true`: compile the LLM's layers: a minute at the start, faster steps.")
    # What it leaves behind
    output: Path = Field(description="Directory for checkpoints, metrics and the resulting `alignment`.")
    save_every: _Count = Field(100, description="Steps between checkpoints.")
    save_total_limit: _Count = Field(2, description="Last checkpoints to keep; that of the lowest loss is kept too.")
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (), description="Where metrics are sent too: `tensorboard`, `wandb`, `trackio`."
    )
    sample_every: _Whole = Field(0, description="Steps between sample answers, written to `samples.jsonl`; 0 for none.")
    sample_images: tuple[str, ...] = Field((), description="Images that the sample answers are about.")
    sample_prompt: str = Field("Describe this image in detail.", description="The question about them.")

    _paths = field_validator(
        "vision_qformer", "llm", "init", "data", "feature_cache", "output", "sample_images"
    )(_expanded)

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
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
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """A recipe by its path or, if it ships, its bare name, with `key=value` texts whose values are read as YAML.

        Raises UserError: no such recipe, not YAML, or a key or value that is not valid.
        """
        path = find_recipe(name_or_path)
        return cls.parse(_read(path) | _renamed(_parse_overrides(overrides), "override"), source=str(path))

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """A recipe from keys and values. Raises UserError that names `source` and the key at fault."""
        try:
            return cls.model_validate(_renamed(values, source))
        except ValidationError as error:
            raise UserError(f"{source}: {_explain(error)}") from error

    def to_yaml(self) -> str:
        """The recipe as YAML text that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def differing_keys(self, other: Recipe) -> list[str]:
        """Keys whose values differ and would change the losses (paths of files and how often they are saved do not)."""
        return [
            key for key in type(self).model_fields if key not in HARMLESS and getattr(self, key) != getattr(other, key)
        ]


def packaged_recipes() -> dict[str, Path]:
    """The recipes that ship, the library's and those of installed extensions, by name."""
    own = Path(str(resources.files("minigpt4") / "recipes"))
    directories = [own, *(recipes() for recipes in extensions("recipes"))]
    paths = [path for directory in directories for path in directory.glob("*.yaml")]
    return {path.stem: path for path in sorted(paths, key=lambda path: path.name)}


def find_recipe(name_or_path: str | Path) -> Path:
    """The file of a recipe, by its path or, if it ships, its bare name. Raises UserError if it is neither."""
    path = expand(name_or_path)
    if path.is_file():
        return path
    name, packaged = str(name_or_path), packaged_recipes()
    if name not in packaged:
        known = f"({', '.join(packaged)}){_did_you_mean(path.stem, packaged)}"
        raise UserError(f"no recipe {name!r}: neither a file nor one of those that come with the package {known}")
    return packaged[name]


def explain(key: str) -> str:
    """What a key of a recipe means, which values it takes, and its default. Raises UserError for an unknown key."""
    if key not in Recipe.model_fields:
        near = _did_you_mean(key, Recipe.model_fields)
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
        return f"unknown key {key!r}" + (_did_you_mean(str(place[-1]), known) or "; docs/recipe.md lists the keys")
    if mistake["type"] == "missing":
        return f"key {key!r} is missing: {known[str(place[-1])].description or 'every source has one'}"
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    return f"{key} = {mistake['input']!r:.60}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def _did_you_mean(word: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
