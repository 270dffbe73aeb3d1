"""A web page on which people read every text that is left, and accept, edit or reject it (paper, 3.2).

Several people can work at once: each text is lent to one of them for some minutes, except for a shared sample that
everyone decides on, from which their agreement is computed. Decisions go to the ledger at once. Knows nothing about how
the texts came to be; `review.html` is the page.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from minigpt4.curation.ledger import Item, Ledger
from minigpt4.errors import UserError
from minigpt4.labelling import Labelling, TakenError, person, seconds_left
from minigpt4.local_web import serve_app
from minigpt4.statistics import cohen_kappa

if TYPE_CHECKING:
    from fastapi import FastAPI

LEASE_SECONDS = 600.0
VERDICTS = ("accept", "edit", "reject")


@dataclass
class Desk:
    """Who reviews what: hands out texts, takes decisions, and counts. Safe to use from several threads.

    `shared` is the share of texts that every reviewer sees. The texts are those that the ledger has when it is made.
    """

    ledger: Ledger
    shared: float = 0.1
    clock: Callable[[], float] = time.monotonic
    items: list[Item] = field(init=False)

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._leases: dict[int, tuple[str, float]] = {}
        self.items = [item for item in self.ledger.items() if item.kept and item.text.strip()]
        if not self.items:
            raise UserError(f"{self.ledger.project}: there is no text to review; describe, refine and filter first")
        self._settings = self.ledger.settings("review", {"shared": self.shared})

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> bytes:
        """The text's image, as it was when it was added."""
        return self.items[index].picture.read()

    def is_shared(self, item: Item) -> bool:
        """Whether everyone decides on this text: drawn by its picture's name, so it stays when texts are added."""
        drawn = hashlib.sha256(f"{item.picture.name} {item.sample}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") / 2**32 < self.shared

    def next(self, reviewer: str) -> int | None:
        """The first text that waits for this reviewer, lent to them for a while; None if there is none."""
        with self._lock:
            for index, item in enumerate(self.items):
                if self._waits(index, item, reviewer):
                    self._lend(index, reviewer)
                    return index
            return None

    def _waits(self, index: int, item: Item, reviewer: str) -> bool:
        if reviewer in item.reviews:
            return False
        return self.is_shared(item) or (not item.reviews and self._holder(index) in (None, reviewer))

    def _holder(self, index: int) -> str | None:
        name, until = self._leases.get(index, ("", 0.0))
        return name if until > self.clock() else None

    def _lend(self, index: int, reviewer: str) -> None:
        if not self.is_shared(self.items[index]):
            self._leases[index] = (reviewer, self.clock() + LEASE_SECONDS)

    def look(self, reviewer: str, index: int) -> dict[str, Any]:
        """What the page shows of a text: both versions with their differences, its sentences with their grounding."""
        with self._lock:
            item = self.items[index]
            if self._waits(index, item, reviewer):
                self._lend(index, reviewer)
            mine = item.reviews.get(reviewer)
            raw = str(item.raw.data["text"])
            scored = item.grounding.data["sentences"] if item.grounding is not None else []
            return {
                "index": index,
                "source": item.source.seq,
                "name": item.picture.name,
                "shared": self.is_shared(item),
                "raw": raw,
                "text": mine.data["text"] if mine is not None and mine.data["verdict"] == "edit" else item.text,
                "written": item.text,
                "changes": differences(raw, item.text) if raw != item.text else [],
                "sentences": scored,
                "mine": mine.data["verdict"] if mine is not None else None,
            }

    def decide(self, reviewer: str, index: int, source: int, verdict: str, text: str | None = None) -> None:
        """Record a decision. Raises TakenError if it is another's text, ValueError for what is no decision."""
        with self._lock:
            item = self.items[index]
            if verdict not in VERDICTS:
                raise ValueError(f"verdict {verdict!r}: one of {', '.join(VERDICTS)} was expected")
            if source != item.source.seq:
                raise ValueError("this is not the text that you were shown; load the page again")
            if verdict == "edit" and not (text and text.strip()):
                raise ValueError("an edited text cannot be empty; reject it instead")
            if not self.is_shared(item):
                others = (item.reviews.keys() | {self._holder(index)}) - {reviewer, None}
                if others:
                    raise TakenError(f"{sorted(map(str, others))[0]} has this text")
            if verdict == "edit" and text is not None and text.strip() == item.text:
                verdict = "accept"
            data = {
                "reviewer": reviewer,
                "verdict": verdict,
                "text": text.strip() if verdict == "edit" and text else None,
            }
            self._record(item, data)
            self._leases.pop(index, None)

    def undo(self, reviewer: str) -> int | None:
        """Take this reviewer's last decision back and lend its text to them again; None if there is none."""
        with self._lock:
            mine = [(item.reviews[reviewer].seq, i) for i, item in enumerate(self.items) if reviewer in item.reviews]
            if not mine:
                return None
            index = max(mine)[1]
            self._record(self.items[index], {"reviewer": reviewer, "verdict": "undo", "text": None})
            self._lend(index, reviewer)
            return index

    def _record(self, item: Item, data: dict[str, Any]) -> None:
        turn = self.ledger.next_turn("review")
        self.ledger.add("review", self._settings, [(item.key, item.source.seq, data)], turn)
        item.reviews.pop(data["reviewer"], None)
        if data["verdict"] != "undo":
            item.reviews[data["reviewer"]] = self.ledger.last_event("review")

    def progress(self, reviewer: str) -> dict[str, Any]:
        """Counts, the seconds that remain at this reviewer's pace, and agreement with others on the shared sample."""
        with self._lock:
            done = sum(bool(item.reviews) for item in self.items)
            waiting = sum(self._waits(i, item, reviewer) for i, item in enumerate(self.items))
            mine = [item.reviews[reviewer].at for item in self.items if reviewer in item.reviews]
            return {
                "total": len(self.items),
                "done": done,
                "mine": len(mine),
                "waiting": waiting,
                "seconds left": seconds_left(mine, waiting),
                "agreement": self.agreement(),
            }

    def agreement(self) -> list[dict[str, Any]]:
        """Cohen's kappa of keep or reject for every two reviewers with shared texts in common."""
        names = sorted({name for item in self.items for name in item.reviews})
        found = []
        for one, other in combinations(names, 2):
            both = [item.reviews for item in self.items if one in item.reviews and other in item.reviews]
            pairs = [tuple(r[name].data["verdict"] != "reject" for name in (one, other)) for r in both]
            if pairs:
                kappa = cohen_kappa([(first, second) for first, second in pairs])
                found.append({"reviewers": [one, other], "texts": len(pairs), "kappa": kappa})
        return found


def differences(before: str, after: str) -> list[tuple[str, str]]:
    """`before` turned into `after`, as pieces of text with what became of each: "same", "gone" or "new"."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    found: list[tuple[str, str]] = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("same", "".join(old[i1:i2])))
            continue
        found += [(what, "".join(piece)) for what, piece in (("gone", old[i1:i2]), ("new", new[j1:j2])) if piece]
    return found


def create_app(desk: Desk, host: str) -> FastAPI:
    """The page, to be served on `host`, and its few requests."""
    page = Labelling(desk, "Review descriptions", ("minigpt4.curation", "review.html"), "item", "reviewer", host)
    from fastapi import Body, HTTPException

    @page.app.get("/api/items/{index}")
    def look(index: int, reviewer: str) -> dict[str, Any]:
        return page.shown(person(reviewer), page.within(index))

    @page.app.post("/api/items/{index}")
    def decide(
        index: int,
        reviewer: str = Body(),
        source: int = Body(),
        verdict: str = Body(),
        text: str | None = Body(None, max_length=20_000),
    ) -> dict[str, Any]:
        name = person(reviewer)
        desk.decide(name, page.within(index), source, verdict, text)
        return page.next(name)

    @page.app.post("/api/undo")
    def undo(reviewer: str = Body(embed=True)) -> dict[str, Any]:
        name = person(reviewer)
        index = desk.undo(name)
        if index is None:
            raise HTTPException(404, "there is nothing to undo")
        return page.shown(name, index)

    return page.app


def serve(ledger: Ledger, host: str, port: int, shared: float, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `ready` is given its address. Raises UserError if the port is taken."""
    with ledger.lock("review"):
        serve_app(create_app(Desk(ledger, shared), host), host, port, ready)
