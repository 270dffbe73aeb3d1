"""The rules by which the figures decide the paper's seven claims, which are rows in a YAML file for each world.

The rules were fixed before the figures were known. What the figures mean is written by hand in docs/notes/results.md.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from minigpt4.statistics import Rate
from pocket.measure.survey import difference
from pocket.reproduce.experiments import World
from pocket.reproduce.survey import Evidence
from pocket.shipped import read_table

#: A difference below this many (as a share) would not matter to the claim.
MARGIN = 0.05


class Outcome(Enum):
    """What the figures say about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "can't be tested here"


def more(one: Rate, other: Rate, seeds: Iterable[tuple[Rate, Rate]] = ()) -> Outcome:
    """Is `one` above `other`? Holds if the whole interval of the difference is above 0, and so is each seed's.

    It does not hold if the difference is not above 0, or surely smaller than `MARGIN`; else the questions were too few
    to tell. `seeds` are (one, other) of each seed.
    """
    found, low, high = difference(one, other)
    if low > 0 and all(difference(*pair)[0] > 0 for pair in seeds if pair[0].total and pair[1].total):
        return Outcome.HOLDS
    return Outcome.FAILS if found <= 0 or high < MARGIN else Outcome.OPEN


def not_more(one: Rate, other: Rate) -> Outcome:
    """Is `one` at most `other`? Holds if it is surely less than `MARGIN` above, fails if surely above."""
    _, low, high = difference(one, other)
    return Outcome.HOLDS if high < MARGIN else Outcome.FAILS if low > 0 else Outcome.OPEN


def at_least(rate: Rate, least: float) -> Outcome:
    """Is the rate at least so large? Holds or fails if its whole interval says so."""
    low, high = rate.interval
    return Outcome.HOLDS if low >= least else Outcome.FAILS if high < least else Outcome.OPEN


@dataclass(frozen=True)
class Claim:
    """A row of the YAML file."""

    key: str
    title: str
    paper: str
    ours: list[tuple[str, str, str]]
    tests: list[dict[str, Any]]
    picture: str | None = None

    def outcome(self, evidence: Evidence) -> Outcome:
        """Holds if all of its tests do; does not hold if any of them does not."""
        found = {judge(test, evidence)[1] for test in self.tests}
        return next((outcome for outcome in (Outcome.FAILS, Outcome.OPEN) if outcome in found), Outcome.HOLDS)

    def shown(self, evidence: Evidence) -> str:
        """Our figures in one line."""
        return "; ".join(f"{label} {_show(evidence, arm, name)}".strip() for label, arm, name in self.ours)


def read_claims(world: World) -> tuple[Claim, ...]:
    """The claims of a world."""
    return tuple(Claim(**row) for row in read_table(f"reproduce/{world.name}")["claims"])


def judge(test: Mapping[str, Any], evidence: Evidence) -> tuple[str, Outcome | None]:
    """(what was found, what it says) of one of a claim's tests; None for what is only shown."""
    one = evidence.rate(*test["one"])
    if test["is"] == "at least":
        return str(one), at_least(one, test["other"]) if one.total else Outcome.OPEN
    other = evidence.rate(*test["other"])
    found = compared(one, other)
    if test["is"] == "shown":
        return found, None
    if not (one.total and other.total):
        return found, Outcome.OPEN
    if test["is"] == "not more":
        return found, not_more(one, other)
    seeds, others = evidence.by_seed(*test["one"]), evidence.by_seed(*test["other"])
    return found, more(one, other, [(seeds[seed], others[seed]) for seed in seeds.keys() & others.keys()])


def compared(one: Rate, other: Rate) -> str:
    """ "83 % (79–87) against 0 % (0–1): +83 points (+79 to +87)"; "not run" where one was not."""
    if not (one.total and other.total):
        return "not run"
    found, low, high = (100 * share for share in difference(one, other))
    return f"{one} against {other}: {found:+.0f} points ({low:+.0f} to {high:+.0f})"


def _show(evidence: Evidence, arm: str, name: str) -> str:
    """A rate with its interval, or a mean length."""
    if name.startswith("words "):
        return f"{evidence.pooled(arm).mean_words(name.removeprefix('words ')):.0f} words"
    return str(evidence.rate(arm, name))
