"""Alignments on disk: their record, and how a model is put together from its parts, loaded and saved."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from huggingface_hub import snapshot_download
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, with_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from minigpt4.documents import check
from minigpt4.errors import UserError
from minigpt4.files import expand, new_directory
from minigpt4.images import size_of
from minigpt4.model import parts, sources
from minigpt4.model.graph import check_projection, fresh_projection, make_graph, put_tensors
from minigpt4.model.lora import Trained
from minigpt4.model.precision import AS_GLIBC, Placement, free_large_tensors_at_once, keep_freed_memory
from minigpt4.prompts.jinja import choose_template, end_at_stop
from minigpt4.prompts.templates import TEMPLATES, Template, get_template

if TYPE_CHECKING:
    from minigpt4.model.aligned import AlignedModel

Model = TypeVar("Model", bound="AlignedModel")

FORMAT_VERSION = 1
ALIGNMENT_FILE = "alignment.json"
PROJECTION_FILE = "projection.safetensors"
ADAPTERS_FILE = "adapters.safetensors"  # what a variant trains beside the projection

#: A part's name and the sha256 of its weights. Control characters would reach terminals; no path can have a NUL.
_Name = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Size = Annotated[float, Field(gt=0, le=100)]


@dataclass(frozen=True)
class Origin:
    """The frozen parts: names (on disk `.` and `./...` are places beside the record) and fingerprints of weights."""

    vision_qformer: _Name
    vision_fingerprint: _Digest
    llm: _Name
    llm_fingerprint: _Digest


@with_config(extra="forbid")
class Suggested(TypedDict, total=False):
    """How answers are decoded if nothing else is asked for: fields of `Decoding`."""

    do_sample: Annotated[bool, Field(strict=True)]
    temperature: _Size
    top_p: Annotated[float, Field(gt=0, le=1)]
    repetition_penalty: _Size


class AlignmentRecord(BaseModel):
    """What `alignment.json` says. `export` is the place of an export, which holds the frozen parts itself, or None."""

    origin: Origin
    template: Annotated[
        Template, BeforeValidator(lambda found: get_template(found) if isinstance(found, str) else found)
    ]
    stage: Literal[1, 2] | None
    qformer: bool = True  # alignments of releases that knew only the form with a Q-Former do not say so
    group: Annotated[int, Field(ge=1, le=2**14)] = parts.PATCHES_PER_TOKEN
    trained: Trained = Trained()
    export: str | None = None
    decoding: Suggested = {}

    @property
    def parts(self) -> tuple[str, str]:
        """The vision side and the LLM to load."""
        return self.export or self.origin.vision_qformer, self.export or self.origin.llm

    def check_parts(self, name: str | Path, vision: str, llm: str | None = None) -> None:
        """Raises UserError if the fingerprints of an alignment's parts are not those that it was trained with."""
        recorded = (self.origin.vision_fingerprint, vision), (self.origin.llm_fingerprint, llm)
        for part, (was, now) in zip(self.parts, recorded, strict=True):
            if now and was != now and not self.export:
                told = f"was aligned with other weights than those now in {part}"
                marks = f"(fingerprint {was[:12]}, found {now[:12]})"
                raise UserError(f"{name}: {told} {marks}; put the former back, or train the alignment again")


def assemble(
    kind: type[Model],
    vision_qformer: str | Path,
    llm: str | Path,
    placement: Placement,
    *,
    template: str | Template | None = None,
    qformer: bool = True,
    group: int = parts.PATCHES_PER_TOKEN,
    trained: Trained = Trained(),  # noqa: B008  # frozen
    seed: int = 0,
) -> Model:
    """A model of these frozen parts with a fresh projection: see `MiniGPT4.assemble`."""
    if isinstance(template, str):
        template = get_template(template)  # reports a wrong name before anything is loaded
    free_large_tensors_at_once()
    vision = parts.load_vision_qformer(vision_qformer, qformer, group)
    language = parts.load_llm(llm, placement.dtype, placement)
    placement = replace(placement, dtype=language.dtype)
    template = choose_template(template, language.tokenizer, str(llm))
    blip2 = make_graph(vision, language.model.config, language.image_token_id)
    put_tensors(blip2, vision, str(vision_qformer), placement.dtype)
    blip2.language_projection = fresh_projection(vision, language.model.config, seed, trained.projection_layers)
    del blip2.language_model  # without weights; the one with weights is in its place already
    blip2.to(placement.device).language_model = language.model
    end_at_stop(language.model, language.tokenizer, template)
    origin = Origin(portable(vision_qformer), vision.fingerprint, portable(llm), language.fingerprint)
    model = kind(blip2, language.tokenizer, vision.image_processor, template, origin, None, placement, trained)
    model.familiar = vision.familiar
    keep_freed_memory(AS_GLIBC)
    return model


def load(kind: type[Model], name: str | Path, placement: Placement) -> Model:
    """The model of an alignment or an export: see `MiniGPT4.from_pretrained`."""
    record = read_record(name)
    model = assemble(
        kind, *record.parts, placement, template=record.template, qformer=record.qformer, group=record.group,
        trained=record.trained,
    )  # fmt: skip
    projection = read_projection(name)
    check_projection(f"{name}: its projection", model.blip2, projection, record.parts[1])
    model.blip2.language_projection.load_state_dict(projection)
    record.check_parts(name, model.origin.vision_fingerprint, model.origin.llm_fingerprint)
    if record.export:
        model.blip2.language_projection.to(model.dtype)  # as transformers loads it
        model.origin = record.origin
    if model.adapter_names():
        model.put_adapters(load_tensors(name, ADAPTERS_FILE), str(name))
    model.stage, model.decoding = record.stage, dict(record.decoding)
    return model


def save(model: "AlignedModel", directory: str | Path, overwrite: bool = False) -> None:
    """Write the alignment: see `MiniGPT4.save_pretrained`."""
    adapters, place = {name: model.get_parameter(name) for name in model.adapter_names()}, expand(directory).resolve()
    if any(Path(part).is_relative_to(place) for part in (model.origin.vision_qformer, model.origin.llm)):
        raise UserError(f"{directory}: holds this model's own frozen parts; give another directory")
    with new_directory(directory, overwrite=overwrite, marker=ALIGNMENT_FILE) as new:
        write_tensors(model.blip2.language_projection.state_dict(), new / PROJECTION_FILE)
        if adapters:
            write_tensors(adapters, new / ADAPTERS_FILE)
        write_record(model, new, model.origin, model.trained)


def read_record(name: str | Path) -> AlignmentRecord:
    """The record of an alignment or export, with the places of parts that it holds itself as paths."""
    source = sources.resolve(name)
    content = sources.read_json(source, ALIGNMENT_FILE)
    if content.get("format_version") != FORMAT_VERSION:
        told = f"has format version {content.get('format_version')!r:.40}, this package reads version {FORMAT_VERSION}"
        raise UserError(f"{source}: {ALIGNMENT_FILE} {told}; use the release of minigpt4 that wrote it")
    content["export"] = str(source) if sources.find_file(source, "config.json") else None
    record = check(TypeAdapter(AlignmentRecord), content, f"{source}: {ALIGNMENT_FILE}")
    inside = {part: place for part, place in asdict(record.origin).items() if place == "." or place.startswith("./")}
    folders = {*inside.values()} - {"."}  # on the hub "." is its id, and folders in it are fetched
    with sources.readable(name):
        base = source.resolve() if isinstance(source, Path) else snapshot_download(source) if folders else source
    inside = {part: str(Path(base, place)) for part, place in inside.items()}
    return record.model_copy(update={"origin": replace(record.origin, **inside)})


def write_record(model: "AlignedModel", directory: Path, origin: Origin, trained: Trained) -> None:
    """Write `alignment.json`."""
    known = TEMPLATES.get(model.template.name) == model.template
    content = {
        "format_version": FORMAT_VERSION,
        "origin": asdict(origin),
        "template": model.template.name if known else asdict(model.template),
        "image_size": size_of(model.image_processor)[0],
        "num_query_tokens": model.num_query_tokens,
        "qformer": model.has_qformer,
        "stage": model.stage,
        **({"decoding": model.decoding} if model.decoding else {}),
        **({"group": model.group} if model.group != parts.PATCHES_PER_TOKEN else {}),
        **({"trained": asdict(trained)} if trained != Trained() else {}),
    }
    write_json(directory / ALIGNMENT_FILE, content)


def portable(name: str | Path) -> str:
    """A part's name as an alignment records it: shipped names and hub ids as they are, local paths absolute."""
    if str(name) in sources.shipped_models() or not expand(name).exists():
        return str(name)
    return str(expand(name).resolve())


def read_projection(name: str | Path) -> dict[str, Tensor]:
    """The tensors of the projection of an alignment, an export or another BLIP-2; nothing else of it is read."""
    source = sources.resolve(name)
    if sources.find_file(source, PROJECTION_FILE) or not sources.find_file(source, "config.json"):
        return load_tensors(name, PROJECTION_FILE)
    whole, part = sources.Checkpoint(source), "language_projection."
    return {key.partition(part)[2]: whole[key] for key in whole if part in key}


def weights_fingerprint(name: str | Path) -> str:
    """A name for all weights that decide what an alignment or export says: its frozen parts', and those it trained."""
    record = read_record(name)
    digest = hashlib.sha256(f"{record.origin.vision_fingerprint} {record.origin.llm_fingerprint}".encode())
    trained = read_projection(name)
    in_order = sorted(trained, key=lambda key: (key.rpartition(".")[0], key.endswith("bias")))
    adapters = {} if record.trained == Trained(record.trained.projection_layers) else load_tensors(name, ADAPTERS_FILE)
    for tensor in (*(trained[key] for key in in_order), *(adapters[key] for key in sorted(adapters))):
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_tensors(name: str | Path, file: str) -> dict[str, Tensor]:
    """The tensors of one file of an alignment. Raises UserError if it is missing or broken."""
    path = sources.find_file(sources.resolve(name), file)
    if path is None:
        raise UserError(f"{name}: holds no {file}; copy or train the alignment again")
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors has one exception for all that can be wrong with a file
        raise UserError(f"{path}: cannot be read ({error}); copy or train the alignment again") from None
    if broken := [key for key, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        raise UserError(f"{path}: {broken[0]} holds numbers that are not finite; copy or train the alignment again")
    return tensors


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
