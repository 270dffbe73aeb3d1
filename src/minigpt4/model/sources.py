"""Where a model's or a part's files are, and the tensors in them: find, read, tell apart.

A source is a local directory or a hub id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import cached_file
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from minigpt4.errors import UserError
from minigpt4.extensions import extensions


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
    path = Path(name).expanduser()
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
                shards = read_json(source, f"{filename}.index.json")["weight_map"]
                return {name: self._shard(shard) for name, shard in shards.items()}
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
        stored = self._prefix + name
        return handle[stored] if isinstance(handle, dict) else handle.get_tensor(stored)

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
