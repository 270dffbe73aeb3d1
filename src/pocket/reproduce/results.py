"""The results page: each claim with the paper's figure, ours, and the verdict; the ablations; what goes beyond.

What the figures mean is written by hand between marks in the page, and is kept when the page is written again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4.evaluation.results import table
from minigpt4.files import write_atomically
from minigpt4.statistics import Rate, difference, text
from pocket.measure.survey import ABILITIES
from pocket.reproduce import figures as pictures
from pocket.reproduce.claims import CLAIMS, MARGIN, Claim, Outcome, compared
from pocket.reproduce.experiments import ALL_SKILLS, Scale, ablated, arm_without, stage1_arms
from pocket.reproduce.survey import Evidence


@dataclass(frozen=True)
class Circumstances:
    """Of what a page tells: its command and date, the notes beside the arms, the weights, and the arms not made."""

    command: str
    date: str
    notes: tuple[Mapping[str, Any], ...]
    weights: str
    missing: tuple[str, ...] = ()

    def told(self) -> str:
        """How the arms were made, in a few sentences."""
        minutes = sum(note["seconds"] for note in self.notes) / 60
        machines = "; ".join(dict.fromkeys(note["machine"] for note in self.notes))
        others = dict.fromkeys(note["command"] for note in self.notes if note["command"] != self.command)
        shared = f" Some of them were made by {', '.join(f'`{name}`' for name in others)}." if others else ""
        return (
            f"The models took {minutes:.0f} minutes of processor time, one thread each, on {machines}.{shared} "
            f"Weights of the frozen parts: {self.weights}."
        )


def write_page(
    page: Path, evidence: Evidence, scale: Scale, in_words: Mapping[str, Mapping[str, Rate]], run: Circumstances
) -> dict[str, Outcome]:
    """Write the page and, in `assets` beside it, its pictures; returns the outcome of each claim."""
    outcomes = {claim.key: claim.outcome(evidence) for claim in CLAIMS}
    drawn = pictures.draw_all(evidence, scale, in_words, page.parent / "assets")
    shown = {name: f"\n![{_ALT[name]}](assets/{file})\n" for name, file in drawn.items()}
    kept = dict(re.findall(_BY_HAND, page.read_text(encoding="utf-8"))) if page.is_file() else {}
    parts = [
        _opening(evidence, scale, run, outcomes),
        *(_section(claim, evidence, outcomes[claim.key], shown, kept.get(claim.key, "")) for claim in CLAIMS),
        f'<a id="ablations"></a>\n## Ablations\n\n{_ablation_tables(evidence, scale)}',
        _beyond(evidence, scale, in_words, shown),
        _ENDING.format(margin=f"{100 * MARGIN:.0f}", open=Outcome.OPEN.value),
    ]
    write_atomically(page, "\n".join(parts).encode())
    return outcomes


#: What is written by hand about a claim.
_BY_HAND = r"(?s)<!-- by hand: (\S+) -->\n(.*?)<!-- end -->"
_ALT = {
    "abilities": "Abilities of four models, with intervals",
    "ablations": "All eight abilities of every ablation, with intervals and each seed",
    "pairs": "Abilities against the number of pictures in stage 1",
    "length": "Objects that are not there, against the length of the answer",
    "skills": "Abilities about pictures, by the skill that was left out of the LLM's text",
    "words": "Abilities about pictures against the same about pictures told in words",
}
#: The pictures that stand with each claim.
_PICTURES = {"strong-llm": "abilities", "hallucination": "length", "one-layer": "ablations"}


def _opening(evidence: Evidence, scale: Scale, run: Circumstances, outcomes: Mapping[str, Outcome]) -> str:
    seeds = "one seed" if len(scale.seeds) == 1 else f"{len(scale.seeds)} seeds"
    missing = f"\nNot finished, and missing below: {', '.join(run.missing)}.\n" if run.missing else ""
    rows = [
        [f"[{c.title}](#{c.key})", c.paper, c.shown(evidence), f"**{outcomes[c.key].value}**", f"`{run.command}`"]
        for c in CLAIMS
    ]
    return f"""# Results: the paper's claims in the pocket world

A laboratory notebook, written by a command; [Results](../results.md) is the summary.

The figures of this page were written by `{run.command}` on {run.date}, with **{seeds}**:
{scale.stage1_steps} steps of stage 1 on {scale.pairs:,} pictures, {scale.stage2_steps} of stage 2 on \
{scale.descriptions} unless said otherwise, {scale.questions} questions
for each ability and {scale.scenes} scenes a seed. {run.told()}
{missing}
Figures are shares with 95 % Wilson intervals over all seeds, judged by the pictures' ground truth. They are not the
paper's figures on other pictures: the pocket world is a controlled experiment on the paper's *claims*, in which every
part, every text and every truth is known.

{table(["claim", "the paper", "here", "verdict", "command"], rows)}"""


def _section(claim: Claim, evidence: Evidence, outcome: Outcome, shown: Mapping[str, str], by_hand: str) -> str:
    tests = [(test.statement, *test.judge(evidence)) for test in claim.tests]
    rows = [[statement, found, verdict.value if verdict else ""] for statement, found, verdict in tests]
    return f"""<a id="{claim.key}"></a>
## {claim.title}: {outcome.value}

{table(["test", "found", "verdict"], rows)}
<!-- by hand: {claim.key} -->
{by_hand}<!-- end -->
{shown.get(_PICTURES.get(claim.key, ""), "")}"""


def ablations_page(evidence: Evidence, scale: Scale, run: Circumstances, plot: str) -> str:
    """The ablations alone, as `minigpt4 pocket ablations` writes them."""
    return f"""# Ablations

{_ablation_tables(evidence, scale)}
Seeds {", ".join(map(str, scale.seeds))}; {scale.stage1_steps} steps of stage 1 on {scale.pairs:,} pictures,
{scale.stage2_steps} of stage 2 on {scale.descriptions} unless said otherwise; {scale.questions} questions for each
ability and seed, greedy, judged by the pictures' ground truth. {run.told()}

![Ablations]({plot})
"""


def _ablation_tables(evidence: Evidence, scale: Scale) -> str:
    """What the columns mean, then two tables with a line for each ablated arm: figures, and each ability."""
    made = [arm for arm in ablated(scale) if arm in evidence]
    names = ("abilities", "kind_colour", "place", "describe", "fails_describe", "fails_poem")
    head = ["all eight", "kind and colour", "place", "description", "fails: description", "fails: poem", "each seed"]

    def cells(arm: str, rates: Sequence[str]) -> list[str]:
        return [arm, *(_cell(evidence.rate(arm, name)) for name in rates)]

    def each(arm: str) -> str:
        rates = evidence.by_seed(arm, "abilities").values()
        return ", ".join(f"{100 * rate.share:.0f}" for rate in rates if rate.total)

    return f"""Per cent (95 % interval). “all eight” are the abilities that the projection is never shown, “each seed”
is that figure seed by seed; “description” is right in full. “stage 2” is the recipe itself: one linear layer, both
stages.

{table(["", *head], [[*cells(arm, names), each(arm)] for arm in made])}
{table(["", *(name.replace("_", "-") for name in ABILITIES)], [cells(arm, ABILITIES) for arm in made])}"""


def _beyond(
    evidence: Evidence, scale: Scale, in_words: Mapping[str, Mapping[str, Rate]], shown: Mapping[str, str]
) -> str:
    shares = [share for share in (*scale.stage1_shares, 1.0) if stage1_arms(share)[1] in evidence]
    rows = [
        [f"{round(share * scale.pairs):,}"]
        + [_cell(evidence.rate(arm, name)) for arm in stage1_arms(share) for name in ("kind_colour", "abilities")]
        for share in shares
    ]
    head = ["pictures", *(f"{what}, stage {k}" for k in (1, 2) for what in ("kind and colour", "all eight"))]
    return f"""<a id="beyond"></a>
## Beyond the paper: how little stage-1 data suffices

As many steps each, so that small sets are seen more often. {_enough(evidence, scale, shares)}

{table(head, rows)}{shown.get("pairs", "")}
## Beyond the paper: which LLM skill predicts which visual ability

{_skills(evidence, scale, in_words, shown)}"""


def _enough(evidence: Evidence, scale: Scale, shares: Sequence[float]) -> str:
    """The smallest set after which both stages do as well as on the whole, as far as the intervals can tell."""
    whole = evidence.rate("stage 2", "abilities")
    for share in shares:
        rate = evidence.rate(stage1_arms(share)[1], "abilities")
        if rate.total and whole.total and difference(whole, rate)[1] <= 0:
            few = f"{round(share * scale.pairs):,} pictures ({compared(rate, whole)})"
            return f"The smallest set whose abilities after both stages cannot be told from those of the whole: {few}."
    return "None was run."


def _skills(
    evidence: Evidence, scale: Scale, in_words: Mapping[str, Mapping[str, Rate]], shown: Mapping[str, str]
) -> str:
    control = arm_without(ALL_SKILLS)
    skills = [skill for skill in scale.skills if arm_without(skill) in evidence]
    if not skills or control not in evidence:
        return "Not run: `minigpt4 pocket reproduce` without `--quick` runs it.\n"
    rows, gone = [], 0
    for skill in skills:
        arm = arm_without(skill)
        own = (evidence.rate(arm, skill), evidence.rate(control, skill))
        gone += difference(*own)[2] < 0
        others = [ability for ability in ABILITIES if ability != skill]
        losses = {name: difference(evidence.rate(arm, name), evidence.rate(control, name)) for name in others}
        worst = min(others, key=lambda name: losses[name][0])
        words = in_words.get(skill, {}).get(skill, Rate(0, 0))
        lost = [name.replace("_", "-") for name, (_, _, high) in losses.items() if high < 0]
        most = f"{worst.replace('_', '-')} {100 * losses[worst][0]:+.0f} points"
        rows.append([skill, str(words), compared(*own), most, ", ".join(lost) or "none"])
    head = ["left out", "in words", "about pictures, against all skills", "largest other loss", "others surely lost"]
    return f"""The baseline's captioning LM is taught to converse by text alone, {scale.first_lessons} batches of
about 8,000 tokens without any of these skills, then {scale.skill_steps} more, once with all skills and once for each
skill without a single request of that kind; each result is aligned
in both stages (seed {scale.seeds[0]}). One LLM was trained for each row, so differences that come by chance are in
these figures. **The visual ability went with the skill in {gone} of {len(skills)}.** “In words”: the
skill that was left out, about pictures told in words.

{table(head, rows)}{shown.get("skills", "")}{shown.get("words", "")}"""


_ENDING = """## How to read this

* **Verdicts** follow from rules that were fixed before the figures (`pocket/reproduce/claims.py`). “More”
  holds if the whole 95 % interval of the difference (Newcombe's) is above 0 and every seed agrees; it does not hold if
  the difference is not above 0 or surely below {margin} points. “No more” holds if the difference is surely below
  {margin} points. In between the verdict is “{open}”: the questions were too few to tell. A claim holds if all of its
  tests do.
* Intervals take questions as independent. Objects of one picture and questions of one model are not quite, so true
  intervals are somewhat wider; seeds are shown for that reason.
* The paragraphs under each claim are written by hand. The command that writes the figures keeps them as they are, so
  read them again when figures have changed.
* Every question, answer and verdict lies in `runs/reproduce/arms/*/answers-*.json`.
* `minigpt4 pocket reproduce --plan` lists all arms and what is done; a run that was stopped goes on.
"""


def _cell(rate: Rate) -> str:
    return text(rate.to_json())
