"""People as judges: what they said on the rating page, read from its journal, and how far they agree.

The page is `rating.py`. An answer is a success if most of those who judged it say so; while nobody did, or they are
split, it is undecided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from minigpt4.evaluation.journal import digest, read_rows
from minigpt4.evaluation.judges import Answer, Case, Judge, Verdict
from minigpt4.statistics import cohen_kappa

RATINGS = "ratings.jsonl"


def answer_key(item: str, prompt: str, answer: str) -> str:
    """The name of an answer on the rating page: equal answers to one question are one, whoever gave them."""
    return digest([item, prompt, answer])


def read_ratings(directory: Path) -> list[dict[str, Any]]:
    """The last word of every rater on every question: `rater`, `answers` (verdicts by answer), `best` (answers)."""
    path = directory / RATINGS
    return list({row["key"]: row for row in read_rows(path)}.values()) if path.exists() else []


def agreement(ratings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How often every two raters who judged the same answers gave the same verdict, and Cohen's kappa."""
    votes: dict[str, dict[str, bool]] = {}
    for row in ratings:
        for answer, success in row["answers"].items():
            if success is not None:
                votes.setdefault(answer, {})[row["rater"]] = success
    found = []
    for one, other in combinations(sorted({row["rater"] for row in ratings}), 2):
        pairs = [(given[one], given[other]) for given in votes.values() if one in given and other in given]
        if pairs:
            agreed = sum(a == b for a, b in pairs) / len(pairs)
            found.append({"judges": [one, other], "cases": len(pairs), "agreed": agreed, "kappa": cohen_kappa(pairs)})
    return found


class PeopleJudge(Judge):
    """The verdicts of the raters in `directory/ratings.jsonl`."""

    kept = False

    def __init__(self, directory: Path) -> None:
        self.ratings = read_ratings(directory)
        self.identity = {"judge": "people", "raters": len({row["rater"] for row in self.ratings})}

    def decide(self, cases: Sequence[Case], record: Callable[[int, Verdict], None]) -> None:
        votes: dict[str, list[bool | None]] = {}
        for row in self.ratings:
            for answer, success in row["answers"].items():
                votes.setdefault(answer, []).append(success)
        for index, case in enumerate(cases):
            given = votes.get(answer_key(case.item.id, case.item.prompt, case.answer.text), [])
            yes, no = given.count(True), given.count(False)
            reason = f"{yes} say yes, {no} no, {given.count(None)} cannot tell" if given else "nobody has judged it"
            record(index, Verdict(None if yes == no else yes > no, reason, {"raters": len(given)}))

    def report(self, answers: Sequence[Answer]) -> dict[str, Any]:
        """`agreement` of every two raters, and `preferences`: which of two models' answers they liked better."""
        keys: dict[tuple[str, int], dict[str, str]] = {}
        for answer in answers:
            key = answer_key(answer.item.id, answer.item.prompt, answer.text)
            keys.setdefault((answer.item.id, answer.sample), {})[answer.model] = key
        best = [(set(row["answers"]), set(row["best"])) for row in self.ratings if row["best"]]
        preferences = []
        for one, other in combinations(dict.fromkeys(answer.model for answer in answers), 2):
            wins = ties = losses = 0
            for group in keys.values():
                mine, theirs = group.get(one), group.get(other)
                for shown, chosen in best:
                    if mine in shown and theirs in shown:
                        wins += mine in chosen and theirs not in chosen
                        losses += theirs in chosen and mine not in chosen
                        ties += (mine in chosen) == (theirs in chosen)
            if wins + ties + losses:
                preferences.append({"models": [one, other], "wins": wins, "ties": ties, "losses": losses})
        return {"agreement": agreement(self.ratings), "preferences": preferences}
