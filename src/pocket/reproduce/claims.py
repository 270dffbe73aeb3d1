"""The paper's seven claims as a table: what each states, which figures it rests on, and how they are compared.

The rules were fixed before the figures were known. What the figures mean is written by hand in docs/notes/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from minigpt4.statistics import Rate, difference
from pocket.measure.survey import ABILITIES
from pocket.reproduce.experiments import ALL_SKILLS, VARIANTS, arm_without
from pocket.reproduce.survey import ATTRIBUTES, FORMS, Evidence

#: A difference below this many (as a share) would not matter to the claim.
MARGIN = 0.05
#: "Often", of answers that fail; the paper has 35 and 32 of 100.
OFTEN = 0.10

#: An arm and the name of one of its rates, or "words FORM" for the mean length of such answers.
Measure = tuple[str, str]


class Outcome(Enum):
    """What the figures say about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "can't be tested here"


def more(one: Rate, other: Rate, seeds: Sequence[tuple[Rate, Rate]] = ()) -> Outcome:
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
class Test:
    """One comparison: `one` with `other`, or with the share `other`. "shown" is printed and decides nothing."""

    __test__ = False  # not one of pytest's

    statement: str
    comparison: Literal["more", "not more", "at least", "shown"]
    one: Measure
    other: Measure | float

    def judge(self, evidence: Evidence) -> tuple[str, Outcome | None]:
        """(what was found, what it says); None for what is only shown."""
        one = evidence.rate(*self.one)
        if not isinstance(self.other, tuple):
            return str(one), at_least(one, self.other) if one.total else Outcome.OPEN
        other = evidence.rate(*self.other)
        found = compared(one, other)
        if self.comparison == "shown":
            return found, None
        if not (one.total and other.total):
            return found, Outcome.OPEN
        if self.comparison == "not more":
            return found, not_more(one, other)
        seeds, others = evidence.by_seed(*self.one), evidence.by_seed(*self.other)
        return found, more(one, other, [(seeds[seed], others[seed]) for seed in sorted(seeds.keys() & others.keys())])


@dataclass(frozen=True)
class Claim:
    """A claim of the paper with its figures, the figures of ours to show beside them (by label), and its tests."""

    key: str
    title: str
    paper: str
    ours: tuple[tuple[str, Measure], ...]
    tests: tuple[Test, ...]

    def outcome(self, evidence: Evidence) -> Outcome:
        """Holds if all of its tests do; does not hold if any of them does not."""
        found = {test.judge(evidence)[1] for test in self.tests}
        return next((outcome for outcome in (Outcome.FAILS, Outcome.OPEN) if outcome in found), Outcome.HOLDS)

    def shown(self, evidence: Evidence) -> str:
        """Our figures in one line."""
        return "; ".join(f"{label} {show(evidence, measure)}".strip() for label, measure in self.ours)


def show(evidence: Evidence, measure: Measure) -> str:
    """A rate with its interval, or a mean length."""
    arm, name = measure
    if name.startswith("words "):
        return f"{evidence.pooled(arm).mean_words(name.removeprefix('words ')):.0f} words"
    return str(evidence.rate(arm, name))


def compared(one: Rate, other: Rate) -> str:
    """ "83 % (79–87) against 0 % (0–1): +83 points (+79 to +87)"; "not run" where one was not."""
    if not (one.total and other.total):
        return "not run"
    found, low, high = (100 * share for share in difference(one, other))
    return f"{one} against {other}: {found:+.0f} points ({low:+.0f} to {high:+.0f})"


_OURS, _FIRST, _WEAK, _WEAK2, _TAUGHT = (
    "stage 2", "stage 1", "BLIP-2", "BLIP-2 with stage 2", arm_without(ALL_SKILLS),
)  # fmt: skip
_FAILURES = (("descriptions", "fails_describe"), ("poems", "fails_poem"))
_NAMED = tuple((name.replace("_", "-"), name) for name in ABILITIES)

CLAIMS = (
    Claim(
        "strong-llm",
        "Advanced abilities come with the strong LLM, not with the weak one on the same vision side",
        "65 % of 100 (meme 8, recipe 18, advertisement 19, poem 20 of 25); BLIP-2 5 % (0, 4, 1, 0)",
        (("", (_OURS, "abilities")), ("BLIP-2", (_WEAK, "abilities"))),
        (
            Test("all eight abilities: MiniGPT-4 above BLIP-2?", "more", (_OURS, "abilities"), (_WEAK, "abilities")),
            *(Test(f"{what}: above BLIP-2?", "more", (_OURS, name), (_WEAK, name)) for what, name in _NAMED),
            Test("BLIP-2's own LLM, taught to converse", "shown", (_TAUGHT, "abilities"), (_WEAK, "abilities")),
            Test("objects named in descriptions", "shown", (_OURS, "right kind"), (_WEAK, "right kind")),
        ),
    ),
    Claim(
        "second-stage",
        "Stage 1 alone fails often, and stage 2 mends it with few pairs",
        "failures of 100: descriptions 35, poems 32 after stage 1; 2 and 1 after stage 2",
        tuple(
            (label, (arm, name))
            for what, name in _FAILURES
            for label, arm in ((what, _FIRST), ("after stage 2", _OURS))
        ),
        tuple(
            test
            for what, name in _FAILURES
            for test in (
                Test(f"{what}: does stage 1 alone fail in {OFTEN:.0%} or more?", "at least", (_FIRST, name), OFTEN),
                Test(f"{what}: more failures before stage 2?", "more", (_FIRST, name), (_OURS, name)),
            )
        ),
    ),
    Claim(
        "coverage",
        "MiniGPT-4's answers cover more of the ground-truth captions than BLIP-2's",
        "66.2 % against 27.5 % of COCO's captions",
        (
            ("", (_OURS, "covered description")), ("BLIP-2", (_WEAK, "covered description")),
            ("in", (_WEAK, "words description")), ("its captions", (_WEAK, "covered caption")),
            ("broken off after 7 words", (_WEAK, "covered short")),
        ),
        (
            Test(
                "captions covered: above BLIP-2?",
                "more", (_OURS, "covered description"), (_WEAK, "covered description"),
            ),
        ),
    ),
    Claim(
        "blip2-stage2",
        "BLIP-2 does not gain from stage 2's data",
        "it stays short-spoken; no figure",
        (
            ("abilities", (_WEAK2, "abilities")), ("without", (_WEAK, "abilities")),
            ("descriptions of", (_WEAK2, "words description")), ("without", (_WEAK, "words description")),
            ("MiniGPT-4's", (_OURS, "words description")),
        ),
        tuple(
            Test(f"{what} with stage 2's data?", "not more", (_WEAK2, name), (_WEAK, name))
            for what, name in (
                ("all eight abilities: no better", "abilities"),
                ("described objects with the right kind and colour: no more", "kind_colour"),
            )
        ),
    ),
    Claim(
        "one-layer",
        "No Q-Former, three layers, or a finetuned Q-Former do not beat one linear layer",
        "AOK-VQA / GQA: one layer 58.2 / 32.2; no Q-Former 56.9 / 33.4; three layers 49.7 / 31.0; Q-Former finetuned "
        "52.1 / 28.0",
        (("one linear layer", (_OURS, "abilities")), *((name, (name, "abilities")) for name, _, _ in VARIANTS)),
        tuple(
            Test(f"{name}: no better than one linear layer?", "not more", (name, "abilities"), (_OURS, "abilities"))
            for name, _, _ in VARIANTS
        ),
    ),
    Claim(
        "hallucination",
        "Hallucination grows with the length of the answer",
        "long answers hallucinate more than short ones (CHAIR_i); BLIP-2's captions of 6 words least",
        (
            *(pair for form in FORMS for pair in ((form, (_OURS, f"words {form}")), ("", (_OURS, f"false {form}")))),
            ("BLIP-2's description", (_WEAK, "false description")),
        ),
        tuple(
            Test(
                f"objects that are not there: more in a {longer} than in a caption?",
                "more", (_OURS, f"false {longer}"), (_OURS, "false caption"),
            )
            for longer in ("description", "story")
        ),
    ),
    Claim(
        "positions",
        "Positions in the image are the weak spot",
        "shown by examples; no figure",
        (
            *((f"described {name}", (_OURS, f"right {name}")) for name in ATTRIBUTES),
            ("asked about one object: colour", (_OURS, "scene's colour")), ("place", (_OURS, "scene's where")),
        ),
        tuple(
            Test(f"{asked}: {name} more often right than place?", "more", (_OURS, one), (_OURS, other))
            for asked, name, one, other in (
                ("descriptions", "colour", "right colour", "right place"),
                ("descriptions", "size", "right size", "right place"),
                ("asked about one object", "colour", "scene's colour", "scene's where"),
            )
        ),
    ),
)  # fmt: skip
