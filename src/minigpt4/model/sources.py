"""Where a model's or a part's files are (a local directory, a hub id or a GGUF file), and the tensors in them."""

import hashlib
import logging
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from minigpt4 import shipped
from minigpt4.documents import read_document, read_yaml
from minigpt4.errors import UserError
from minigpt4.extensions import extensions
from minigpt4.files import expand
from minigpt4.model.quick_gguf import quick_gguf


def shipped_models() -> dict[str, Path | shipped.Pinned]:
    """The places of models and parts that this and other installed packages ship, by name."""
    found: dict[str, Path | shipped.Pinned] = {}
    for models in (*extensions("models"), shipped.models):
        found |= models()
    return found


def resolve(name: str | Path) -> str | Path:
    """Where the part or alignment `name` lies: a shipped one, a directory, hub id or GGUF file. Raises UserError."""
    named = shipped_models()
    if place := named.get(str(name)):
        if isinstance(place, shipped.Pinned):
            return place.find(str(name))
        if place.is_dir():
            return place
        missing = f"{name!r} is not in this installation (looked in {place})"
        raise UserError(f"{missing}; reinstall the package, or run `minigpt4 pocket build`")
    path = expand(name)
    if path.is_dir():
        return _gguf_in(path) or path
    if is_gguf(path):
        return path
    if path.exists():
        raise UserError(f"{name}: is a file; give the directory of a model, or a GGUF file as the LLM")
    if isinstance(name, str) and not name.startswith((".", "/", "~")):
        if name.count("/") == 1:
            return name
        if name.count("/") == 2 and name.lower().endswith(".gguf"):
            repository, _, filename = name.rpartition("/")
            if found := find_file(repository, filename):
                return found
            raise UserError(f"{name}: {repository} has no file {filename} on the hub; give one of its GGUF files")
    raise UserError(f"{name}: no such directory; give a directory, a hub id (owner/name) or one of {', '.join(named)}")


def is_gguf(source: str | Path) -> bool:
    """True if a source is a GGUF file."""
    return isinstance(source, Path) and source.suffix.lower() == ".gguf" and source.is_file()


def _gguf_in(directory: Path) -> Path | None:
    """The GGUF file of a directory that holds one and no other model. Raises UserError if it holds several."""
    if (directory / "config.json").exists():
        return None
    found = sorted(path for path in directory.iterdir() if is_gguf(path) and not path.name.startswith("."))
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:4])
        raise UserError(f"{directory}: holds {len(found)} GGUF files ({names}); name the file instead of its directory")
    return found[0] if found else None


def find_file(source: str | Path, filename: str) -> Path | None:
    """The local path of one file of a part (downloaded first if the part is on the hub), or None if it has none."""
    if is_gguf(source):
        return None
    try:
        found = cached_file(str(source), filename, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise UserError(f"{source}: neither a directory here nor found on the hub ({first_line(error)})") from None
    return Path(found) if found else None


def read_json(source: str | Path, filename: str) -> dict[str, Any]:
    """One JSON file of a part. Raises UserError if it is missing or broken. A GGUF file has its config.json inside."""
    if is_gguf(source) and filename == "config.json":
        return _config_in_gguf(Path(source), Path(source).stat().st_mtime_ns).copy()
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


@lru_cache(maxsize=4)
def _config_in_gguf(path: Path, modified: int) -> dict[str, Any]:
    """The configuration in a GGUF file; reading it takes seconds, as the vocabulary stands before it."""
    with readable(path, BROKEN_GGUF):
        config: dict[str, Any] = load(AutoConfig, path).to_dict()
    _check_sizes(path, config)
    return config


_BROKEN = "cannot be read ({}); copy or download it again"
_TOO_LARGE = "needs more memory than there is ({}); try load_in='4bit', or another device"
#: It is cut off, or of a family or block type that is not known.
BROKEN_GGUF = "this GGUF file cannot be read ({}); download it again, or give the LLM in another form"


@contextmanager
def readable(name: str | Path, refusal: str = _BROKEN) -> Iterator[None]:
    """Turns what a library raises for a broken part (any exception) into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = _TOO_LARGE if isinstance(error, torch.OutOfMemoryError | MemoryError) else refusal
        raise UserError(f"{name}: {refusal.format(first_line(error))}") from None


def load(kind: Any, source: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained` of one of transformers' classes. Raises UserError for a source that holds code."""
    if is_gguf(source):
        place, file = Path(source).parent, Path(source).name
        with quick_gguf():
            return kind.from_pretrained(place, gguf_file=file, trust_remote_code=False, **settings)
    for filename in _MAY_NAME_CODE:
        if find_file(source, filename) and "auto_map" in read_json(source, filename):
            code = f"contains code of its own (auto_map in {filename}), which this package does not run"
            raise UserError(f"{source}: {code}; if transformers knows the model without it, delete the key in a copy")
    if find_file(source, _OWN_GENERATE):
        raise UserError(f"{source}: contains code of its own ({_OWN_GENERATE}), which this package does not run")
    return kind.from_pretrained(source, trust_remote_code=False, **settings)


def load_model(kind: Any, files: "Checkpoint", **settings: Any) -> Any:
    """`load` for weights or a `state_dict`, with a bar if that takes seconds. Raises UserError if one is missing."""
    report, had_bars = logging.getLogger("transformers.modeling_utils"), is_progress_bar_enabled()
    report.disabled = True  # it is said here, in one line
    if sum(files.file_sizes()) <= 1e9:
        disable_progress_bar()
    try:
        settings["output_loading_info"] = True
        if "state_dict" in settings:
            model, found = kind.from_pretrained(None, **settings)
        else:
            model, found = load(kind, files.source, **settings)
    finally:
        report.disabled = False
        if had_bars:
            enable_progress_bar()
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{files.source}: the weight {missing[0]} ({len(missing)} in all) is missing; copy it again")
    return model


_LARGEST, _MAY_NAME_CODE = read_yaml(Path(__file__).with_name("limits.yaml")).values()


def _check_sizes(path: Path, config: Any) -> None:
    """Raises UserError if a config.json asks for a network of a size that no model has, in whatever part of it."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        _check_sizes(path, value)
        largest, smallest = _LARGEST.get(key), 0 if key == "num_hidden_layers" else 1
        if largest and value is not None and not (type(value) is int and smallest <= value <= largest):
            raise UserError(f"{path}: {key} = {value!r:.40}: a number up to {largest} was expected")


#: Bytes of a record, configuration or index of shards; those of the largest models take a few MB.
LARGEST_RECORD = 64_000_000
_OWN_GENERATE = "custom_generate/generate.py"
_EXPECTED = {
    "config.json": "give the directory of a model",
    "alignment.json": "give an alignment (what `minigpt4 train` writes) or an export",
}


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` or `.pth`, or in its "model"; mapped unless the file is older than torch 1.6."""
    loaded = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    inner = loaded.get("model", loaded) if isinstance(loaded, Mapping) else None
    tensors = inner.items() if isinstance(inner, Mapping) else ()
    return {name: tensor for name, tensor in tensors if isinstance(tensor, Tensor)}


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a part by name, read lazily from safetensors or `.bin` files; those of a `prefix`, without it."""

    def __init__(self, source: str | Path, prefix: str = "") -> None:
        self.source, self.prefix = source, prefix
        self._loaded: dict[Path, dict[str, Tensor]] = {}
        stored = self._find()
        self._files = {name.removeprefix(prefix): stored[name] for name in stored if name.startswith(prefix)}

    def _find(self) -> dict[str, Path]:
        source = self.source
        for filename in ("model.safetensors", "pytorch_model.bin"):
            if path := find_file(source, filename):
                return dict.fromkeys(self._open(path).keys(), path)
            if find_file(source, f"{filename}.index.json"):
                shards = read_json(source, f"{filename}.index.json").get("weight_map")
                if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                    raise UserError(f"{source}: {filename}.index.json has no weight_map of names; copy it again")
                files: dict[str, Path] = {}
                for shard in dict.fromkeys(shards.values()):
                    path = find_file(source, shard) if shard == Path(shard).name else None
                    if path is None:
                        raise UserError(f"{source}: the shard {shard} that its index names is missing; copy it again")
                    files |= {name: path for name in shards if shards[name] == shard}
                return files
        raise UserError(f"{source}: holds no weights (model.safetensors or pytorch_model.bin, whole or in shards)")

    def _open(self, path: Path) -> Any:
        with readable(path):
            if path.suffix == ".safetensors":  # cheap, and the pages of a file that stays open count as our memory
                return safe_open(path, framework="pt")
            if path not in self._loaded:
                self._loaded[path] = read_pickled(path)
            return self._loaded[path]

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._open(self._files[name]), self.prefix + name
        try:
            return file[stored] if isinstance(file, dict) else file.get_tensor(stored)
        except (KeyError, SafetensorError):
            raise UserError(f"{self._files[name]}: the tensor {stored} is missing or broken; copy it again") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def file_sizes(self) -> list[int]:
        """Bytes on disk of each file that holds one of its tensors."""
        return [path.stat().st_size for path in set(self._files.values())]


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A sha256 of every tensor's name, shape and values; of a matrix, for speed, the first, middle and last row."""
    digest = hashlib.sha256()
    tensors = getattr(tensors, "stored", tensors)  # those of a GGUF file as they lie there
    for name in sorted(tensors):
        tensor = tensors[name]
        rows = tensor[[0, len(tensor) // 2, len(tensor) - 1]] if tensor.dim() > 1 else tensor
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(rows.float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """What an exception says, short enough for a message of one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
