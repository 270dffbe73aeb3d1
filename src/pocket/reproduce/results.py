"""The results page: each claim with the paper's figure, ours, and the verdict; the ablations; what goes beyond.

Works from evidence alone, and says of how much it is: which scale, which seeds, what was not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from minigpt4.evaluation.statistics import Rate, difference
from minigpt4.files import write_atomically
from pocket.measure.survey import ABILITIES
from pocket.reproduce import figures as pictures
from pocket.reproduce.claims import Claim, judge
from pocket.reproduce.experiments import ALL_SKILLS, Scale, ablated, arm_without, stage1_arms
from pocket.reproduce.spent import Run
from pocket.reproduce.survey import Evidence
from pocket.reproduce.verdicts import MARGIN, Verdict, compared


@dataclass(frozen=True)
class Circumstances:
    """Of what a page tells about: its command and date, the runs that made the arms, and the weights.

    `seconds` are the arms' processor time; `missing` are the arms that are not made.
    """

    command: str
    date: str
    runs: tuple[Run, ...]
    weights: str
    seconds: float
    missing: tuple[str, ...] = ()

    def told(self) -> str:
        """How the arms were made, in a few sentences."""
        clock = sum(run.clock for run in self.runs) / 60
        most = max((run.processes for run in self.runs), default=1)
        up_to = "" if len(self.runs) == 1 else "up to "
        processes = "one process" if most == 1 else f"{up_to}{most} processes"
        runs = "one run" if len(self.runs) == 1 else f"{len(self.runs)} runs that each went on with the last"
        machines = "; ".join(dict.fromkeys(run.machine for run in self.runs))
        others = dict.fromkeys(run.command for run in self.runs if run.command != self.command)
        shared = f" Some of them were made by {', '.join(f'`{name}`' for name in others)}." if others else ""
        return (
            f"The models took {self.seconds / 60:.0f} minutes of processor time. They were made in {runs}, by "
            f"{processes} of one thread each, in {clock:.0f} minutes by the clock, on {machines}.{shared}"
        )


def write_results(
    page: Path, evidence: Evidence, scale: Scale, in_words: Mapping[str, Mapping[str, Rate]], run: Circumstances
) -> list[Claim]:
    """Write the page and, in `assets` beside it, its pictures; returns the claims as judged."""
    claims = judge(evidence)
    drawn = pictures.draw_all(evidence, scale, in_words, page.parent / "assets")
    shown = {name: f"\n![{_ALT[name]}](assets/{file})\n" for name, file in drawn.items()}
    text = "\n".join(
        [
            _opening(scale, run, claims),
            *(_section(claim, shown) for claim in claims),
            _ablations(evidence, scale),
            _beyond(evidence, scale, in_words, shown),
            _ENDING.format(margin=f"{100 * MARGIN:.0f}"),
        ]
    )
    write_atomically(page, text.encode())
    return claims


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


def _opening(scale: Scale, run: Circumstances, claims: Sequence[Claim]) -> str:
    seeds = "one seed" if len(scale.seeds) == 1 else f"{len(scale.seeds)} seeds"
    missing = (
        f"\nNot finished when this page was written, and missing below: {', '.join(run.missing)}.\n"
        if run.missing
        else ""
    )
    steps = f"{scale.stage1_steps} steps of stage 1 on {scale.pairs:,} pictures, {scale.stage2_steps} of stage 2"
    rows = [
        [f"[{claim.title}](#{claim.key})", claim.paper, claim.ours, f"**{claim.verdict.value}**", f"`{run.command}`"]
        for claim in claims
    ]
    return f"""# Results: the paper's claims in the pocket world

This page was written by `{run.command}` on {run.date}, with **{seeds}**:
{steps} on {scale.descriptions} unless said otherwise, {scale.questions} questions
for each ability and {scale.scenes} scenes a seed. {run.told()}
Weights of the frozen parts: {run.weights}.
{missing}
Figures are shares with 95 % Wilson intervals over all seeds, judged by the pictures' ground truth. They are not the
paper's figures on other pictures: the pocket world is a controlled experiment on the paper's *claims*, in which every
part, every text and every truth is known.

{_table(["claim", "the paper", "here", "verdict", "command"], rows)}"""


def _section(claim: Claim, shown: Mapping[str, str]) -> str:
    tests = [[test.question, test.found, test.verdict.value] for test in claim.tests]
    picture = shown.get(_PICTURES.get(claim.key, ""), "")
    return f"""<a id="{claim.key}"></a>
## {claim.title}: {claim.verdict.value}

{_table(["test", "found", "verdict"], tests)}
{_paragraphs(claim.analysis)}{picture}"""


def _ablations(evidence: Evidence, scale: Scale) -> str:
    return f"""<a id="ablations"></a>
## Ablations

{ablation_tables(evidence, scale)}"""


def ablation_tables(evidence: Evidence, scale: Scale) -> str:
    """What the columns mean, then two tables with a line for each ablated arm: figures, and each ability."""
    rows = []
    for arm in ablated(scale):
        if arm not in evidence:
            continue
        each = [f"{100 * rate.share:.0f}" for rate in evidence.by_seed(arm, "abilities").values() if rate.total]
        names = ("abilities", "kind_colour", "place", "describe", "fails_describe", "fails_poem")
        rows.append([arm, *(_cell(evidence.rate(arm, name)) for name in names), ", ".join(each)])
    head = [
        "",
        "all eight",
        "kind and colour",
        "place",
        "description",
        "fails: description",
        "fails: poem",
        "each seed",
    ]
    abilities = [
        [arm, *(_cell(evidence.rate(arm, ability)) for ability in ABILITIES)]
        for arm in ablated(scale)
        if arm in evidence
    ]
    return f"""Per cent (95 % interval). “all eight” are the abilities that the projection is never shown, “each seed”
is that figure seed by seed; “description” is right in full. “stage 2” is the recipe itself: one linear layer, both
stages.

{_table(head, rows)}
{_table(["", *(ability.replace("_", "-") for ability in ABILITIES)], abilities)}"""


def _beyond(
    evidence: Evidence, scale: Scale, in_words: Mapping[str, Mapping[str, Rate]], shown: Mapping[str, str]
) -> str:
    shares = [share for share in (*scale.stage1_shares, 1.0) if stage1_arms(share)[1] in evidence]
    rows = [
        [f"{round(share * scale.pairs):,}"]
        + [_cell(evidence.rate(arm, name)) for arm in stage1_arms(share) for name in ("kind_colour", "abilities")]
        for share in shares
    ]
    head = [
        "pictures",
        "kind and colour, stage 1",
        "all eight, stage 1",
        "kind and colour, stage 2",
        "all eight, stage 2",
    ]
    return f"""<a id="beyond"></a>
## Beyond the paper: how little stage-1 data suffices

As many steps each, so that small sets are seen more often. {_enough(evidence, scale, shares)}

{_table(head, rows)}{shown.get("pairs", "")}
## Beyond the paper: which LLM skill predicts which visual ability

{_skills(evidence, scale, in_words, shown)}"""


def _enough(evidence: Evidence, scale: Scale, shares: Sequence[float]) -> str:
    """The smallest set after which both stages do as well as on the whole, as far as the intervals can tell."""
    whole = evidence.rate("stage 2", "abilities")
    for share in shares:
        rate = evidence.rate(stage1_arms(share)[1], "abilities")
        if rate.total and whole.total and difference(whole, rate)[1] <= 0:
            return (
                f"The smallest set whose abilities after both stages cannot be told from those of the whole: "
                f"{round(share * scale.pairs):,} pictures ({compared(rate, whole)})."
            )
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
        losses = {
            ability: difference(evidence.rate(arm, ability), evidence.rate(control, ability))
            for ability in ABILITIES
            if ability != skill
        }
        worst = min(losses, key=lambda ability: losses[ability][0])
        words = in_words.get(skill, {}).get(skill, Rate(0, 0))
        lost = [name.replace("_", "-") for name, (_, _, high) in losses.items() if high < 0]
        rows.append(
            [
                skill,
                str(words),
                compared(*own),
                f"{worst.replace('_', '-')} {100 * losses[worst][0]:+.0f} points",
                ", ".join(lost) or "none",
            ]
        )
    head = ["left out", "in words", "about pictures, against all skills", "largest other loss", "others surely lost"]
    return f"""The baseline's captioning LM is taught to converse by text alone, {scale.first_lessons} batches of
about 8,000 tokens without any of these skills, then {scale.skill_steps} more, once with all skills and once for each
skill without a single request of that kind; each result is aligned
in both stages (seed {scale.seeds[0]}). One LLM was trained for each row, so differences that come by chance are in
these figures. **The visual ability went with the skill in {gone} of {len(skills)}.** “In words”: the
skill that was left out, about pictures told in words.

{_table(head, rows)}{shown.get("skills", "")}{shown.get("words", "")}"""


_ENDING = """## How to read this

* **Verdicts** follow from rules that were fixed before the figures (`pocket/reproduce/verdicts.py`). “More”
  holds if the whole 95 % interval of the difference (Newcombe's) is above 0 and every seed agrees; it does not hold if
  the difference is not above 0 or surely below {margin} points. “No more” holds if the difference is surely below
  {margin} points. In between the verdict is “{open}”: the questions were too few to tell. A claim holds if all of its
  tests do.
* Intervals take questions as independent. Objects of one picture and questions of one model are not quite, so true
  intervals are somewhat wider; seeds are shown for that reason.
* Every question, answer and verdict lies in `runs/reproduce/arms/*/answers-*.json`.
* `minigpt4 pocket reproduce --plan` lists all arms with their cost and what is done; a run that was stopped goes on.
""".replace("{open}", Verdict.OPEN.value)


def _cell(rate: Rate) -> str:
    return str(rate).replace(" %", "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)


def _paragraphs(texts: Sequence[str]) -> str:
    return "".join(f"{text}\n\n" for text in texts)
