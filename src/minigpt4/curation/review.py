"""A web page on which people accept, edit or reject texts (paper, 3.2), each lent to one, but for a shared sample."""

import difflib
import hashlib
import re
import time
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from minigpt4.curation.ledger import Description, Ledger
from minigpt4.errors import UserError
from minigpt4.labelling import LabellingDesk, TakenError, labelling_app, serve_app
from minigpt4.statistics import agreements

LEASE_SECONDS = 600.0
EditedText = Annotated[str | None, Field(max_length=20_000)]
VERDICTS = ("accept", "edit", "reject")


class ReviewDesk(LabellingDesk):
    """Hands out the texts that the ledger has when it is made. `shared` is the share that every reviewer sees."""

    title, thing, judge = "Review descriptions", "item", "reviewer"
    html = "minigpt4.curation", "review.html"

    def __init__(self, ledger: Ledger, shared: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        self.ledger, self.shared, self.clock = ledger, shared, clock
        self.items = [item for item in ledger.items() if item.kept and item.text.strip()]
        super().__init__(len(self.items))
        if not self.items:
            raise UserError(f"{ledger.project}: there is no text to review; {ledger.left_out()}")
        self._settings = ledger.settings("review", {"shared": shared})
        self._leases: dict[int, tuple[str, float]] = {}  # reviewer, until when

    def image(self, index: int) -> bytes:
        return self.items[index].image.read()

    def is_shared(self, item: Description) -> bool:
        """Whether everyone decides on this text. It is drawn by its image's name, so it stays when texts are added."""
        drawn = hashlib.sha256(f"{item.image.name} {item.sample}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") / 2**32 < self.shared

    def waits(self, reviewer: str, index: int) -> bool:
        return reviewer not in self.items[index].reviews and not self._others(reviewer, index)

    def _others(self, reviewer: str, index: int) -> list[str]:
        """Who else has an unshared text, or has decided on it."""
        if self.is_shared(self.items[index]):
            return []
        holder, until = self._leases.get(index, (reviewer, 0.0))
        return sorted((self.items[index].reviews.keys() | ({holder} if until > self.clock() else set())) - {reviewer})

    def next(self, reviewer: str, after: int | None = None) -> int | None:
        with self.lock:
            if after is not None and self._leases.get(after, ("", 0.0))[0] == reviewer:
                del self._leases[after]  # passed over: others may have it
            index = super().next(reviewer, after)
            if index is not None:
                self._leases[index] = reviewer, self.clock() + LEASE_SECONDS
            return index

    def look(self, reviewer: str, index: int) -> dict[str, Any]:
        with self.lock:
            item = self.items[index]
            if self.waits(reviewer, index):
                self._leases[index] = reviewer, self.clock() + LEASE_SECONDS
            mine = item.reviews[reviewer].data if reviewer in item.reviews else {"verdict": None}
            raw = str(item.raw.data["text"])
            return {
                "index": index, "source": item.source.seq, "name": item.image.name, "shared": self.is_shared(item),
                "raw": raw, "written": item.text, "mine": mine["verdict"],
                "text": mine["text"] if mine["verdict"] == "edit" else item.text,
                "changes": differences(raw, item.text) if raw != item.text else [],
                "sentences": item.grounding["sentences"] if item.grounding else [],
            }  # fmt: skip

    def decide(self, reviewer: str, index: int, source: int, verdict: str, text: EditedText = None) -> None:
        with self.lock:
            item = self.items[index]
            edited = (text or "").strip() if verdict == "edit" else None
            if verdict not in VERDICTS:
                raise ValueError(f"verdict {verdict!r}: one of {', '.join(VERDICTS)} was expected")
            if source != item.source.seq:
                raise ValueError("this is not the text that you were shown; load the page again")
            if edited == "":
                raise ValueError("an edited text cannot be empty; reject it instead")
            if others := self._others(reviewer, index):
                raise TakenError(f"{others[0]} has this text")
            if edited == item.text:
                verdict, edited = "accept", None
            self._record(item, reviewer, verdict, edited)
            self._leases.pop(index, None)

    def back(self, reviewer: str, index: int | None = None) -> int | None:
        """Undo this reviewer's last decision; returns the index of its text, or None if there is none."""
        with self.lock:
            mine = [(item.reviews[reviewer].seq, i) for i, item in enumerate(self.items) if reviewer in item.reviews]
            if not mine:
                return None
            last = max(mine)[1]
            self._record(self.items[last], reviewer, "undo", None)
            return last

    def _record(self, item: Description, reviewer: str, verdict: str, text: str | None) -> None:
        data = {"reviewer": reviewer, "verdict": verdict, "text": text}
        turn = self.ledger.next_turn("review")
        self.ledger.add("review", self._settings, [(item.key, item.source.seq, data)], turn)
        item.apply(self.ledger.events("review")[-1])

    def times(self, reviewer: str) -> list[str]:
        return [item.reviews[reviewer].at for item in self.items if reviewer in item.reviews]

    def agreement(self) -> list[dict[str, Any]]:
        return agreements({n: e.data["verdict"] != "reject" for n, e in item.reviews.items()} for item in self.items)

    def progress(self, reviewer: str) -> dict[str, Any]:
        with self.lock:
            mine = [(i, item.image.name, item.reviews[reviewer].data["verdict"])
                    for i, item in enumerate(self.items) if reviewer in item.reviews]  # fmt: skip
            done = sum(bool(item.reviews) for item in self.items)
            return {**super().progress(reviewer), "done": done, "mine": mine}


def differences(before: str, after: str) -> list[tuple[str, str]]:
    """How `before` becomes `after`: pieces of text, each "same", "gone" or "new"."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    found: list[tuple[str, str]] = []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        pieces = [("same", old[i1:i2])] if kind == "equal" else [("gone", old[i1:i2]), ("new", new[j1:j2])]
        found += [(what, "".join(piece)) for what, piece in pieces if piece]
    return found


def serve_review(ledger: Ledger, host: str, port: int, shared: float, ready: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C; `ready` is given its address. Raises UserError if the port is taken."""
    with ledger.lock("review"):
        serve_app(labelling_app(ReviewDesk(ledger, shared), host), host, port, ready)
