"""From two rates to a verdict, by rules that were fixed before the figures were known.

Knows nothing about which claims there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from minigpt4.evaluation.statistics import Rate, difference

#: A difference below this many (as a share) would not matter to the claim.
MARGIN = 0.05


class Verdict(Enum):
    """What the figures say about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "can't be tested here"


@dataclass(frozen=True)
class Test:
    """One comparison that a claim rests on: what it asks, what was found, and what that says."""

    __test__ = False  # not one of pytest's

    question: str
    found: str
    verdict: Verdict

    @classmethod
    def more(cls, question: str, one: Rate, other: Rate, seeds: Sequence[tuple[Rate, Rate]] = ()) -> Test:
        """Is `one` above `other`? Holds if the whole interval of the difference is above 0, and so is each seed's.

        It does not hold if the difference is not above 0, or surely smaller than `MARGIN`; else the questions were too
        few to tell. `seeds` are (one, other) of each seed, of which the rates are the sums.
        """
        if not (one.total and other.total):
            return cls(question, "not run", Verdict.OPEN)
        found, low, high = difference(one, other)
        each = [difference(*pair)[0] for pair in seeds if pair[0].total and pair[1].total]
        if low > 0 and all(share > 0 for share in each):
            verdict = Verdict.HOLDS
        elif found <= 0 or high < MARGIN:
            verdict = Verdict.FAILS
        else:
            verdict = Verdict.OPEN
        return cls(question, compared(one, other), verdict)

    @classmethod
    def not_more(cls, question: str, one: Rate, other: Rate) -> Test:
        """Is `one` no more than `other`? Holds if it is surely less than `MARGIN` above, fails if surely above."""
        if not (one.total and other.total):
            return cls(question, "not run", Verdict.OPEN)
        _, low, high = difference(one, other)
        verdict = Verdict.HOLDS if high < MARGIN else Verdict.FAILS if low > 0 else Verdict.OPEN
        return cls(question, compared(one, other), verdict)

    @classmethod
    def at_least(cls, question: str, rate: Rate, least: float) -> Test:
        """Is the rate at least so large? Holds or fails if its whole interval says so."""
        if not rate.total:
            return cls(question, "not run", Verdict.OPEN)
        low, high = rate.interval
        verdict = Verdict.HOLDS if low >= least else Verdict.FAILS if high < least else Verdict.OPEN
        return cls(question, str(rate), verdict)


def compared(one: Rate, other: Rate) -> str:
    """ "83 % (79–87) against 0 % (0–1): +83 points (+79 to +87)"; "not run" where one was not."""
    if not (one.total and other.total):
        return "not run"
    found, low, high = (100 * share for share in difference(one, other))
    return f"{one} against {other}: {found:+.0f} points ({low:+.0f} to {high:+.0f})"


def overall(tests: Sequence[Test]) -> Verdict:
    """A claim holds if all of its tests do, and does not if any of them does not."""
    verdicts = {test.verdict for test in tests}
    for verdict in (Verdict.FAILS, Verdict.OPEN):
        if verdict in verdicts:
            return verdict
    return Verdict.HOLDS if tests else Verdict.OPEN


def paired(one: Mapping[int, Rate], other: Mapping[int, Rate]) -> list[tuple[Rate, Rate]]:
    """(one, other) of each seed that both have."""
    return [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]
