"""Exports made from files without loading the model, a few tensors at a time: a 13B LLM fits a laptop's memory.

Tensors are memory-mapped and written as they are on disk, so memory holds one new shard at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.core_model_loading import revert_weight_conversion

from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.model import export as exporting
from minigpt4.model import parts, sources
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.graph import check_projection, check_shapes, check_vision, make_graph
from minigpt4.model.loading import load
from minigpt4.model.lora import Trained
from minigpt4.model.precision import Placement, resolve_dtype
from minigpt4.model.projection import fresh_projection
from minigpt4.model.record import ALIGNMENT_FILE, Origin, check_origin, portable, read_projection, read_record
from minigpt4.prompts.from_tokenizer import choose_template, end_at_stop
from minigpt4.prompts.templates import Template, get_template

#: Bytes of a shard: a quarter of the LLM's largest one, since up to three copies are in memory (base, delta, sum), but
#: within these bounds.
SMALLEST_SHARD, LARGEST_SHARD = 16 * 2**20, 2 * 10**9


def assemble(
    vision_qformer: str | Path,
    llm: str | Path,
    out: str | Path,
    *,
    template: str | None = None,
    qformer: bool = True,
    seed: int = 0,
    dtype: str | None = None,
) -> Template:
    """Write an export of these parts with a fresh projection to the new directory `out`; returns its chat format.

    The arguments are those of `MiniGPT4.assemble`.
    """
    kept = None if dtype is None else resolve_dtype(dtype, torch.device("cpu"))
    chosen = None if template is None else get_template(template)
    vision = parts.load_vision_qformer(vision_qformer, qformer)
    files = LLMFiles(llm)
    projection = fresh_projection(vision, files.config, seed).state_dict()
    return write_model(out, vision, str(vision_qformer), projection, files, template=chosen, dtype=kept)


def export(model: str | Path, out: str | Path, *, dtype: str | None = None) -> None:
    """Write an alignment, or another export, as an export to the new directory `out`, as `MiniGPT4.export` does.

    `dtype` defaults to that of the files. Raises UserError if the alignment's parts are not those that it was trained
    with.
    """
    kept = None if dtype is None else resolve_dtype(dtype, torch.device("cpu"))
    source = sources.resolve(model)
    record = read_record(source)
    origin = record.origin
    if record.trained != Trained():  # what was trained is spread over the parts, so the model is loaded
        exporting.export(load(AlignedModel, model, Placement.resolve(kept, "cpu")), out)
        return
    whole = sources.find_file(source, "config.json") is not None
    vision = parts.load_vision_qformer(model if whole else origin.vision_qformer, record.qformer)
    llm = LLMFiles(model if whole else origin.llm)
    if not whole:
        found = replace(origin, vision_fingerprint=vision.fingerprint, llm_fingerprint=llm.fingerprint())
        check_origin(str(model), origin, found)
    write_model(
        out, vision, str(model), read_projection(model), llm,
        template=record.template, origin=origin, stage=record.stage, dtype=kept,
    )  # fmt: skip


class LLMFiles:
    """A decoder-only LLM on disk, alone or in an export, to which the weights of `delta` are added if it is given."""

    def __init__(self, name: str | Path, delta: str | Path | None = None) -> None:
        self.name = name
        self.has_delta = delta is not None
        described = name if delta is None else delta  # a delta describes the sum, with its tokenizer
        self.config = parts.read_llm_config(described)
        whole = self.config.model_type == "blip-2"
        if whole and delta is not None:
            raise UserError(f"{described}: is a whole BLIP-2 or an export; give the directory of a delta alone")
        if whole:
            self.config = self.config.text_config
        self.tokenizer = parts.load_tokenizer(described)
        source = sources.resolve(described)
        self.generation_config = (
            sources.load(GenerationConfig, source)
            if not whole and sources.find_file(source, "generation_config.json")
            else GenerationConfig.from_model_config(self.config)
        )
        self._base = sources.Checkpoint(sources.resolve(name), parts.LLM_PREFIX if whole else "")
        self._delta = None if delta is None else sources.Checkpoint(source)
        self._added = str(delta)

    def fingerprint(self) -> str:
        """The fingerprint of the LLM as it lies on disk, without a delta."""
        return sources.fingerprint(self._base)

    def names(self) -> Iterator[str]:
        """The names of its tensors, file by file."""
        for shard in (self._delta or self._base).shards():
            yield from shard

    def largest_shard(self) -> int:
        """Bytes of its largest file's tensors."""
        return max(sum(self._base[name].nbytes for name in shard) for shard in self._base.shards())

    def main_dtype(self) -> torch.dtype:
        """The dtype of its first matrix."""
        return next((self.read(name).dtype for name in self.names() if len(self.shape(name)) > 1), torch.float32)

    def shape(self, name: str) -> torch.Size:
        return (self._delta or self._base)[name].shape

    def read(self, name: str, more_rows: int = 0) -> Tensor:
        """One tensor, with rows of zeros added to it; mapped, not read, if there is nothing to add."""
        tensor = self._base[name] if self._delta is None else self._sum(name, self._delta[name])
        return torch.cat([tensor, tensor.new_zeros(more_rows, *tensor.shape[1:])]) if more_rows else tensor

    def _sum(self, name: str, delta: Tensor) -> Tensor:
        if name not in self._base:
            raise UserError(
                f"{self.name}: has no tensor {name}, but the delta {self._added} has; give the delta's base"
            )
        base = self._base[name]
        if base.shape[1:] != delta.shape[1:] or base.shape[0] > delta.shape[0]:
            raise UserError(
                f"{self.name}: its tensor {name} is {tuple(base.shape)}, but that of the delta {self._added} is "
                f"{tuple(delta.shape)}; give the base that the delta was made from, of the same size"
            )
        if base.shape[0] < delta.shape[0]:
            # Vicuna v0 has one token more than its base; its delta is relative to the mean of the base's rows.
            mean = base.float().mean(0, keepdim=True).to(base.dtype)
            base = torch.cat([base, mean.expand(delta.shape[0] - base.shape[0], *base.shape[1:])])
        total = base + delta.to(base.dtype)
        self.release()  # the sum has memory of its own, so neither file needs to stay mapped
        return total

    def release(self) -> None:
        """Give back the memory of what was read."""
        self._base.release()
        if self._delta is not None:
            self._delta.release()


def write_model(
    directory: str | Path,
    vision: parts.VisionQFormer,
    vision_name: str,
    projection: Mapping[str, Tensor],
    llm: LLMFiles,
    *,
    template: Template | None,
    origin: Origin | None = None,
    stage: int | None = None,
    dtype: torch.dtype | None = None,
) -> Template:
    """Write an export of these parts to the new `directory`; returns its chat format.

    `projection` holds `weight` (d_llm, d_qformer) and `bias` (d_llm). `origin` is recorded; by default the vision side
    and, if a delta was added, the LLM come from the new directory itself. Tensors keep their dtype unless `dtype` is
    given. Raises UserError if the parts do not fit together or `directory` is in use.
    """
    chosen = choose_template(template, llm.tokenizer, str(llm.name))
    image_token_id = parts.image_token(llm.tokenizer)
    stored_rows = llm.config.vocab_size
    llm.config.vocab_size = max(stored_rows, image_token_id + 1)
    llm.config.dtype = dtype or llm.main_dtype()
    blip2 = make_graph(vision, llm.config, image_token_id)
    blip2.config.dtype = llm.config.dtype
    blip2.language_model.generation_config = llm.generation_config
    end_at_stop(blip2.language_model, llm.tokenizer, chosen)
    tensors = {key: partial(vision.tensors.__getitem__, key) for key in check_vision(blip2, vision, vision_name)}
    check_projection("the projection", blip2, projection, llm.name)
    tensors |= {f"language_projection.{key}": partial(projection.__getitem__, key) for key in projection}
    tensors |= _match_llm(llm, blip2.language_model, stored_rows)
    if origin is None:
        where, mark = (".", "") if llm.has_delta else (portable(llm.name), llm.fingerprint())
        origin = Origin(".", vision.fingerprint, where, mark)
    model = AlignedModel(blip2, llm.tokenizer, vision.image_processor, chosen, origin, stage)
    size = min(LARGEST_SHARD, max(SMALLEST_SHARD, llm.largest_shard() // 4))
    with new_directory(directory, marker=ALIGNMENT_FILE) as new:
        exporting.write_export(model, new, tensors, origin, shard_size=size, dtype=dtype, release=llm.release)
    return chosen


def _match_llm(llm: LLMFiles, model: Any, stored_rows: int) -> dict[str, partial[Tensor]]:
    """The LLM's tensors by their names in the whole model, unread; word embeddings grow to the vocabulary of `model`.

    Raises UserError if one is missing on disk or has another shape there.
    """
    state = model.state_dict()
    for tied in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(tied, None)  # written once, under its first name
    # transformers renames and joins some tensors while it reads them, as those of experts.
    expected: dict[str, Sequence[int]] = {
        key: tensor.shape for key, tensor in revert_weight_conversion(model, state).items()
    }
    added = model.config.vocab_size - stored_rows
    words = (*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters())
    of_words = {id(parameter) for parameter in words}
    words_state = {key: parameter for key, parameter in model.named_parameters() if id(parameter) in of_words}
    grown = set(revert_weight_conversion(model, words_state)) if added else set()
    expected |= {key: (expected[key][0] - added, *expected[key][1:]) for key in grown}
    prefix = f"{model.base_model_prefix}."
    names = {name if name in expected else prefix + name: name for name in llm.names()}
    names = {key: name for key, name in names.items() if key in expected}  # others: buffers, tied embeddings
    check_shapes(str(llm.name), {key: llm.shape(name) for key, name in names.items()}, expected)
    return {
        parts.LLM_PREFIX + key: partial(llm.read, name, added if key in grown else 0) for key, name in names.items()
    }
