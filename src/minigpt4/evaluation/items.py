"""Items, responses to them, and verdicts on these. A wrong record of a file is left out and named (`Fault`)."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from minigpt4.errors import UserError

T = TypeVar("T")

#: Why an item is not measured, as results.json names it.
MALFORMED, DUPLICATE, MISSING = "malformed record", "duplicate id", "missing image"
UNREADABLE, UNANSWERED = "unreadable image", "no answer"


@dataclass(frozen=True)
class Item:
    """One question about one image."""

    id: str  # unique in its suite
    image: Path
    prompt: str
    task: str = ""  # the row that it counts under
    truth: Mapping[str, Any] = field(default_factory=dict)  # plain JSON for scoring
    options: tuple[str, ...] = ()  # if there are any, the likeliest is the answer
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
            reason = f"its id {item.id!r} is that of {self._places[item.id]}, which is kept"
            self.faults.append(Fault(DUPLICATE, where, reason))
            return
        self._places[item.id] = where
        if item.image.is_file():
            self.items.append(item)
        else:
            self.faults.append(Fault(MISSING, where, f"there is no image {item.image}"))

    def require(self, data: str | Path) -> "Items":
        """Itself. Raises UserError if no item is left."""
        if not self.items:
            first = f"; the first fault: {self.faults[0]}" if self.faults else ""
            raise UserError(f"{data}: holds nothing to ask about{first}")
        return self


def well_formed(rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], T], faults: list[Fault]) -> Iterator[T]:
    """`make(where, record)` of each record; if it raises ValueError, the record goes to `faults`."""
    for where, row in rows:
        try:
            yield make(where, row)
        except ValueError as error:
            faults.append(Fault(MALFORMED, where, str(error)))


def field_of(record: Any, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
    """`record[name]`, which must be of `kind`, and be there if there is no `default`. Raises ValueError otherwise."""
    if not isinstance(record, Mapping):
        raise ValueError(f"is a {type(record).__name__}, a mapping was expected")
    value = record.get(name, default)
    if value is ...:
        raise ValueError(f"has no {name!r}")
    if value is not default and (not isinstance(value, kind) or (isinstance(value, bool) and kind is int)):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name!r} is {value!r}, a {names} was expected")
    return value


def text_of(record: Any, name: str) -> str:
    """The text `record[name]`, stripped. Raises ValueError as `field_of`, and if it is empty."""
    text: str = field_of(record, name, str).strip()
    if not text:
        raise ValueError(f"{name!r} is empty")
    return text


@dataclass
class Response:
    """What one model said to one item, a line of the journal of answers; later its cases, and the verdicts on them."""

    item: Item
    model: str
    sample: int
    text: str
    ended: bool
    scores: Sequence[float] = ()
    lengths: Sequence[int] = ()
    cases: "Sequence[Case]" = ()
    verdicts: "Sequence[Verdict]" = ()


@dataclass(frozen=True)
class Case:
    """One thing to decide about an answer. `fields` fill the judge's prompt; `part` tells several cases apart."""

    answer: Response
    fields: Mapping[str, str]
    part: str = ""

    @property
    def item(self) -> Item:
        return self.answer.item


@dataclass(frozen=True)
class Verdict:
    """`success` is None if it could not be decided. `detail` is plain JSON: numbers that a suite sums up."""

    success: bool | None
    reason: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def unless(cls, wrong: str | None) -> "Verdict":
        """Success, unless something is `wrong`, which is then the reason."""
        return cls(wrong is None, wrong or "")
