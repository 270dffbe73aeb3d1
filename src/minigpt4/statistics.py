"""Rates and other measured numbers, their uncertainty, and the one form in which they are printed and saved."""

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from itertools import combinations
from statistics import NormalDist, fmean
from typing import Any

CONFIDENCE = 0.95


def now(timespec: str = "milliseconds") -> str:
    """The time in UTC, as results and histories keep it."""
    return datetime.now(timezone.utc).isoformat(timespec=timespec)


def cohen_kappa(pairs: Sequence[tuple[Hashable, Hashable]]) -> float | None:
    """How far two judges agree beyond chance: 1 always, 0 as by chance, None where that is not defined (Cohen 1960)."""
    if not pairs:
        return None
    agreed = sum(one == other for one, other in pairs) / len(pairs)
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(ones[verdict] * others[verdict] for verdict in ones) / len(pairs) ** 2
    return None if by_chance == 1 else (agreed - by_chance) / (1 - by_chance)


def agreement(one: str, other: str, pairs: Iterable[tuple[Hashable | None, Hashable | None]]) -> dict[str, Any]:
    """How far two judges agree on the cases that both decided (neither is None), as plain JSON."""
    decided = [pair for pair in pairs if None not in pair]
    agreed = sum(a == b for a, b in decided) / len(decided) if decided else None
    return {"judges": [one, other], "cases": len(decided), "agreed": agreed, "kappa": cohen_kappa(decided)}


def agreements(cases: Iterable[Mapping[str, Hashable]]) -> list[dict[str, Any]]:
    """`agreement` of every two judges that have cases in common. A case: verdicts by judge."""
    cases = list(cases)
    judges = sorted({judge for case in cases for judge in case})
    found = (agreement(a, b, [(case.get(a), case.get(b)) for case in cases]) for a, b in combinations(judges, 2))
    return [pair for pair in found if pair["cases"]]


@dataclass(frozen=True)
class Rate:
    """`successes` out of `total`, with its share and 95 % interval; rates of disjoint samples add up."""

    successes: int
    total: int
    undecided: int = 0  # cases of `total` that are no successes

    @classmethod
    def from_outcomes(cls, outcomes: Iterable[bool | None]) -> "Rate":
        """The rate of True; None is undecided."""
        found = list(outcomes)
        return cls(sum(o is True for o in found), len(found), sum(o is None for o in found))

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(self.successes + other.successes, self.total + other.total, self.undecided + other.undecided)

    @property
    def share(self) -> float:
        """Between 0 and 1; NaN when nothing was observed."""
        return self.successes / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval (low, high) of `share`, inside [0, 1]; (0, 1) when nothing was observed."""
        if not 0 <= self.successes <= self.total:
            raise ValueError(f"{self.successes} successes of {self.total} is not a proportion")
        if not self.total:
            return 0.0, 1.0
        z, total = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), self.total
        centre = self.share + z * z / (2 * total)
        spread = z * math.sqrt(self.share * (1 - self.share) / total + (z / (2 * total)) ** 2)
        scale = 1 + z * z / total
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def to_json(self) -> dict[str, Any]:
        """As `Estimate.to_json`."""
        return Estimate(self.share, *self.interval, self.total, self.successes, self.undecided).to_json()

    def __str__(self) -> str:
        """ "92 % (85–96)"; "–" when nothing was observed."""
        return text(self.to_json(), sign=" %")


@dataclass(frozen=True)
class Estimate:
    """A measured number with its 95 % interval, over `total` cases; NaN for what is not known."""

    value: float
    low: float
    high: float
    total: int
    successes: int | None = None
    undecided: int = 0

    @classmethod
    def bootstrapped(cls, cases: Sequence[Any], statistic: Callable[[Sequence[Any]], float] = fmean) -> "Estimate":
        """A statistic, with the percentile interval of 1,000 draws with replacement (Efron 1979), without NaN."""
        if not cases:
            return cls(math.nan, math.nan, math.nan, 0)
        rng = random.Random(0)
        draws = (statistic(rng.choices(cases, k=len(cases))) for _ in range(1000))
        found = sorted(value for value in draws if not math.isnan(value)) or [math.nan]
        tail, last = (1 - CONFIDENCE) / 2, len(found) - 1
        low, high = found[round(tail * last)], found[round((1 - tail) * last)]
        return cls(statistic(cases), low, high, len(cases))

    def to_json(self) -> dict[str, Any]:
        """The fields, with None in place of NaN, which JSON has not."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def text(figure: Mapping[str, Any] | None, unit: str = "%", *, digits: int = 0, sign: str = "") -> str:
    """A number and its interval: "92 (85–96)" for "%", "18/25 (52–86 %)" for "of", "7.10 (6.80–7.40)" else."""
    if figure is None or figure["value"] is None or not figure["total"]:
        return "–"
    scale, places = {"%": (100, digits), "of": (100, 0)}.get(unit, (1, 2))
    value = f"{scale * figure['value']:.{places}f}"
    if figure["low"] is None:  # a figure of the whole, as BLEU is, has no interval
        return value
    low, high = (f"{scale * figure[edge]:.{places}f}" for edge in ("low", "high"))
    undecided = f", {figure['undecided']} undecided" if figure["undecided"] else ""
    if unit == "of":
        return f"{figure['successes']}/{figure['total']} ({low}–{high} %{undecided})"
    return f"{value}{sign} ({low}–{high}{undecided})"
