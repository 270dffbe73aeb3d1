"""The record of an alignment: the frozen parts that it names, and the tensors beside it, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from minigpt4.documents import check
from minigpt4.errors import UserError
from minigpt4.files import expand
from minigpt4.model import parts, sources
from minigpt4.model.lora import Trained
from minigpt4.prompts.templates import Template, get_template

FORMAT_VERSION = 1
PROJECTION_FILE = "projection.safetensors"
ALIGNMENT_FILE = "alignment.json"

ADAPTERS_FILE = "adapters.safetensors"  # what a variant trains beside the projection

#: A part's name and the sha256 of its weights. Control characters would reach terminals; no path can have a NUL.
_Name = Annotated[str, Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Origin:
    """Where the frozen parts came from: their names, and the fingerprints of their weights.

    On disk `.` and `./...` are places in the directory that holds the record.
    """

    vision_qformer: _Name
    vision_fingerprint: _Digest
    llm: _Name
    llm_fingerprint: _Digest


class Record(BaseModel):
    """What `alignment.json` says: parts, template, stage, whether there is a Q-Former, and what was trained."""

    origin: Origin
    template: Annotated[
        Template, BeforeValidator(lambda found: get_template(found) if isinstance(found, str) else found)
    ]
    stage: Literal[1, 2] | None
    qformer: bool = True  # alignments of releases that knew only the form with a Q-Former do not say so
    trained: Trained = Trained()


_RECORD = TypeAdapter(Record)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def load_tensors(path: Path | None, name: str, file: str) -> dict[str, Tensor]:
    if path is None:
        raise UserError(f"{name}: holds no {file}; copy or train the alignment again")
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors has one exception for all that can be wrong with a file
        raise UserError(f"{path}: cannot be read ({error}); copy or train the alignment again") from None
    if broken := [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]:
        raise UserError(f"{path}: {broken[0]} holds numbers that are not finite; copy or train the alignment again")
    return tensors


def read_projection(name: str | Path) -> dict[str, Tensor]:
    """The tensors of the projection of an alignment, an export or another BLIP-2; nothing else of it is read."""
    source = sources.resolve(name)
    path = sources.find_file(source, PROJECTION_FILE)
    if path or sources.find_file(source, "config.json") is None:
        return load_tensors(path, str(name), PROJECTION_FILE)
    whole, part = sources.Checkpoint(source), "language_projection."
    return {key.partition(part)[2]: whole[key] for key in whole if part in key}


def check_origin(name: str, recorded: Origin, found: Origin) -> None:
    """Raises UserError if an alignment's parts are not those that it was trained with."""
    for part, was, now in (
        (found.vision_qformer, recorded.vision_fingerprint, found.vision_fingerprint),
        (found.llm, recorded.llm_fingerprint, found.llm_fingerprint),
    ):
        if was != now:
            raise UserError(
                f"{name}: was aligned with other weights than those now in {part} (fingerprint {was[:12]}, found "
                f"{now[:12]}); put the former weights back, or train the alignment again"
            )


def portable(name: str | Path) -> str:
    """A part's name as an alignment records it: shipped names and hub ids as they are, local paths absolute."""
    if str(name) in sources.shipped_models() or not expand(name).is_dir():
        return str(name)
    return str(expand(name).resolve())


def parts_inside(directory: Path, qformer: bool = False) -> Origin:
    """The origin of parts that lie in `directory` itself, in `vision` and `llm`."""
    vision = parts.load_vision_qformer(directory / "vision", qformer).fingerprint
    return Origin("./vision", vision, "./llm", sources.fingerprint(sources.Checkpoint(directory / "llm")))


def read_record(source: str | Path) -> Record:
    """The record of an alignment or export, with the places of parts that it holds itself as paths."""
    record = sources.read_json(source, ALIGNMENT_FILE)
    if record.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{source}: {ALIGNMENT_FILE} has format version {record.get('format_version')!r:.40}, this package reads "
            f"version {FORMAT_VERSION}; use the release of minigpt4 that wrote it"
        )
    found = check(_RECORD, record, f"{source}: {ALIGNMENT_FILE}")
    origin = found.origin
    inside = {
        part: str(Path(source, place).resolve())
        for part, place in (("vision_qformer", origin.vision_qformer), ("llm", origin.llm))
        if place == "." or place.startswith("./")
    }
    return found.model_copy(update={"origin": replace(origin, **inside)})
