"""People as judges: what they said on the rating page, read from its journal, with how far they agree.

The page is `rating.py`. An answer is a success if most of those who judged it say so; while nobody did, or they are
split, it is undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from minigpt4.evaluation.journal import Journal, digest
from minigpt4.evaluation.judges import Case, Judge, Verdict
from minigpt4.evaluation.statistics import cohen_kappa

RATINGS = "ratings.jsonl"


def answer_key(item: str, prompt: str, answer: str) -> str:
    """The name of an answer on the rating page: equal answers to one question are one, whoever gave them."""
    return digest([item, prompt, answer])


class PeopleJudge(Judge):
    """The verdicts in `directory/ratings.jsonl`."""

    kept = False

    def __init__(self, directory: Path) -> None:
        self.identity = {"judge": "people"}
        self._path = directory / RATINGS
        self._votes: dict[str, dict[str, bool | None]] | None = None

    def votes(self) -> dict[str, dict[str, bool | None]]:
        """By answer, what each rater says of it last: True, False, or None for cannot tell."""
        if self._votes is None:
            self._votes = {}
            if self._path.exists():
                with Journal(self._path) as ratings:
                    for row in ratings:
                        for answer, success in row["answers"].items():
                            self._votes.setdefault(answer, {})[row["rater"]] = success
        return self._votes

    def decide(self, cases: Sequence[Case], record: Callable[[int, Verdict], None]) -> None:
        for index, case in enumerate(cases):
            votes = self.votes().get(answer_key(case.item.id, case.item.prompt, case.answer.text), {})
            decided = [vote for vote in votes.values() if vote is not None]
            yes = sum(decided)
            if not decided or 2 * yes == len(decided):
                reason = f"{yes} of {len(decided)} raters say yes" if decided else "nobody has judged it"
                record(index, Verdict(None, reason, {"raters": len(votes)}))
            else:
                reason = f"{yes} of {len(decided)} raters say yes"
                record(index, Verdict(2 * yes > len(decided), reason, {"raters": len(votes)}))

    def report(self) -> dict[str, Any]:
        """`agreement` of every two raters: for results.json and the table."""
        raters = sorted({rater for votes in self.votes().values() for rater in votes})
        found = []
        for one, other in combinations(raters, 2):
            pairs = [
                (votes[one], votes[other])
                for votes in self.votes().values()
                if votes.get(one) is not None and votes.get(other) is not None
            ]
            if pairs:
                found.append({
                    "judges": [one, other], "cases": len(pairs), "agreed": sum(a == b for a, b in pairs) / len(pairs),
                    "kappa": cohen_kappa(pairs),
                })  # fmt: skip
        return {"agreement": found}
