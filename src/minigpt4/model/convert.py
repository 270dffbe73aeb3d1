"""Exports made from files, a few memory-mapped tensors at a time: a 13B LLM fits a laptop's memory.

The files are those of parts, of an alignment, or what the paper's authors released: `eva_vit_g.pth` (the vision
encoder), `blip2_pretrained_flant5xxl.pth` (query tokens, Q-Former, and the norm between encoder and Q-Former) and
`pretrained_minigpt4*.pth` (the projection). Sizes are read from the tensors; only head counts cannot be.
"""

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2QFormerConfig, Blip2VisionConfig
from transformers.core_model_loading import revert_weight_conversion

from minigpt4.documents import read_yaml
from minigpt4.errors import UserError
from minigpt4.files import expand, new_directory, write_atomically
from minigpt4.model import export as exporting
from minigpt4.model import four_bits, graph, parts, sources
from minigpt4.model.aligned import AlignedModel
from minigpt4.model.gguf import GGUFCheckpoint
from minigpt4.model.loading import ALIGNMENT_FILE, Origin, load, portable, read_projection, read_record
from minigpt4.model.lora import Trained
from minigpt4.model.precision import Placement, resolve_dtype
from minigpt4.model.quantization import is_in_files
from minigpt4.prompts.jinja import choose_template, end_at_stop
from minigpt4.prompts.templates import Template

SMALLEST_SHARD = 16 * 2**20  # bytes
_KINDS, _NAMES = read_yaml(Path(__file__).with_name("released.yaml")).values()  # tensors in the authors' files


def convert(
    vision: str | Path,
    qformer: str | Path | None,
    projection: str | Path,
    llm: str | Path,
    out: str | Path,
    *,
    template: str,
    llm_delta: str | Path | None = None,
    without_qformer: bool = False,
    vision_heads: int | None = None,
    qformer_heads: int | None = None,
    image_size: int | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    quantize: str | None = None,
) -> None:
    """Write the model in these files as an export to the new directory `out`.

    `llm` is a directory or hub id; with `llm_delta` it is the base that the delta is added to. Without a Q-Former, the
    `qformer` file, if there is one, gives only the norm after the encoder. Heads default to a size of 88 in the vision
    encoder and 64 in the Q-Former. `image_size` is in pixels; the position embedding is interpolated if it differs from
    the encoder's. `dtype` defaults to that of the files. `overwrite` replaces an earlier export. Raises UserError if a
    file is not what it should be, or the parts do not fit together.
    """
    mark = "ln_vision.weight" if without_qformer else "query_tokens"
    tower = _read(vision, "patch_embed.proj.weight")
    others = _Tensors(str(qformer), {}) if qformer is None else _read(qformer, mark)
    side = _vision_side(tower, others, not without_qformer, (vision_heads, qformer_heads), image_size)
    found = _read(projection, "llama_proj.weight")
    weight = found.take("llama_proj.weight")
    weights = {"weight": weight, "bias": found.take("llama_proj.bias", (len(weight),), "its weight")}
    write_model(
        out, side, str(vision), weights, LLMFiles(llm, llm_delta),
        template=template, dtype=dtype, stage=2, overwrite=overwrite, quantize=quantize,
    )  # fmt: skip


def assemble(
    vision_qformer: str | Path,
    llm: str | Path,
    out: str | Path,
    *,
    template: str | None = None,
    qformer: bool = True,
    group: int = parts.PATCHES_PER_TOKEN,
    seed: int = 0,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Template:
    """Write these parts with a fresh projection (see `MiniGPT4.assemble`) to the new `out`; returns the chat format."""
    vision = parts.load_vision_qformer(vision_qformer, qformer, group)
    files = LLMFiles(llm)
    projection = graph.fresh_projection(vision, files.config, seed).state_dict()
    return write_model(
        out, vision, str(vision_qformer), projection, files, template=template, dtype=dtype, overwrite=overwrite
    )


def export(
    model: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    quantize: str | None = None,
) -> None:
    """Write an alignment or export as an export to the new directory `out`; `dtype` defaults to that of the files.

    With `quantize` ("4bit") the LLM's linear layers are written so, all else in bfloat16 unless `dtype` is given.
    """
    record = read_record(model)
    dtype = _written_dtype(dtype, quantize)
    if record.trained != Trained():  # what was trained is spread over the parts, so the model is loaded
        placement = Placement.resolve(dtype or parts.read_llm_config(record.parts[1]).dtype, "cpu")
        exporting.export(load(AlignedModel, model, placement), out, overwrite, quantize)
        return
    vision = parts.load_vision_qformer(record.parts[0], record.qformer, record.group)
    llm = LLMFiles(record.parts[1])
    record.check_parts(model, vision.fingerprint, sources.fingerprint(llm.base))
    write_model(
        out, vision, str(model), read_projection(model), llm,
        template=record.template, origin=record.origin, stage=record.stage, decoding=record.decoding, dtype=dtype,
        overwrite=overwrite, quantize=quantize,
    )  # fmt: skip


def write_projection(model: str | Path, out: str | Path, overwrite: bool = False) -> Path:
    """Write the projection of an alignment or export as a `.pth` that the original code loads; returns its path."""
    out = expand(out)
    if out.exists() and not overwrite:
        raise UserError(f"{out}: exists; --overwrite (in Python overwrite=True) replaces it, or give another name")
    if read_record(model).trained != Trained():
        raise UserError(f"{model}: trains more than one linear layer, which the original's file cannot hold")
    tensors = read_projection(model)
    buffer = io.BytesIO()
    torch.save({"model": {f"llama_proj.{name}": tensor.float() for name, tensor in tensors.items()}}, buffer)
    write_atomically(out, buffer.getvalue())
    return out


def _written_dtype(dtype: str | None, quantize: str | None) -> str | None:
    if quantize not in (None, "4bit"):
        raise UserError(f"there is no format {quantize!r} to write; choose 4bit, or leave it out")
    return dtype or ("bfloat16" if quantize else None)


class LLMFiles:
    """A decoder-only LLM on disk, alone or in an export, to which the weights of `delta` are added if it is given."""

    def __init__(self, name: str | Path, delta: str | Path | None = None) -> None:
        self.name, self.delta = name, delta
        described = name if delta is None else delta  # a delta describes the sum, with its tokenizer
        self.config = parts.read_llm_config(described)
        self.tokenizer = parts.load_tokenizer(described)
        if is_in_files(described, self.config) or getattr(self.config, "quantization_config", None):
            raise UserError(f"{described}: its LLM is quantized and cannot be written again; give its original")
        self.files = parts.llm_files(described)  # with the names and shapes of its tensors
        if delta is not None and self.files.prefix:
            raise UserError(f"{delta}: is a whole BLIP-2 or an export; give the directory of a delta alone")
        self.base = self.files if delta is None else parts.llm_files(name)
        self.generation_config = parts.read_generation_config(self.files, self.config)

    def read(self, name: str, more_rows: int = 0) -> Tensor:
        """One tensor, with rows of zeros added to it; mapped, not read, if there is nothing to add."""
        tensor = self.base[name] if self.delta is None else self._sum(name, self.files[name])
        return torch.cat([tensor, tensor.new_zeros(more_rows, *tensor.shape[1:])]) if more_rows else tensor

    def packed(self, name: str) -> tuple[Tensor, Tensor]:
        """One matrix in 4 bits: see `four_bits.held`."""
        if isinstance(self.base, GGUFCheckpoint) and self.delta is None:
            return self.base.packed(name)
        return four_bits.quantize(self.read(name))

    def _sum(self, name: str, delta: Tensor) -> Tensor:
        if name not in self.base:
            raise UserError(f"{self.name}: has no tensor {name}, but the delta {self.delta} has; give the delta's base")
        base = self.base[name]
        if base.shape[1:] != delta.shape[1:] or base.shape[0] > delta.shape[0]:
            sizes = f"{tuple(base.shape)}, but that of the delta {self.delta} is {tuple(delta.shape)}"
            raise UserError(f"{self.name}: its tensor {name} is {sizes}; give the base that the delta was made from")
        if base.shape[0] < delta.shape[0]:
            # Vicuna v0 has one token more than its base; its delta is relative to the mean of the base's rows.
            mean = base.float().mean(0, keepdim=True).to(base.dtype)
            base = torch.cat([base, mean.expand(delta.shape[0] - base.shape[0], *base.shape[1:])])
        return base + delta.to(base.dtype)


def write_model(
    directory: str | Path, vision: parts.VisionQFormer, vision_name: str, projection: Mapping[str, Tensor],
    llm: LLMFiles, *, template: str | Template | None, origin: Origin | None = None, stage: int | None = None,
    decoding: Mapping[str, Any] | None = None, dtype: str | None = None, overwrite: bool = False,
    quantize: str | None = None,
) -> Template:  # fmt: skip
    """Write an export of these parts to the new `directory`; returns its chat format.

    `projection` holds `weight` (d_llm, d_qformer) and `bias` (d_llm). By default the recorded origin of the vision side
    and, if a delta was added, of the LLM is the new directory itself. `dtype` defaults to that of each tensor. Raises
    UserError if the parts do not fit together or `directory` is in use.
    """
    dtype = _written_dtype(dtype, quantize)
    kept = None if dtype is None else resolve_dtype(dtype, torch.device("cpu"))
    chosen = choose_template(template, llm.tokenizer, str(llm.name))
    image_token_id = parts.image_token(llm.tokenizer)
    stored_rows = llm.config.vocab_size
    llm.config.vocab_size = max(stored_rows, image_token_id + 1)
    matrices = (llm.read(name) for name, tensor in llm.files.items() if tensor.dim() > 1)
    llm.config.dtype = kept or next(matrices, torch.empty(0)).dtype
    blip2 = graph.make_graph(vision, llm.config, image_token_id)
    blip2.config.dtype = llm.config.dtype
    blip2.language_model.generation_config = llm.generation_config
    end_at_stop(blip2.language_model, llm.tokenizer, chosen)
    tensors: dict[str, Callable[[], Any]] = {
        key: partial(vision.tensors.__getitem__, key) for key in graph.check_vision(blip2, vision, vision_name)
    }
    graph.check_projection("the projection", blip2, projection, llm.name)
    tensors |= {f"language_projection.{key}": partial(projection.__getitem__, key) for key in projection}
    of_llm = _match_llm(llm, blip2.language_model, llm.config.vocab_size - stored_rows)
    tensors |= of_llm
    for name in exporting.four_bit_names(blip2.language_model) if quantize else ():
        if name not in of_llm:
            raise UserError(f"{llm.name}: an LLM whose files join {name} with others cannot be written in 4 bits")
        tensors[name] = partial(llm.packed, of_llm[name].args[0])
    if origin is None:
        where, mark = (".", "") if llm.delta else (portable(llm.name), sources.fingerprint(llm.base))
        origin = Origin(".", vision.fingerprint, where, mark)
    model = AlignedModel(blip2, llm.tokenizer, vision.image_processor, chosen, origin, stage)
    model.familiar, model.decoding = vision.familiar, dict(decoding or {})
    # A quarter of the LLM's largest file, since up to three copies are in memory (base, delta, sum).
    size = min(exporting.SHARD_SIZE, max(SMALLEST_SHARD, max(llm.base.file_sizes()) // 4))
    with new_directory(directory, overwrite=overwrite, marker=ALIGNMENT_FILE) as new:
        exporting.write_export(model, new, tensors, origin, shard_size=size, dtype=kept, quantize=quantize)
    return chosen


def _match_llm(llm: LLMFiles, model: Any, added: int) -> dict[str, partial[Tensor]]:
    """The LLM's tensors by their names in the whole model, unread; word embeddings get `added` rows."""
    state = model.state_dict()
    for tied in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(tied, None)  # written once, under its first name
    if not isinstance(llm.files, GGUFCheckpoint):  # whose names are those of the model
        # transformers renames and joins some tensors while it reads them, as those of experts.
        state = revert_weight_conversion(model, state)
    expected = {key: tuple(tensor.shape) for key, tensor in state.items()}
    # Only word embeddings and the head have so many rows.
    grown = [key for key, shape in expected.items() if added and shape[:1] == (model.config.vocab_size,)]
    expected |= {key: (expected[key][0] - added, *expected[key][1:]) for key in grown}
    names = {name if name in expected else f"{model.base_model_prefix}.{name}": name for name in llm.files}
    names = {key: name for key, name in names.items() if key in expected}  # others: buffers, tied embeddings
    graph.check_shapes(str(llm.name), {key: llm.files[name].shape for key, name in names.items()}, expected)
    return {parts.LLM_PREFIX + key: partial(llm.read, name, added * (key in grown)) for key, name in names.items()}


@dataclass
class _Tensors:
    """The tensors of one released file, by name."""

    path: str
    tensors: dict[str, Tensor]

    def take(self, name: str, shape: tuple[int, ...] | None = None, asks: str = "the rest of the file") -> Tensor:
        """One tensor. Raises UserError if it is missing, or has another shape than `asks` asks for."""
        if name not in self.tensors:
            raise UserError(f"{self.path}: holds no tensor {name}; copy or download the file again")
        found = tuple(self.tensors[name].shape)
        if shape is not None and found != shape:
            raise UserError(f"{self.path}: the tensor {name} has shape {found}, {asks} asks for {shape}")
        return self.tensors[name]

    def count(self, pattern: str) -> int:
        """The number of layers: one more than the highest number in names that match."""
        numbers = [int(match[1]) for name in self.tensors if (match := re.match(pattern, name))]
        return max(numbers, default=-1) + 1


def _read(path: str | Path, mark: str) -> _Tensors:
    """The tensors of a `.pth`, memory-mapped. `mark` is a tensor that the expected file holds."""
    path = expand(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {_KINDS[mark]} was expected")
    try:
        found = sources.read_pickled(path)
    except Exception as error:  # pickle, zipfile and torch have their own exceptions
        reason = f"cannot be read ({sources.first_line(error)}); it is broken or cut off, so download it again"
        if "GLOBAL" in str(error):  # a function or class, by its name in pickles
            reason = "holds more than tensors, which could run code, and is not loaded; get it from its authors again"
        raise UserError(f"{path}: {reason}") from None
    if mark not in found:
        kind = next((known for name, known in _KINDS.items() if name in found), None)
        holds = kind or (f"tensors such as {', '.join(list(found)[:2])}" if found else "no tensors by name")
        raise UserError(f"{path}: holds {holds}; {_KINDS[mark]} was expected, so check which file is given for what")
    return _Tensors(str(path), found)


def _vision_side(
    tower: _Tensors, others: _Tensors, qformer: bool, heads: tuple[int | None, int | None], image_size: int | None
) -> parts.VisionQFormer:
    """The released vision side with transformers' names and configurations, its tensors memory-mapped."""
    config = _tower(tower, heads[0], image_size)
    width = config.hidden_size
    qformer_config, queries = _qformer(others, width, heads[1]) if qformer else parts.no_qformer(config)
    if not others.tensors:  # the norm after the encoder is the original's initial one
        others.tensors |= {"ln_vision.weight": torch.ones(width), "ln_vision.bias": torch.zeros(width)}
    side = parts.VisionQFormer(config, qformer_config, queries, {}, parts.image_processor(config), "")
    network = graph.make_graph(side, graph.NO_LLM, 0).state_dict()
    shapes = {name: tuple(network[name].shape) for name in network if name.startswith(parts.VISION_PREFIXES)}
    tensors = {name: _take(tower, others, name, shape) for name, shape in shapes.items()}
    return replace(side, tensors=tensors, fingerprint=sources.fingerprint(tensors))


def _heads(width: int, heads: int | None, size: int, what: str, option: str) -> int:
    if heads is None and width % size:
        raise UserError(f"{what} is {width} wide, which is no multiple of the head size {size}; give {option}")
    if heads is not None and (heads < 1 or width % heads):
        raise UserError(f"{what} is {width} wide and cannot have {heads} heads; give another {option}")
    return heads or width // size


def _tower(file: _Tensors, heads: int | None, image_size: int | None) -> Blip2VisionConfig:
    """Configuration of the vision encoder: all blocks but the last, whose output the paper does not use."""
    width, _, side, _ = file.take("patch_embed.proj.weight").shape
    blocks = file.count(r"blocks\.(\d+)\.") - 1
    if blocks < 1:
        raise UserError(f"{file.path}: holds {blocks + 1} blocks; a tower of at least 2 was expected")
    positions = file.take("pos_embed").shape[1] - 1
    file.take("pos_embed", (1, round(positions**0.5) ** 2 + 1, width))
    size = image_size or round(positions**0.5) * side
    if size < side or size % side:
        raise UserError(f"an image size of {size} px is no multiple of the tower's patches of {side} px; give another")
    return Blip2VisionConfig(
        hidden_size=width, intermediate_size=len(file.take("blocks.0.mlp.fc1.weight")), num_hidden_layers=blocks,
        num_attention_heads=_heads(width, heads, 88, "the vision tower", "--vision-heads"),
        image_size=size, patch_size=side,
    )  # fmt: skip


def _interpolate(positions: Tensor, patches: int) -> Tensor:
    """The position embedding (1, 1 + grid², d) for `patches` patches, bicubic; the class token's stays."""
    before, after = (round(count**0.5) for count in (positions.shape[1] - 1, patches))
    if before == after:
        return positions
    grid = positions[:, 1:].float().reshape(1, before, before, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def _qformer(file: _Tensors, vision_width: int, heads: int | None) -> tuple[Blip2QFormerConfig, int]:
    """Configuration of the Q-Former, and the number of its queries."""
    layer = "Qformer.bert.encoder.layer."
    layers = file.count(layer + r"(\d+)\.")
    _, queries, width = file.take("query_tokens").shape
    crossing = [i for i in range(layers) if f"{layer}{i}.crossattention.self.query.weight" in file.tensors]
    step = crossing[1] if len(crossing) > 1 else max(layers, 1)
    if crossing != list(range(0, layers, step)) or not layers:
        told = f"layers {crossing} of its Q-Former's {layers} attend to the image"
        raise UserError(f"{file.path}: {told}; a regular choice from layer 0 on, as every second, was expected")
    config = Blip2QFormerConfig(
        hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=_heads(width, heads, 64, "the Q-Former", "--qformer-heads"),
        intermediate_size=len(file.take(f"{layer}0.intermediate_query.dense.weight")),
        cross_attention_frequency=step, encoder_hidden_size=vision_width,
    )  # fmt: skip
    return config, queries


def _take(tower: _Tensors, others: _Tensors, name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that transformers calls `name` from the file that holds it."""
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    file = tower if name.startswith(("cls_token", "pos_embed", "patch_embed", "blocks.")) else others
    if name == "pos_embed":
        return _interpolate(file.take(name), shape[1] - 1)
    if name.endswith("qkv.bias"):  # the original's keys have no bias
        query, value = (file.take(name.replace("qkv.", f"{part}_"), (shape[0] // 3,)) for part in "qv")
        return torch.cat([query, torch.zeros_like(query), value])
    return file.take(name, shape, f"the model of {tower.path}")
