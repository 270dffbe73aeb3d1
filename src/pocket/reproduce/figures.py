"""The plots of the results page, drawn from figures as PNG files of a few dozen KB each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minigpt4.files import write_atomically
from minigpt4.images import figure_png
from minigpt4.statistics import Rate
from pocket.reproduce.experiments import ALL_SKILLS, WEAK_ARM, Scale, ablated, arm_without, stage1_arms
from pocket.reproduce.survey import Evidence

#: What LLMs that lack a skill, by that skill, can do with pictures told in words, by ability.
InWords = Mapping[str, Mapping[str, Rate]]
_COMPARED = ("stage 1", "stage 2", "BLIP-2", "BLIP-2 with stage 2", WEAK_ARM)


def draw_all(evidence: Evidence, scale: Scale, in_words: InWords, out: Path) -> dict[str, str]:
    """Draw every plot that the evidence is there for into `out`; returns file names by what they show."""
    out.mkdir(parents=True, exist_ok=True)
    files = {name: out / f"{scale.world.name}-{name}.png" for name in _PLOTS}
    return {name: path.name for name, path in files.items() if draw(name, evidence, scale, in_words, path)}


def draw(name: str, evidence: Evidence, scale: Scale, in_words: InWords, path: Path) -> bool:
    """Draw one plot, if the evidence for it is there: one of an earlier run would show other figures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    if drawn := _PLOTS[name](figure.add_subplot(), evidence, scale, in_words):
        write_atomically(path, figure_png(figure))
    else:
        path.unlink(missing_ok=True)
    return drawn


def _percent(axes: Any, label: str) -> None:
    axes.set_ylim(0, 103)
    axes.set_ylabel(label)
    axes.grid(axis="y", alpha=0.3)


def _points(rates: Sequence[Rate]) -> tuple[list[float], list[list[float]]]:
    """Per cent, and how far down and up the intervals reach."""
    shares = [100 * rate.share for rate in rates]
    below = [max(0.0, share - 100 * rate.interval[0]) for share, rate in zip(shares, rates, strict=True)]
    above = [max(0.0, 100 * rate.interval[1] - share) for share, rate in zip(shares, rates, strict=True)]
    return shares, [below, above]


def _abilities(axes: Any, evidence: Evidence, scale: Scale, in_words: InWords) -> bool:
    shown = [arm for arm in _COMPARED if arm in evidence]
    for k, arm in enumerate(shown):
        shares, errors = _points([evidence.rate(arm, ability) for ability in scale.world.abilities])
        width = 0.8 / max(1, len(shown))
        places = [i + (k - (len(shown) - 1) / 2) * width for i in range(len(shares))]
        axes.bar(places, shares, 0.95 * width, yerr=errors, label=arm, error_kw={"linewidth": 0.8, "alpha": 0.7})
    axes.set_xticks(range(len(scale.world.abilities)), scale.world.abilities, fontsize=8)
    _percent(axes, "right, per cent")
    axes.legend(ncols=5, fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12))
    return bool(shown)


def _ablations(axes: Any, evidence: Evidence, scale: Scale, in_words: InWords) -> bool:
    arms = [arm for arm in reversed(ablated(scale)) if evidence.rate(arm, "abilities").total]
    for row, arm in enumerate(arms):
        shares, errors = _points([evidence.rate(arm, "abilities")])
        axes.errorbar(shares, [row], xerr=errors, fmt="o", color="tab:blue", capsize=2, markersize=5)
        each = [100 * seed.share for seed in evidence.by_seed(arm, "abilities").values() if seed.total]
        axes.plot(each, [row] * len(each), "|", color="tab:gray", markersize=8)
    axes.set_yticks(range(len(arms)), arms, fontsize=7)
    axes.set_xlim(-2, 102)
    label = "all abilities, per cent right (dot: all seeds, with interval; strokes: each seed)"
    axes.set_xlabel(label, fontsize=8)
    axes.grid(axis="x", alpha=0.3)
    return bool(arms)


def _pairs(axes: Any, evidence: Evidence, scale: Scale, in_words: InWords) -> bool:
    arms = {round(share * scale.pairs): stage1_arms(share, scale.world.whole) for share in (*scale.stage1_shares, 1.0)}
    for stage, after in enumerate(("after stage 1", "after stage 2")):
        counts = [count for count, both in arms.items() if both[stage] in evidence]
        for (name, what), style in ((("abilities", "all abilities"), "-"), (scale.world.beside, ":")):
            found, errors = _points([evidence.rate(arms[count][stage], name) for count in counts])
            look = {"fmt": f"o{style}", "color": f"C{stage}", "capsize": 2}
            axes.errorbar(counts, found, yerr=errors, label=f"{what}, {after}", **look)
    axes.set_xscale("log")
    axes.set_xlabel("pairs of an image and a caption in stage 1")
    _percent(axes, "right, per cent")
    axes.legend(fontsize=7, frameon=False)
    return sum(both[0] in evidence for both in arms.values()) > 1


def _length(axes: Any, evidence: Evidence, scale: Scale, in_words: InWords) -> bool:
    shown = [arm for arm in _COMPARED if evidence.pooled(arm).words]
    for k, arm in enumerate(shown):
        found, errors = _points([evidence.rate(arm, f"false {form}") for form in scale.world.forms])
        lengths = [evidence.pooled(arm).mean_words(form) for form in scale.world.forms]
        axes.errorbar(lengths, found, yerr=errors, fmt="o", color=f"C{k}", capsize=2, label=arm)
        for form, x, y in zip(scale.world.forms, lengths, found, strict=True):
            axes.annotate(form, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("words of an answer")
    axes.set_ylabel("objects named that are not there, per cent")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, frameon=False)
    return bool(shown)


def _skills(axes: Any, evidence: Evidence, scale: Scale, in_words: InWords) -> bool:
    skills = [skill for skill in scale.skills if arm_without(skill) in evidence]
    if not skills:
        return False
    rows = [arm_without(skill) for skill in (ALL_SKILLS, *skills)]
    shares = [[100 * evidence.rate(row, ability).share for ability in scale.world.abilities] for row in rows]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            colour = "white" if share > 55 else "black"
            axes.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(scale.world.abilities)), scale.world.abilities, fontsize=8)
    axes.set_yticks(range(len(rows)), ["text with all skills", *rows[1:]], fontsize=8)
    axes.set_title("right about pictures, per cent", fontsize=9)
    return True


def _words(axes: Any, evidence: Evidence, scale: Scale, in_words: InWords) -> bool:
    if not in_words:
        return False
    for k, ability in enumerate(ability for ability in scale.world.abilities if ability != "follow_up"):
        pairs = [
            (100 * rates[ability].share, 100 * seen.share)
            for skill, rates in in_words.items()
            if ability in rates and (seen := evidence.rate(arm_without(skill), ability)).total
        ]
        if pairs:
            axes.plot(*zip(*pairs, strict=True), "o", color=f"C{k}", label=ability, alpha=0.8)
    axes.plot([0, 100], [0, 100], color="tab:gray", linewidth=0.8, linestyle="--")
    axes.set_xlabel("right about pictures told in words, per cent")
    _percent(axes, "right about pictures, per cent")
    axes.legend(fontsize=7, frameon=False)
    return True


_PLOTS: dict[str, Callable[[Any, Evidence, Scale, InWords], bool]] = {
    "abilities": _abilities, "ablations": _ablations, "pairs": _pairs, "length": _length, "skills": _skills,
    "words": _words,
}  # fmt: skip
