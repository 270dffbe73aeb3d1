"""The figures of the results page: each claim with the paper's figure, ours, and the verdict; the ablations; the rest.

Prose is in a template for each world. What the figures mean is written by hand between marks in the page, and is kept
when the page is written again.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.files import write_atomically
from minigpt4.statistics import Rate, text
from minigpt4.telling import table
from pocket.measure.survey import ABILITIES, difference
from pocket.reproduce.claims import MARGIN, Outcome, compared, judge, read_claims
from pocket.reproduce.experiments import ALL_SKILLS, Scale, ablated, arm_without, stage1_arms
from pocket.reproduce.figures import InWords, draw_all
from pocket.reproduce.survey import Evidence
from pocket.shipped import render

#: What is written by hand about a claim.
_BY_HAND = r"(?s)<!-- by hand: (\S+) -->\n(.*?)<!-- end -->"


def write_page(
    page: Path, evidence: Evidence, scale: Scale, in_words: InWords, run: Mapping[str, Any]
) -> dict[str, Outcome]:
    """Write the page and, in `assets` beside it, its pictures; returns the outcome of each claim.

    `run` is what the page tells of how it came to be (`run.circumstances`).
    """
    claims = read_claims(scale.world)
    outcomes = {claim.key: claim.outcome(evidence) for claim in claims}
    overview = [
        [f"[{c.title}](#{c.key})", c.paper, c.shown(evidence), f"**{outcomes[c.key].value}**", f"`{run['command']}`"]
        for c in claims
    ]
    filled = render(
        f"reproduce/{scale.world.name}.md",
        run=run,
        scale=scale,
        seeds="one seed" if len(scale.seeds) == 1 else f"{len(scale.seeds)} seeds",
        overview=_table(["claim", "the paper", "here", "verdict", "command"], overview),
        claims=[(claim, outcomes[claim.key].value, _tests(claim.tests, evidence)) for claim in claims],
        by_hand=dict(re.findall(_BY_HAND, page.read_text(encoding="utf-8"))) if page.is_file() else {},
        drawn=draw_all(evidence, scale, in_words, page.parent / "assets"),
        **_ablation_tables(evidence, scale),
        **_sets(evidence, scale),
        **_lessons(evidence, scale, in_words),
        margin=f"{100 * MARGIN:.0f}",
    )
    write_atomically(page, filled.encode())
    return outcomes


def ablations_page(evidence: Evidence, scale: Scale, run: Mapping[str, Any], plot: str) -> str:
    """The ablations alone, as `minigpt4 pocket ablations` writes them."""
    return render("reproduce/ablations.md", run=run, scale=scale, plot=plot, **_ablation_tables(evidence, scale))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return table(head, rows).rstrip("\n")


def _cells(evidence: Evidence, arm: str, names: Sequence[str]) -> list[str]:
    return [text(evidence.rate(arm, name).to_json()) for name in names]


def _words(name: str) -> str:
    return name.replace("_", "-")


def _tests(tests: Sequence[Mapping[str, Any]], evidence: Evidence) -> str:
    judged = [(test["statement"], *judge(test, evidence)) for test in tests]
    rows = [[statement, found, verdict.value if verdict else ""] for statement, found, verdict in judged]
    return _table(["test", "found", "verdict"], rows)


def _ablation_tables(evidence: Evidence, scale: Scale) -> dict[str, str]:
    """Two tables with a line for each ablated arm: figures, and each ability."""
    made = [arm for arm in ablated(scale) if arm in evidence]
    columns, abilities = scale.world.columns, scale.world.abilities

    def each_seed(arm: str) -> str:
        rates = evidence.by_seed(arm, "abilities").values()
        return ", ".join(f"{100 * rate.share:.0f}" for rate in rates if rate.total)

    return {
        "ablations": _table(
            ["", *columns, "each seed"],
            [[arm, *_cells(evidence, arm, [*columns.values()]), each_seed(arm)] for arm in made],
        ),
        "abilities": _table(["", *map(_words, abilities)], [[arm, *_cells(evidence, arm, abilities)] for arm in made]),
    }


def _sets(evidence: Evidence, scale: Scale) -> dict[str, str]:
    """A table of stage 1's sets, and the smallest that does as well as the whole, as far as the intervals can tell."""
    shares = [share for share in (*scale.stage1_shares, 1.0) if stage1_arms(share, scale.world.whole)[0] in evidence]
    rows = [
        [f"{round(share * scale.pairs):,}"]
        + [
            cell
            for arm in stage1_arms(share, scale.world.whole)
            for cell in _cells(evidence, arm, (scale.world.beside[0], "abilities"))
        ]
        for share in shares
    ]
    head = [f"{what}, stage {stage}" for stage in (1, 2) for what in (scale.world.beside[1], "all abilities")]
    whole, enough = evidence.rate(scale.world.whole[1], "abilities"), ""
    for share in reversed(shares):
        rate = evidence.rate(stage1_arms(share, scale.world.whole)[1], "abilities")
        if rate.total and whole.total and difference(whole, rate)[1] <= 0:
            enough = f"{round(share * scale.pairs):,} pictures ({compared(rate, whole)})"
    return {"sets": _table(["pictures", *head], rows), "enough": enough}


def _lessons(evidence: Evidence, scale: Scale, in_words: InWords) -> dict[str, Any]:
    """A table with a line for each skill that was left out, and how often the visual ability went with it."""
    control = arm_without(ALL_SKILLS)
    skills = [skill for skill in scale.skills if arm_without(skill) in evidence and control in evidence]
    rows, gone = [], 0
    for skill in skills:
        arm = arm_without(skill)
        losses = {name: difference(evidence.rate(arm, name), evidence.rate(control, name)) for name in ABILITIES}
        gone += losses.pop(skill)[2] < 0
        worst = min(losses, key=lambda name: losses[name][0])
        lost = [_words(name) for name, (_, _, high) in losses.items() if high < 0]
        rows.append([
            skill, str(in_words.get(skill, {}).get(skill, Rate(0, 0))),
            compared(evidence.rate(arm, skill), evidence.rate(control, skill)),
            f"{_words(worst)} {100 * losses[worst][0]:+.0f} points", ", ".join(lost) or "none",
        ])  # fmt: skip
    head = ["left out", "in words", "about pictures, against all skills", "largest other loss", "others surely lost"]
    return {"lessons": _table(head, rows) if rows else "", "lost": gone, "skills": len(rows)}
