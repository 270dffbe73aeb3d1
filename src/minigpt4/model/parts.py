"""The frozen parts on disk: find them, read them, tell them apart.

A part is a directory or a hub id: for the vision side anything that holds a BLIP-2's `vision_model.*`, `query_tokens`
and `qformer.*` (alone, or inside a whole BLIP-2 checkpoint), for the LLM any decoder-only causal LM of transformers.
Knows nothing about the projection, or about how the parts work together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Blip2QFormerConfig, Blip2VisionConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from minigpt4.errors import UserError
from minigpt4.model.precision import Placement

IMAGE_TOKEN = "<image>"
VISION_PREFIXES = ("vision_model.", "query_tokens", "qformer.")

POCKET_PARTS = {"pocket/vision": "vision", "pocket/language": "language", "pocket/captioner": "captioner"}
POCKET_ALIGNMENTS = ("pocket", "pocket-stage1", "pocket-blip2")


def pocket_weights() -> Path:
    """The folder of the weights that ship with the package, or the one that MINIGPT4_POCKET_WEIGHTS names."""
    override = os.environ.get("MINIGPT4_POCKET_WEIGHTS")
    return Path(override) if override else Path(__file__).parent.parent / "pocket" / "weights"


def resolve(name: str | Path) -> str | Path:
    """Where the part or alignment called `name` lies: a pocket name gives its folder, a local directory its path.

    What is neither is taken as a hub id if it looks like one (`owner/name`), else it raises UserError.
    """
    if str(name) in POCKET_PARTS or str(name) in POCKET_ALIGNMENTS:
        relative = POCKET_PARTS.get(str(name)) or Path("alignments", str(name))
        path = pocket_weights() / relative
        if not path.is_dir():
            raise UserError(
                f"{name!r} is not in this installation (looked in {path}); reinstall the package, or build it with "
                "`minigpt4 pocket build`"
            )
        return path
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}: is a file; give the directory of a model")
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    names = ", ".join([*POCKET_ALIGNMENTS, *POCKET_PARTS])
    raise UserError(f"{name}: no such directory; give a directory, a hub id (owner/name) or one of {names}")


def find_file(source: str | Path, filename: str) -> Path | None:
    """The local path of one file of a part (downloaded first if the part is on the hub), or None if it has none."""
    try:
        found = cached_file(str(source), filename, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"{source}: neither a directory here nor found on the hub ({first_line(error)})") from None
    return Path(found) if found else None


def read_json(source: str | Path, filename: str) -> dict[str, Any]:
    """One JSON file of a part. Raises UserError if it is missing or broken."""
    path = find_file(source, filename)
    if path is None and isinstance(source, str):
        raise UserError(f"{source}: no such directory, and no model with a {filename} that could be had from the hub")
    if path is None:
        raise UserError(f"{source}: holds no {filename}; {_EXPECTED.get(filename, 'copy or download it again')}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: broken JSON ({error}); copy or download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, an object was expected")
    return content


_EXPECTED = {
    "config.json": "give the directory of a model",
    "alignment.json": "give an alignment (what `minigpt4 train` writes) or an export",
}


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a part by name, read lazily from its safetensors or `.bin` files, sharded or not."""

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        for filename in ("model.safetensors", "pytorch_model.bin"):
            if path := find_file(source, filename):
                self._files = dict.fromkeys(self._handle(path).keys(), path)
                return
            if find_file(source, f"{filename}.index.json"):
                shards = read_json(source, f"{filename}.index.json")["weight_map"]
                self._files = {name: self._shard(shard) for name, shard in shards.items()}
                return
        raise UserError(f"{source}: holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")

    def _shard(self, filename: str) -> Path:
        path = find_file(self.source, filename)
        if path is None:
            raise UserError(f"{self.source}: the shard {filename} that its index names is missing; copy it again")
        return path

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                if path.suffix == ".safetensors":
                    self._open[path] = safe_open(path, framework="pt")
                else:
                    self._open[path] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            except Exception as error:  # each format has its own exceptions for a broken file
                raise UserError(f"{path}: cannot be read ({first_line(error)}); copy or download it again") from None
        return self._open[path]

    def __getitem__(self, name: str) -> Tensor:
        handle = self._handle(self._files[name])
        return handle[name] if isinstance(handle, dict) else handle.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in set(self._files.values()))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 that tells weights apart whatever files they are in: names, shapes, and values of every tensor.

    Of each matrix only the first, middle and last row are read (in float32), so that a 13B LLM takes seconds, not
    minutes; training that changed a matrix changed those too.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        rows = tensor[[0, len(tensor) // 2, len(tensor) - 1]] if tensor.dim() > 1 else tensor
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(rows.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class VisionQFormer:
    """The vision side as it was read: configurations, tensors by their names in transformers, image processor."""

    vision_config: Blip2VisionConfig
    qformer_config: Blip2QFormerConfig
    num_query_tokens: int
    tensors: dict[str, Tensor]
    image_processor: BlipImageProcessorPil
    fingerprint: str


def load_vision_qformer(name: str | Path) -> VisionQFormer:
    """Vision tower, query tokens and Q-Former of a BLIP-2 checkpoint, or of a directory that holds only those.

    Reads none of the LLM's tensors. Tensors keep the dtype they have on disk.
    """
    source = resolve(name)
    config = read_json(source, "config.json")
    if config.get("model_type") != "blip-2" or "vision_config" not in config or "qformer_config" not in config:
        raise UserError(
            f"{name}: is no vision side (model_type {config.get('model_type')!r}); expected a BLIP-2 config.json with "
            "vision_config and qformer_config"
        )
    checkpoint = Checkpoint(source)
    names = {key: key.removeprefix("model.") for key in checkpoint}
    tensors = {short: checkpoint[key] for key, short in names.items() if short.startswith(VISION_PREFIXES)}
    vision_config = Blip2VisionConfig(**config["vision_config"])
    processor_config = read_json(source, "preprocessor_config.json")
    processor_config["size"] = {"height": vision_config.image_size, "width": vision_config.image_size}
    return VisionQFormer(
        vision_config=vision_config,
        qformer_config=Blip2QFormerConfig(**config["qformer_config"]),
        num_query_tokens=config.get("num_query_tokens", 32),
        tensors=tensors,
        image_processor=BlipImageProcessorPil.from_dict(processor_config),
        fingerprint=fingerprint(tensors),
    )


@dataclass(frozen=True)
class LLM:
    """A causal LM with its tokenizer, in which `<image>` is one token."""

    model: Any
    tokenizer: Any
    image_token_id: int
    fingerprint: str


def load_llm(name: str | Path, dtype: torch.dtype, placement: Placement | None = None) -> LLM:
    """A decoder-only LLM in `dtype`, on the CPU or where `placement` says.

    If its tokenizer lacks `<image>`, the token is added, its embedding row zero.
    """
    source = resolve(name)
    placement = placement or Placement(torch.device("cpu"), dtype)
    read_json(source, "config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        checkpoint = Checkpoint(source)
        with bars_if_long(checkpoint.size()):
            model = AutoModelForCausalLM.from_pretrained(source, **placement.loading(lambda: llm_skeleton(source)))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise UserError(f"{name}: is no decoder-only LLM with a tokenizer ({first_line(error)})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LLM(model, tokenizer, add_image_token(model, tokenizer), fingerprint(checkpoint))


def llm_skeleton(source: str | Path) -> Any:
    """The LLM that a part's config.json describes, without weights: on the meta device."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(source))


def add_image_token(model: Any, tokenizer: Any) -> int:
    """The id of `<image>`, added to tokenizer and embeddings if they lack it; the LLM's other rows stay as they are."""
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    rows = model.get_input_embeddings().num_embeddings
    if image_token_id >= rows:
        model.resize_token_embeddings(image_token_id + 1, mean_resizing=False)
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.weight.data[rows:] = 0
    return image_token_id


@contextmanager
def bars_if_long(size: int) -> Iterator[None]:
    """transformers' progress bars for reading or writing `size` bytes, if that takes seconds; else none."""
    if size > 1e9 or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bar()
    try:
        yield
    finally:
        enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
