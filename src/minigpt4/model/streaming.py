"""A model on disk made from parts on disk, a few tensors at a time: a 13B LLM passes through a laptop's memory.

Tensors are memory-mapped and written as they lie there, so memory holds what one new shard holds, and no more. Knows
nothing about the files that the parts came in: it is given tensors by their names in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from minigpt4.errors import UserError
from minigpt4.files import new_directory
from minigpt4.model import parts, sources
from minigpt4.model.alignment import MiniGPT4
from minigpt4.model.export import write_parts_settings, write_settings
from minigpt4.model.graph import check_tensors, make_graph
from minigpt4.model.record import ALIGNMENT_FILE, PROJECTION_FILE, Origin, parts_inside, portable
from minigpt4.prompts.encode import check_template
from minigpt4.prompts.own import choose_template, end_at_stop
from minigpt4.prompts.templates import Template

#: Bounds of a shard: it is a quarter of the LLM's largest, for up to three copies of it are in memory (base, delta,
#: sum), yet no smaller than the first of these, in bytes.
SMALLEST_SHARD, LARGEST_SHARD = 16 * 2**20, 2 * 10**9


class LLMFiles:
    """A decoder-only LLM that stays on disk, alone or in an export; `delta` names one that is to be added to it."""

    def __init__(self, name: str | Path, delta: str | Path | None = None) -> None:
        self.name = name
        self.has_delta = delta is not None
        described = name if delta is None else delta  # a delta says what comes out, its tokenizer included
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

    def shape(self, name: str) -> torch.Size:
        return (self._delta or self._base)[name].shape

    def read(self, name: str) -> Tensor:
        """One tensor; mapped, not read, if there is no delta to add."""
        if self._delta is None:
            return self._base[name]
        if name not in self._base:
            raise UserError(
                f"{self.name}: has no tensor {name}, but the delta {self._added} has; give the delta's base"
            )
        base, delta = self._base[name], self._delta[name]
        if base.shape[1:] != delta.shape[1:] or base.shape[0] > delta.shape[0]:
            raise UserError(
                f"{self.name}: its tensor {name} is {tuple(base.shape)}, but that of the delta {self._added} is "
                f"{tuple(delta.shape)}; give the base that the delta was made from, of the same size"
            )
        if base.shape[0] < delta.shape[0]:
            # The first Vicuna has one token more than its base; its delta is to the mean of the base's rows.
            mean = base.float().mean(0, keepdim=True).to(base.dtype)
            base = torch.cat([base, mean.expand(delta.shape[0] - base.shape[0], *base.shape[1:])])
        total = base + delta.to(base.dtype)
        self.release()  # the sum is memory of its own, so neither file need stay mapped until its shard is written
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
    template: str | Template | None,
    origin: Origin | None = None,
    stage: int | None = None,
    dtype: torch.dtype | None = None,
) -> MiniGPT4:
    """Write an export of these parts to a new `directory`, and return the model without its weights.

    Of the variant without a Q-Former it writes the form that `MiniGPT4.export` describes. `projection` holds `weight`
    (d_llm, d_qformer) and `bias` (d_llm). `origin` is recorded as where the parts came from; by default the vision side
    came from the new directory itself. Tensors keep their dtype unless one is given.

    Raises:
        UserError: parts that do not fit together, or `directory` in use.
    """
    chosen = choose_template(template, llm.tokenizer, str(llm.name))
    check_template(llm.tokenizer, chosen, str(llm.name))
    image_token_id = parts.image_token(llm.tokenizer)
    stored = llm.config.vocab_size
    llm.config.vocab_size = max(stored, image_token_id + 1)
    llm.config.dtype = dtype or _main_dtype(llm)
    blip2 = make_graph(vision, llm.config, image_token_id)
    blip2.config.dtype = llm.config.dtype
    blip2.language_model.generation_config = llm.generation_config
    end_at_stop(blip2.language_model, llm.tokenizer, chosen)
    matched = _match_llm(llm, blip2.language_model, stored)
    vision_tensors = _match_vision(blip2, vision, vision_name)
    _match_projection(blip2, projection, vision, llm)
    origin = origin or Origin(
        ".",
        vision.fingerprint,
        "." if llm.has_delta else portable(llm.name),
        "" if llm.has_delta else llm.fingerprint(),
    )
    model = MiniGPT4(blip2, llm.tokenizer, vision.image_processor, chosen, origin, stage)
    with new_directory(directory, marker=ALIGNMENT_FILE) as new:
        bytes_per_shard = min(LARGEST_SHARD, max(SMALLEST_SHARD, llm.largest_shard() // 4))
        if model.has_qformer:
            shards = _Shards(new, bytes_per_shard, dtype)
            shards.add_all(vision_tensors.items())
            shards.add_all((f"language_projection.{key}", tensor) for key, tensor in projection.items())
            _add_llm(shards, llm, matched, parts.LLM_PREFIX)
            write_settings(model, new)
            if llm.has_delta:
                written = sources.fingerprint(sources.Checkpoint(new, parts.LLM_PREFIX))
                model.origin = replace(origin, llm_fingerprint=written)
            model.write_record(new)
        else:
            (new / "vision").mkdir()
            tower = _Shards(new / "vision", bytes_per_shard, dtype)
            tower.add_all((key.removeprefix("vision_model."), tensor) for key, tensor in vision_tensors.items())
            tower.finish()
            (new / "llm").mkdir()
            _add_llm(_Shards(new / "llm", bytes_per_shard, dtype), llm, matched, "")
            save_file(dict(projection), new / PROJECTION_FILE, metadata={"format": "pt"})
            write_parts_settings(model, new)
            model.write_record(new, parts_inside(new))
    return model


def _main_dtype(llm: LLMFiles) -> torch.dtype:
    """The dtype of the LLM's first matrix."""
    return next((llm.read(name).dtype for name in llm.names() if len(llm.shape(name)) > 1), torch.float32)


def _match_llm(llm: LLMFiles, model: Any, stored_rows: int) -> dict[str, tuple[str, int]]:
    """For each tensor of the LLM on disk that the model has: its name there, and how many rows it grows by.

    Raises UserError if one that the model has is missing, or has another shape.
    """
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    for tied in getattr(model, "all_tied_weights_keys", None) or {}:
        expected.pop(tied, None)  # written once, under its first name
    added = model.config.vocab_size - stored_rows
    of_words = {
        id(parameter)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        for parameter in module.parameters()
    }
    grown = {key for key, parameter in model.named_parameters() if id(parameter) in of_words} if added else set()
    sources = {}
    for name in llm.names():
        key = name if name in expected else f"{model.base_model_prefix}.{name}"
        if key in expected:  # others are buffers that older files hold, or a second copy of the embedding
            sources[name] = (key, added if key in grown else 0)
    found = {key: name for name, (key, _) in sources.items()}
    for key, shape in expected.items():
        if key not in found:
            raise UserError(f"{llm.name}: the tensor {key} {tuple(shape)} that its config.json asks for is missing")
        rows = sources[found[key]][1]
        if llm.shape(found[key]) != (shape[0] - rows, *shape[1:]):
            raise UserError(
                f"{llm.name}: the tensor {key} has shape {tuple(llm.shape(found[key]))}, its config.json asks for "
                f"{(shape[0] - rows, *shape[1:])}"
            )
    return sources


def _match_vision(blip2: Any, vision: parts.VisionQFormer, name: str) -> dict[str, Tensor]:
    expected = {key: t.shape for key, t in blip2.state_dict().items() if key.startswith(parts.VISION_PREFIXES)}
    check_tensors(name, vision.tensors, expected, "the model")
    return {key: vision.tensors[key] for key in expected}


def _match_projection(blip2: Any, projection: Mapping[str, Tensor], vision: parts.VisionQFormer, llm: LLMFiles) -> None:
    needed = (blip2.config.text_config.hidden_size, vision.qformer_config.hidden_size)
    found = tuple(projection["weight"].shape)
    if found != needed or tuple(projection["bias"].shape) != needed[:1]:
        side = "the Q-Former's" if vision.qformer_config.num_hidden_layers else "the four patches'"
        raise UserError(
            f"the projection goes from {found[-1]} to {found[0]}, but {side} width is {needed[1]} and that of the LLM "
            f"{llm.name} is {needed[0]}; give the projection that belongs to this LLM (4096 wide: 7B, 5120 wide: 13B)"
        )


def _add_llm(shards: _Shards, llm: LLMFiles, sources: Mapping[str, tuple[str, int]], prefix: str) -> None:
    for name in llm.names():
        if name not in sources:
            continue
        key, rows = sources[name]
        tensor = llm.read(name)
        if rows:
            tensor = torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])])
        if shards.add(prefix + key, tensor):
            llm.release()
    shards.finish()
    llm.release()


class _Shards:
    """Writes tensors to the shards of a checkpoint in Hugging Face's layout; each is written when it is full."""

    def __init__(self, directory: Path, capacity: int, dtype: torch.dtype | None) -> None:
        self._directory, self._capacity, self._dtype = directory, capacity, dtype
        self._pending: dict[str, Tensor] = {}
        self._written: list[list[str]] = []
        self._total = 0

    def add(self, name: str, tensor: Tensor) -> bool:
        """Take a tensor; True if that filled a shard, and nothing that was added before is held any more."""
        if self._dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        self._pending[name] = tensor.contiguous()
        if sum(held.nbytes for held in self._pending.values()) < self._capacity:
            return False
        self._write()
        return True

    def add_all(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        for name, tensor in tensors:
            self.add(name, tensor)

    def finish(self) -> None:
        """Write what is left, and give the files their names."""
        if self._pending:
            self._write()
        count = len(self._written)
        weight_map: dict[str, str] = {}
        for i, names in enumerate(self._written):
            filename = "model.safetensors" if count == 1 else f"model-{i + 1:05d}-of-{count:05d}.safetensors"
            self._path(i).rename(self._directory / filename)
            weight_map |= dict.fromkeys(names, filename)
        if count > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            path = self._directory / "model.safetensors.index.json"
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        save_file(self._pending, self._path(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._pending))
        self._total += sum(tensor.nbytes for tensor in self._pending.values())
        self._pending = {}

    def _path(self, number: int) -> Path:
        return self._directory / f"shard-{number}.safetensors"
