"""The ledger of a curation project: every image, and everything that ever happened to its texts.

One SQLite file of images and append-only events: a new text, verdict or decision names the event and the settings
that it was made from. So a step knows what is left to do, and doing it again changes nothing.
"""

import contextlib
import hashlib
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from minigpt4.errors import UserError
from minigpt4.files import only_process
from minigpt4.images import open_image, read_image
from minigpt4.statistics import now

logger = logging.getLogger(__name__)

LEDGER_FILE = "ledger.sqlite"
VERSION = 1
_APPLICATION = 0x4D474334  # "MGC4" in the file's header tells a ledger from other SQLite files


@dataclass(frozen=True)
class LedgerImage:
    """An image of the project: its name there, its file, and the SHA-256 that the file had when it was added."""

    name: str
    path: Path
    sha256: str

    def read(self) -> bytes:
        """The file's bytes. Raises UserError if it vanished or is another one than the image that was added."""
        try:
            data = read_image(self.path)
        except UserError as error:
            raise UserError(f"{error}; the image that was added is gone") from None
        if hashlib.sha256(data).hexdigest() != self.sha256:
            raise UserError(f"{self.path}: the image was changed since it was added")
        return data

    def read_if_there(self) -> bytes | None:
        """As `read`, but None, with a warning, where that raises UserError."""
        try:
            return self.read()
        except UserError as error:
            logger.warning("left out: %s", error)
            return None


@dataclass(frozen=True)
class Event:
    """One row of the history. `source` is the `seq` of the event that it was made from, 0 for none."""

    seq: int
    image: str
    sample: int
    step: str
    source: int
    settings: str
    at: str
    data: dict[str, Any]


@dataclass
class Description:
    """Where one text of one image stands: the newest event of each step that belongs to the present text."""

    image: LedgerImage
    sample: int
    raw: Event
    refined: Event | None = None
    grounding: dict[str, Any] | None = None  # as `measure_grounding` returns it
    verdict: Event | None = None
    selection: Event | None = None
    reviews: dict[str, Event] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.image.name, self.sample

    @property
    def source(self) -> Event:
        """The event whose text is the present one: the refined text if it was accepted, else the raw one."""
        return self.refined if self.refined is not None and self.refined.data["accepted"] else self.raw

    @property
    def text(self) -> str:
        """The present text, before any person edited it."""
        return str(self.source.data["text"])

    @property
    def ended(self) -> bool:
        """Whether the present text came to its own end rather than to a limit of tokens."""
        return bool(self.source.data.get("ended", True))

    @property
    def kept(self) -> bool:
        """Whether neither the rules nor the selection leave it out (steps that were not taken leave nothing out)."""
        caught = self.verdict is not None and self.verdict.data["caught"]
        return not caught and (self.selection is None or self.selection.data["selected"])

    @property
    def final(self) -> str | None:
        """The text after review, or None if it was rejected: most of the reviewers decide, and a tie rejects."""
        if not self.reviews:
            return self.text
        decisions = sorted(self.reviews.values(), key=lambda event: event.seq)
        keeping = [event for event in decisions if event.data["verdict"] != "reject"]
        if 2 * len(keeping) <= len(decisions):
            return None
        edits = [event.data["text"] for event in keeping if event.data["verdict"] == "edit"]
        return str(edits[-1]) if edits else self.text

    def apply(self, event: Event) -> None:
        """Bring it to where it stands after `event`. What was said of an earlier text does not hold for a new one."""
        if event.step == "refine" and event.source == self.raw.seq:
            before = self.source.seq
            self.refined = event
            if self.source.seq != before:
                self.grounding = self.verdict = self.selection = None
                self.reviews = {}
        elif event.source != self.source.seq:
            return
        elif event.step == "ground":
            self.grounding = event.data
        elif event.step == "filter":
            self.verdict = event
        elif event.step == "select":
            self.selection = None if event.data["selected"] is None else event
        elif event.step == "review":
            self.reviews.pop(event.data["reviewer"], None)
            if event.data["verdict"] != "undo":
                self.reviews[event.data["reviewer"]] = event


class Ledger(contextlib.AbstractContextManager["Ledger"]):
    """An open ledger, as a context manager, one for each thread. Raises UserError for a file that is no such ledger."""

    def __init__(self, project: str | Path, *, create: bool = False) -> None:
        self.project = Path(project)
        self.path = self.project / LEDGER_FILE
        if not create and not self.path.is_file():
            raise UserError(f"{project}: holds no {LEDGER_FILE}; start one with minigpt4 curate describe or import")
        try:
            self.project.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{project}: cannot be made ({error.strerror}); give another directory") from None
        with self._told():
            self._db = sqlite3.connect(self.path, timeout=30, isolation_level="IMMEDIATE", check_same_thread=False)
            with self.lock("open", wait=True):
                if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    schema = files("minigpt4.curation").joinpath("ledger.sql").read_text(encoding="utf-8")
                    self._db.executescript(schema)
            found = [self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if found[0] != _APPLICATION:
                raise UserError(f"{self.path}: is not a ledger of minigpt4; give another project directory")
            if found[1] != VERSION:
                told = f"was written by another version of minigpt4 (ledger version {found[1]}, this reads {VERSION})"
                raise UserError(f"{self.path}: {told}; use that version, or import its export into a new project")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # what was paid for survives a power cut

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says is wrong with the file, in one line; what was committed before is intact."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            intact = "what was recorded before is intact: mend the cause (a full disk, a damaged file, missing rights)"
            raise UserError(f"{self.path}: {error}; {intact} and run the same command again") from error

    def lock(self, step: str, *, wait: bool = False) -> contextlib.AbstractContextManager[None]:
        """Keeps a second process out of `step`, as `only_process`."""
        return only_process(self.project, step, wait=wait)

    def add_images(self, files: Iterable[tuple[str, Path]], refused: Mapping[str, str] | None = None) -> set[str]:
        """Add (name, file); returns names of the `refused` and unreadable. Raises UserError if a name is taken."""
        causes = {**(refused or {})}
        known = {image.name: image.sha256 for image in self.images()}
        rows = []
        for name, path in files:
            if name in causes:
                continue
            try:
                open_image(data := read_image(path))
                str(path.resolve()).encode()  # the database takes no name that is not UTF-8
            except ValueError as error:
                causes[name] = str(error)
                continue
            digest = hashlib.sha256(data).hexdigest()
            if known.setdefault(name, digest) != digest:
                raise UserError(f"{path}: the project holds another image named {name!r}; give another project")
            rows.append((name, str(path.resolve()), digest, now()))
        with self._told(), self._db:
            # The same image may have moved since; where it lies is no part of the history.
            self._db.executemany(
                "INSERT INTO pictures VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET path = excluded.path", rows
            )
        for name, cause in list(causes.items())[:5]:
            logger.warning("left out: %s (%s)", name, cause)
        if len(causes) > 5:
            logger.warning("left out: %d more", len(causes) - 5)
        return set(causes)

    def settings(self, step: str, value: Mapping[str, Any]) -> str:
        """The id under which these settings of `step` are recorded."""
        text = json.dumps(value, sort_keys=True, default=str)
        key = hashlib.sha256(f"{step} {text}".encode()).hexdigest()[:16]
        with self._told(), self._db:
            self._db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?, ?)", (key, step, text))
        return key

    def add(
        self, step: str, settings: str, rows: Iterable[tuple[tuple[str, int], int, Mapping[str, Any]]], turn: int = 0
    ) -> int:
        """Record ((image, sample), source, data) for `step`, all or none, unless known; returns how many were new."""
        at = now()
        values = [
            (image, sample, step, source, settings, turn, json.dumps(data, ensure_ascii=False), at)
            for (image, sample), source, data in rows
        ]
        before = self._db.total_changes
        with self._told(), self._db:
            self._db.executemany("INSERT OR IGNORE INTO events VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return self._db.total_changes - before

    def next_turn(self, step: str) -> int:
        """A turn that no event of `step` has yet: for what may rightly happen to the same source again."""
        return int(self._rows("SELECT coalesce(max(turn) + 1, 0) FROM events WHERE step = ?", (step,))[0][0])

    def images(self, names: Iterable[str] = ()) -> list[LedgerImage]:
        """All images, or those of these names, in the order in which they were added. UserError for unknown names."""
        rows = self._rows("SELECT name, path, sha256 FROM pictures ORDER BY rowid")
        wanted = set(names)
        if unknown := wanted - {name for name, _, _ in rows}:
            raise UserError(f"{self.project}: there is no image named {min(unknown)!r}")
        return [LedgerImage(name, Path(path), sha256) for name, path, sha256 in rows if not wanted or name in wanted]

    def events(self, *steps: str) -> list[Event]:
        """All events (of these steps), oldest first."""
        which = f"WHERE step IN ({', '.join('?' * len(steps))})" if steps else ""
        columns = "seq, picture, sample, step, source, settings, at, data"
        rows = self._rows(f"SELECT {columns} FROM events {which} ORDER BY seq", steps)
        return [Event(*(*row[:-1], json.loads(row[-1]))) for row in rows]

    def all_settings(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """(step, settings) by id."""
        return {key: (step, json.loads(value)) for key, step, value in self._rows("SELECT * FROM settings")}

    def items(self, names: Iterable[str] = ()) -> list[Description]:
        """Where every text stands, in the order of the images and samples; `names` as in `images`."""
        images = {image.name: image for image in self.images(names)}
        order = {name: number for number, name in enumerate(images)}
        items: dict[tuple[str, int], Description] = {}
        for event in self.events():
            key = (event.image, event.sample)
            if event.step == "describe" and event.image in images:
                items[key] = Description(images[event.image], event.sample, event)
            elif key in items:
                items[key].apply(event)
        return [items[key] for key in sorted(items, key=lambda key: (order[key[0]], key[1]))]

    def left_out(self) -> str:
        """How many texts there are and which rules caught how many of them, in words, and what to do."""
        if not (items := self.items()):
            return "it holds no text yet: run minigpt4 curate describe first"
        caught = Counter(name for item in items if item.verdict for name in item.verdict.data["caught"])
        rules = ", ".join(f"{name} {count}" for name, count in caught.most_common()) or "none"
        return (
            f"of {len(items)} texts {sum(item.kept for item in items)} are kept; caught by rules: {rules}; "
            "minigpt4 curate stats shows why, and writes rules.yaml, whose numbers curate filter --rules takes"
        )

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        with self._told():
            return self._db.execute(query, tuple(values)).fetchall()
