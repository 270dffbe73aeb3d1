"""Alignments on disk: put a model together from its parts, load it, save it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from minigpt4.files import new_directory
from minigpt4.model import parts, record, sources
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.graph import check_projection, make_graph, put_tensors
from minigpt4.model.lora import Trained
from minigpt4.model.precision import Placement
from minigpt4.model.projection import fresh_projection
from minigpt4.model.record import Origin, check_origin, load_tensors, portable, read_projection, read_record
from minigpt4.prompts.from_tokenizer import choose_template, end_at_stop
from minigpt4.prompts.templates import TEMPLATES, Template, get_template

Model = TypeVar("Model", bound=AlignedModel)


def assemble(
    kind: type[Model],
    vision_qformer: str | Path,
    llm: str | Path,
    placement: Placement,
    *,
    template: str | Template | None = None,
    qformer: bool = True,
    trained: Trained = Trained(),  # noqa: B008  # frozen
    seed: int = 0,
) -> Model:
    """A model of these frozen parts with a fresh projection: see `MiniGPT4.assemble`."""
    if isinstance(template, str):
        template = get_template(template)  # reports a wrong name before anything is loaded
    vision = parts.load_vision_qformer(vision_qformer, qformer)
    language = parts.load_llm(llm, placement.dtype, placement)
    template = choose_template(template, language.tokenizer, str(llm))
    blip2 = make_graph(vision, language.model.config, language.image_token_id)
    put_tensors(blip2, vision, str(vision_qformer), placement.dtype)
    blip2.language_model = language.model
    end_at_stop(language.model, language.tokenizer, template)
    blip2.language_projection = fresh_projection(vision, language.model.config, seed, trained.projection_layers)
    blip2.query_tokens.data = blip2.query_tokens.data.to(placement.device)
    for part in (blip2.vision_model, blip2.qformer, blip2.language_projection):  # the LLM is already there
        part.to(placement.device)
    origin = Origin(portable(vision_qformer), vision.fingerprint, portable(llm), language.fingerprint)
    return kind(blip2, language.tokenizer, vision.image_processor, template, origin, None, placement, trained)


def load(kind: type[Model], name: str | Path, placement: Placement) -> Model:
    """The model of an alignment or an export: see `MiniGPT4.from_pretrained`."""
    source = sources.resolve(name)
    found = read_record(source)
    origin, template, stage = found.origin, found.template, found.stage
    if sources.find_file(source, "config.json"):  # an export holds the frozen parts too
        with parts.readable(name), sources.bars_if_long(sources.Checkpoint(source).size()):
            blip2 = parts.load_whole(source, placement)
            tokenizer, processor = sources.load(AutoTokenizer, source), sources.load(BlipImageProcessorPil, source)
        return kind(blip2, tokenizer, processor, template, origin, stage, placement)
    model = assemble(
        kind, origin.vision_qformer, origin.llm, placement,
        template=template, qformer=found.qformer, trained=found.trained,
    )  # fmt: skip
    projection = read_projection(name)
    check_projection(f"{name}: its projection", model.blip2, projection, origin.llm)
    model.blip2.language_projection.load_state_dict(projection)
    check_origin(str(name), origin, model.origin)
    if model.adapter_names():
        adapters = sources.find_file(source, record.ADAPTERS_FILE)
        model.put_adapters(load_tensors(adapters, str(name), record.ADAPTERS_FILE), str(name))
    model.stage = stage
    return model


def save(model: AlignedModel, directory: str | Path, overwrite: bool = False) -> None:
    """Write the alignment: see `MiniGPT4.save_pretrained`."""
    adapters = {name: model.get_parameter(name) for name in model.adapter_names()}
    with new_directory(directory, overwrite=overwrite, marker=record.ALIGNMENT_FILE) as new:
        write_tensors(model.blip2.language_projection.state_dict(), new / record.PROJECTION_FILE)
        if adapters:
            write_tensors(adapters, new / record.ADAPTERS_FILE)
        write_record(model, new, model.origin, model.trained)


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors to one safetensors file."""
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def write_record(model: AlignedModel, directory: Path, origin: Origin, trained: Trained) -> None:
    """Write `alignment.json`, which `record.read_record` reads."""
    known = TEMPLATES.get(model.template.name) == model.template
    content = {
        "format_version": record.FORMAT_VERSION,
        "origin": asdict(origin),
        "template": model.template.name if known else asdict(model.template),
        "image_size": model.blip2.config.vision_config.image_size,
        "num_query_tokens": model.num_query_tokens,
        "qformer": model.has_qformer,
        "stage": model.stage,
        **({"trained": asdict(trained)} if trained != Trained() else {}),
    }
    record.write_json(directory / record.ALIGNMENT_FILE, content)
