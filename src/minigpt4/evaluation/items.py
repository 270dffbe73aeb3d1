"""What a suite asks: questions about images, read from files in which single records may be wrong.

A wrong record is left out and named (`Fault`); the others are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt4.errors import UserError

#: Why an item is not measured, as results.json names it.
MALFORMED, DUPLICATE, MISSING, UNREADABLE, UNANSWERED = (
    "malformed record", "duplicate id", "missing picture", "unreadable picture", "no answer",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One question about one image.

    `id` is unique in its suite; `task` is the row it counts under; `truth` is plain JSON for scoring. With `options`
    the model does not write: its likeliest option is the answer.
    """

    id: str
    image: Path
    prompt: str
    task: str = ""
    truth: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    max_new_tokens: int = 300


@dataclass(frozen=True)
class Fault:
    """Why a record or item was not measured: the kind of fault, its place, and what is wrong."""

    kind: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass
class Items:
    """The items of a suite, and the faults of records that were left out."""

    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _places: dict[str, str] = field(default_factory=dict)

    def add(self, item: Item, where: str) -> None:
        """Take an item from the record `where`; a second one of the same id, or one without its image, is a fault."""
        if item.id in self._places:
            self.reject(where, f"its id {item.id!r} is that of {self._places[item.id]}, which is kept", DUPLICATE)
            return
        self._places[item.id] = where
        if not item.image.is_file():
            self.reject(where, f"there is no picture {item.image}", MISSING)
            return
        self.items.append(item)

    def reject(self, where: str, reason: str, kind: str = MALFORMED) -> None:
        """Leave the record `where` out."""
        self.faults.append(Fault(kind, where, reason))

    def require(self, data: str | Path) -> Items:
        """Itself. Raises UserError if no item is left."""
        if not self.items:
            first = f"; the first fault: {self.faults[0]}" if self.faults else ""
            raise UserError(f"{data}: holds nothing to ask about{first}")
        return self


def field_of(record: Any, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """`record[name]`, which must be of `kind`. Raises ValueError that says what was expected, for `Items.reject`.

    Without a `default` the field must be there.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"is a {type(record).__name__}, a mapping was expected")
    value = record.get(name, default)
    if value is ...:
        raise ValueError(f"has no {name!r}")
    if value is not default and (not isinstance(value, kind) or (isinstance(value, bool) and kind is int)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name!r} is {value!r}, a {names} was expected")
    return value
