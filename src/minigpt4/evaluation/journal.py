"""A journal: an append-only file of JSON lines, each under a key, that a kill at any moment leaves readable.

What is in it is never asked or judged again. Knows nothing about what the lines mean.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.errors import UserError
from minigpt4.files import full_disk_is_a_user_error


def digest(value: Any) -> str:
    """A key for `value` (plain JSON): the same for the same value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """The lines of `path` by their "key". To be used as a context manager; only one process may write (see `files`).

    Half a line at the end, which a kill left, is cut off. Raises UserError for a broken line anywhere else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self._read()

    def _read(self) -> None:
        self._file.seek(0)
        data = self._file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                self._rows[row["key"]] = row
            except (ValueError, LookupError, TypeError) as error:
                raise UserError(
                    f"{self.path}:{number}: is no line of a journal ({error}); delete the line, and what it held is "
                    "done again"
                ) from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __getitem__(self, key: str) -> dict[str, Any]:
        return self._rows[key]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows.values())

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows, each with its "key", and have them on the disk before this returns."""
        rows = [dict(row) for row in rows]
        with full_disk_is_a_user_error(self.path):
            self._file.write(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._rows.update((row["key"], row) for row in rows)
