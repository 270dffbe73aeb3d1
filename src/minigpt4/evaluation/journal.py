"""A journal: an append-only file of JSON lines, each under a key, that a kill at any moment leaves readable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from minigpt4.documents import LARGEST_JSON
from minigpt4.errors import UserError
from minigpt4.files import failed_write_is_a_user_error, read_file


def digest(value: Any) -> str:
    """A key for `value` (plain JSON): the same for the same value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal, oldest first, without half a line at its end. Raises UserError if another is broken."""
    data = read_file(path, LARGEST_JSON, "a journal")
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            row["key"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}:{number}: is no line of a journal ({error}); delete the line, and what it held is done again"
            ) from None
        yield row


class Journal:
    """The `rows` of a journal by "key"; only one process may write. Half a line at the end is cut off."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: BinaryIO = path.open("a+b")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        self.rows = {row["key"]: row for row in read_rows(path)}
        self._file.seek(0)
        self._file.truncate(self._file.read().rfind(b"\n") + 1)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row with its "key", and have it on the disk before this returns."""
        with failed_write_is_a_user_error(self.path):
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self.rows[row["key"]] = dict(row)
