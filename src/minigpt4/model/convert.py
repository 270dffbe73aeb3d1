"""The authors' released files, both ways: what was trained with one code runs in the other.

Three files hold the original's vision side and projection: `eva_vit_g.pth` (the vision encoder),
`blip2_pretrained_flant5xxl.pth` (query tokens, Q-Former, and the norm between encoder and Q-Former) and
`pretrained_minigpt4*.pth` (the projection). Sizes are read from the tensors; only head counts cannot be.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from minigpt4.errors import UserError
from minigpt4.files import expand, write_atomically
from minigpt4.model import parts, sources
from minigpt4.model.graph import NO_LLM, empty_graph
from minigpt4.model.lora import Trained
from minigpt4.model.on_disk import LLMFiles, write_model
from minigpt4.model.on_disk import assemble as assemble
from minigpt4.model.on_disk import export as export
from minigpt4.model.precision import resolve_dtype
from minigpt4.model.record import read_projection, read_record
from minigpt4.prompts.templates import get_template

VISION_HEAD_SIZE, QFORMER_HEAD_SIZE = 88, 64
#: The files by a tensor that only one of them has.
_KINDS = {
    "patch_embed.proj.weight": "a vision tower (eva_vit_g.pth)",
    "query_tokens": "a BLIP-2 with a Q-Former (blip2_pretrained_flant5xxl.pth)",
    "ln_vision.weight": "the norm after the vision encoder (blip2_pretrained_flant5xxl.pth holds it)",
    "llama_proj.weight": "a projection (pretrained_minigpt4*.pth)",
}

#: Parts of transformers' names and what the original calls them, applied in this order.
_NAMES = {
    "vision_model.embeddings.class_embedding": "cls_token", "vision_model.embeddings.position_embedding": "pos_embed",
    "vision_model.embeddings.patch_embedding": "patch_embed.proj", "vision_model.post_layernorm": "ln_vision",
    "vision_model.encoder.layers": "blocks", "layer_norm": "norm", "self_attn.qkv": "attn.qkv",
    "self_attn.projection": "attn.proj", "qformer.layernorm": "Qformer.bert.embeddings.LayerNorm",
    "qformer.encoder": "Qformer.bert.encoder", "attention.attention": "attention.self",
}  # fmt: skip


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
) -> None:
    """Write the model in these files as an export to the new directory `out`.

    `llm` is a directory or hub id; with `llm_delta` it is the base that the delta is added to. Heads default to a size
    of 88 in the vision encoder and 64 in the Q-Former. `image_size` is in pixels; the position embedding is
    interpolated if it differs from the encoder's. `dtype` defaults to that of the files. Raises UserError if a file is
    not what it should be, or the parts do not fit together.
    """
    chosen = get_template(template)
    kept = None if dtype is None else resolve_dtype(dtype, torch.device("cpu"))
    side = _vision_side(vision, qformer, without_qformer, (vision_heads, qformer_heads), image_size)
    found = _read(projection, "llama_proj.weight")
    weight = found.take("llama_proj.weight")
    weights = {"weight": weight, "bias": found.take("llama_proj.bias", (len(weight),), "its weight")}
    files = LLMFiles(llm, llm_delta)
    write_model(out, side, str(vision), weights, files, template=chosen, dtype=kept, stage=2)


def _vision_side(
    vision: str | Path,
    qformer: str | Path | None,
    without_qformer: bool,
    heads: tuple[int | None, int | None],
    image_size: int | None,
) -> parts.VisionQFormer:
    """The released vision side with transformers' names and configurations, its tensors memory-mapped.

    Without a Q-Former, the `qformer` file gives only the norm after the encoder; without that file, the norm is the
    original's initial one (weight 1, bias 0).
    """
    tower = _read(vision, "patch_embed.proj.weight")
    mark = "ln_vision.weight" if without_qformer else "query_tokens"
    others = _Tensors(str(qformer), {}) if qformer is None else _read(qformer, mark)
    config = _tower(tower, heads[0], image_size)
    if qformer is None and without_qformer:
        others.tensors["ln_vision.weight"] = torch.ones(config.hidden_size)
        others.tensors["ln_vision.bias"] = torch.zeros(config.hidden_size)
    if without_qformer:
        queries, qformer_config = parts.tokens_without_qformer(config), parts.no_qformer(config)
    else:
        qformer_config, queries = _qformer(others, config.hidden_size, heads[1])
    whole = Blip2Config(
        vision_config=config, qformer_config=qformer_config, num_query_tokens=queries, text_config=NO_LLM
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_graph(whole).state_dict().items()}
    tensors = {
        name: _take(tower, others, name, shapes[name]) for name in shapes if name.startswith(parts.VISION_PREFIXES)
    }
    processor, fingerprint = parts.image_processor(config), sources.fingerprint(tensors)
    return parts.VisionQFormer(config, qformer_config, queries, tensors, processor, fingerprint)


def write_projection(model: str | Path, out: str | Path) -> Path:
    """Write the projection of an alignment or export as a `.pth` that the original code loads; returns its path."""
    out = expand(out)
    if out.exists():
        raise UserError(f"{out}: exists; give the name of a new file")
    if read_record(sources.resolve(model)).trained != Trained():
        raise UserError(f"{model}: trains more than one linear layer, which the original's file cannot hold")
    tensors = read_projection(model)
    buffer = io.BytesIO()
    torch.save({"model": {f"llama_proj.{name}": tensor.float() for name, tensor in tensors.items()}}, buffer)
    write_atomically(out, buffer.getvalue())
    return out


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
        # Files from before torch 1.6 cannot be mapped, so they are read.
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # pickle, zipfile and torch have their own exceptions
        reason = sources.first_line(error)
        if "GLOBAL" in str(error):  # a function or class, by its name in pickles
            raise UserError(
                f"{path}: holds more than tensors, which could run code, and is not loaded; "
                "get the file from its authors again"
            ) from None
        raise UserError(f"{path}: cannot be read ({reason}); it is broken or cut off, so download it again") from None
    inner = content.get("model", content) if isinstance(content, Mapping) else {}
    found = {name: t for name, t in inner.items() if isinstance(t, Tensor)} if isinstance(inner, Mapping) else {}
    if mark not in found:
        kind = next((known for name, known in _KINDS.items() if name in found), None)
        holds = kind or (f"tensors such as {', '.join(list(found)[:2])}" if found else "no tensors by name")
        raise UserError(f"{path}: holds {holds}; {_KINDS[mark]} was expected, so check which file is given for what")
    return _Tensors(str(path), found)


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
        hidden_size=width,
        intermediate_size=len(file.take("blocks.0.mlp.fc1.weight")),
        num_hidden_layers=blocks,
        num_attention_heads=_heads(width, heads, VISION_HEAD_SIZE, "the vision tower", "--vision-heads"),
        image_size=size,
        patch_size=side,
    )


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
    layers = file.count(r"Qformer\.bert\.encoder\.layer\.(\d+)\.")
    _, queries, width = file.take("query_tokens").shape
    crossing = [i for i in range(layers) if f"{layer}{i}.crossattention.self.query.weight" in file.tensors]
    step = crossing[1] if len(crossing) > 1 else max(layers, 1)
    if crossing != list(range(0, layers, step)) or not layers:
        raise UserError(
            f"{file.path}: layers {crossing} of its Q-Former's {layers} attend to the image; every second one, or "
            "another regular choice from layer 0 on, was expected"
        )
    config = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=_heads(width, heads, QFORMER_HEAD_SIZE, "the Q-Former", "--qformer-heads"),
        intermediate_size=len(file.take(f"{layer}0.intermediate_query.dense.weight")),
        cross_attention_frequency=step,
        encoder_hidden_size=vision_width,
    )
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
