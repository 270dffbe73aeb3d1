"""Where a model's or a part's files are, and the tensors in them: find, read, tell apart.

A source is a local directory or a hub id.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from minigpt4.documents import read_document
from minigpt4.errors import UserError
from minigpt4.extensions import extensions
from minigpt4.files import expand


def shipped_models() -> dict[str, Path]:
    """The directories of models and parts that installed packages ship, by name."""
    return {name: path for models in extensions("models") for name, path in models().items()}


def resolve(name: str | Path) -> str | Path:
    """Where the part or alignment called `name` lies: a shipped name gives its folder, a local directory its path.

    What is neither is taken as a hub id if it looks like one (`owner/name`), else it raises UserError.
    """
    shipped = shipped_models()
    if str(name) in shipped:
        path = shipped[str(name)]
        if not path.is_dir():
            raise UserError(
                f"{name!r} is not in this installation (looked in {path}); reinstall the package, or build it with "
                "`minigpt4 pocket build`"
            )
        return path
    path = expand(name)
    gguf = path if path.suffix == ".gguf" else next(path.glob("*.gguf"), None)
    if gguf and gguf.is_file() and not (path / "config.json").exists():
        raise UserError(
            f"{gguf}: GGUF files are not read as they are; write one in transformers' form first: "
            f'AutoModelForCausalLM.from_pretrained("{gguf.parent}", gguf_file="{gguf.name}").save_pretrained(DIR), '
            "and AutoTokenizer likewise"
        )
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name}: is a file; give the directory of a model")
    if isinstance(name, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UserError(
        f"{name}: no such directory; give a directory, a hub id (owner/name) or one of {', '.join(shipped)}"
    )


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
    content = read_document(path, LARGEST_RECORD)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}, an object was expected")
    if filename == "config.json":
        _check_sizes(path, content)
    return content


def load(kind: Any, source: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained` of one of transformers' classes, which runs no code that lies in the source.

    Raises UserError for a source that holds such code; else what transformers raises for broken files.
    """
    for filename in _MAY_NAME_CODE:
        if find_file(source, filename) and "auto_map" in read_json(source, filename):
            raise UserError(
                f"{source}: contains code of its own (auto_map in {filename}), which this package does not run; if "
                "transformers knows this kind of model without that code, delete the key in a local copy"
            )
    if find_file(source, _OWN_GENERATE):
        raise UserError(f"{source}: contains code of its own ({_OWN_GENERATE}), which this package does not run")
    return kind.from_pretrained(source, trust_remote_code=False, **settings)


def load_model(kind: Any, source: str | Path, **settings: Any) -> Any:
    """`load` for weights. Raises UserError if one is missing: transformers would draw it at random, and log that."""
    report = logging.getLogger("transformers.modeling_utils")
    report.disabled = True  # it is said here, in one line
    try:
        model, found = load(kind, source, output_loading_info=True, **settings)
    finally:
        report.disabled = False
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{source}: the weight {missing[0]} ({len(missing)} in all) is missing; copy it again")
    return model


#: The largest sizes that a config.json may ask for: many times those of the largest models. The network is built
#: before its weights are read, so what it says must not fill the memory.
_LARGEST = {
    "num_hidden_layers": 1024, "hidden_size": 2**17, "intermediate_size": 2**20, "encoder_hidden_size": 2**17,
    "num_attention_heads": 2**12, "num_key_value_heads": 2**12, "head_dim": 2**14, "vocab_size": 2**23,
    "num_query_tokens": 2**14, "image_size": 2**14, "patch_size": 2**14, "n_layer": 1024, "n_embd": 2**17,
}  # fmt: skip


def _check_sizes(path: Path, config: Any) -> None:
    """Raises UserError if a config.json asks for a network of a size that no model has, in whatever part of it."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        _check_sizes(path, value)
        largest = _LARGEST.get(key)
        if (
            largest
            and value is not None
            and not (type(value) is int and (key == "num_hidden_layers" or value > 0) and 0 <= value <= largest)
        ):
            raise UserError(f"{path}: {key} = {value!r:.40}: a number up to {largest} was expected")


#: Bytes of a record, configuration or index of shards; those of the largest models take a few MB.
LARGEST_RECORD = 64_000_000

_MAY_NAME_CODE = (
    "config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
_OWN_GENERATE = "custom_generate/generate.py"

_EXPECTED = {
    "config.json": "give the directory of a model",
    "alignment.json": "give an alignment (what `minigpt4 train` writes) or an export",
}


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a part by name, read lazily from its safetensors or `.bin` files, sharded or not.

    With a `prefix` only those are there whose names start with it, under the rest of their names.
    """

    def __init__(self, source: str | Path, prefix: str = "") -> None:
        self.source = source
        self._prefix = prefix
        self._files = self._find()
        if prefix:
            self._files = {
                name.removeprefix(prefix): path for name, path in self._files.items() if name.startswith(prefix)
            }

    def _find(self) -> dict[str, Path]:
        source = self.source
        self._open: dict[Path, Any] = {}
        for filename in ("model.safetensors", "pytorch_model.bin"):
            if path := find_file(source, filename):
                return dict.fromkeys(self._handle(path).keys(), path)
            if find_file(source, f"{filename}.index.json"):
                shards = read_json(source, f"{filename}.index.json").get("weight_map")
                if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                    raise UserError(f"{source}: {filename}.index.json has no weight_map of names; copy it again")
                return {name: self._shard(shard) for name, shard in shards.items()}
        raise UserError(f"{source}: holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")

    def _shard(self, filename: str) -> Path:
        path = find_file(self.source, filename) if filename == Path(filename).name else None
        if path is None:
            raise UserError(f"{self.source}: the shard {filename} that its index names is missing; copy it again")
        return path

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                if path.suffix == ".safetensors":
                    self._open[path] = safe_open(path, framework="pt")
                else:
                    loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
                    self._open[path] = {name: t for name, t in loaded.items() if isinstance(t, Tensor)}
            except Exception as error:  # each format has its own exceptions for a broken file
                raise UserError(f"{path}: cannot be read ({first_line(error)}); copy or download it again") from None
        return self._open[path]

    def __getitem__(self, name: str) -> Tensor:
        handle = self._handle(self._files[name])
        stored = self._prefix + name
        try:
            return handle[stored] if isinstance(handle, dict) else handle.get_tensor(stored)
        except (KeyError, SafetensorError):
            raise UserError(f"{self._files[name]}: the tensor {stored} is missing or broken; copy it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in set(self._files.values()))

    def shards(self) -> list[list[str]]:
        """The names of the tensors, file by file."""
        files: dict[Path, list[str]] = {}
        for name, path in self._files.items():
            files.setdefault(path, []).append(name)
        return list(files.values())

    def release(self) -> None:
        """Give back the memory of what was read: pages of a mapped file count as ours for as long as it is open."""
        self._open.clear()


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
        if isinstance(tensors, Checkpoint):
            tensors.release()  # the system maps whole files into memory for the sake of a row
    return digest.hexdigest()


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
