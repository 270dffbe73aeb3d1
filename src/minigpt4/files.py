"""Directories that appear whole or not at all.

Knows nothing about what is in them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt4.errors import UserError


@contextmanager
def new_directory(path: str | Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """A temporary directory to write in, which becomes `path` when the block ends well and vanishes when it does not.

    Raises UserError if `path` exists and is not empty, unless `overwrite` is set and it holds the file `marker`, that
    is, unless it is an earlier one of the same sort: nothing else is ever deleted.
    """
    path = Path(path).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a directory to write to")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise UserError(f"{path}: exists and is not empty; give another directory, or overwrite=True")
        if not (path / marker).is_file():
            raise UserError(f"{path}: holds no {marker}, so it is not overwritten; give another directory")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    try:
        inside = temporary / "new"
        inside.mkdir()
        yield inside
        if path.exists():
            path.rename(temporary / "old")
        inside.rename(path)
    except Exception as error:
        # safetensors wraps the operating system's error in its own exception
        if isinstance(error, OSError) or "os error" in str(error):
            raise UserError(f"{path}: cannot be written ({error}); nothing was changed") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
