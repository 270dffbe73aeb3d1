"""What the reproduction trains: every model that a claim compares, as a small graph of arms.

An arm is one model: a recipe with some keys changed, on so many pictures, begun from another arm or from nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from minigpt4.errors import UserError
from pocket.shipped import read_table

#: The sets of the ablations: of stage 2 in pictures, of stage 1 as shares of the whole.
STAGE2_SETS = (50, 200, 800, 3500)
STAGE1_SHARES = (0.01, 0.03, 0.1, 0.3)
#: An LM that knows captions alone, which stands for the weak LLM on the same vision side, and the arms that have it.
WEAK_LLM, WEAK_ARM = "captions alone", "weak LLM"
#: What can be left out of an LLM's text, each an ability that is measured on pictures.
SKILLS = ("poem", "story", "recipe", "advertise", "funny", "website", "count")
ALL_SKILLS, NO_SKILLS = "all skills", "no skills"
#: The lessons without any of the skills, which those with all but one go on from.
FIRST_LESSONS = "the beginner's first lessons"


@dataclass(frozen=True)
class World:
    """What differs between the worlds in which the claims are tested; `reproduce/NAME.yaml` tells each field."""

    name: str
    recipes: str
    variants: Sequence[tuple[str, str, Mapping[str, Any]]]
    abilities: Sequence[str]
    forms: Sequence[str]
    columns: Mapping[str, str]
    beside: tuple[str, str]
    stage1: Mapping[str, Any] = field(default_factory=dict)
    whole: Sequence[str] = ("stage 1", "stage 2")
    weak: bool = False  # are there arms with `WEAK_LLM`?
    more: "Sequence[Arm]" = ()

    @classmethod
    def read(cls, name: str) -> "World":
        """The world of this name."""
        table = read_table(f"reproduce/{name}")["world"]
        return cls(name, **{**table, "more": [Arm(**row) for row in table.get("more", ())]})


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    name: str
    seeds: tuple[int, ...]
    pairs: int  # stage 1's whole set
    descriptions: int  # stage 2's usual set
    stage1_steps: int
    stage2_steps: int
    questions: int  # for each ability and seed
    scenes: int  # for each seed, beside those of the questions
    stage1_shares: tuple[float, ...]
    stage2_sets: tuple[int, ...]
    skills: tuple[str, ...]  # left out of an LLM's text, one at a time
    first_lessons: int  # batches without any of the skills, once
    skill_steps: int  # batches without one of them, for each
    world: World = field(repr=False, kw_only=True, default_factory=lambda: World.read("results"))
    only: tuple[str, ...] = ()  # the arms that are made; none are all


@dataclass(frozen=True)
class Arm:
    """One model, by name.

    Attributes:
        recipe: Packaged recipe that trains it; None for a model that ships, named by `start`, and for an LLM alone.
        data: (stage, pictures) that it is trained on.
        start: The arm that it begins with, or a model that ships; None begins with a fresh projection.
        changes: Keys of the recipe that differ.
        llm: The skill that its LLM's text lacks, or `ALL_SKILLS`, or `NO_SKILLS`; None is the pocket LLM.
        after: Another arm that must be made before.
        asked: Which questions are put to it: "all" for those about scenes too, none if it is only a start for others.
        seeds: None for all of the scale's.
    """

    name: str
    recipe: str | None = None
    data: tuple[int, int] = (0, 0)
    start: str | None = None
    changes: tuple[tuple[str, Any], ...] = ()
    llm: str | None = None
    after: str | None = None
    asked: Literal["none", "abilities", "all"] = "abilities"
    seeds: tuple[int, ...] | None = None


FULL = Scale(
    "full", (0, 1, 2), 6400, 400, 250, 150, 25, 40, STAGE1_SHARES, STAGE2_SETS, SKILLS, 600, 200,
)  # fmt: skip
QUICK = replace(FULL, name="quick", seeds=(0,), questions=20, stage1_shares=(0.01, 0.1), skills=())
#: The shares of stage 1 that `minigpt4 pocket ablations` compares with the whole.
ABLATED_SHARES = (0.01, 0.1)


def stage1_arms(share: float, whole: Sequence[str] = World.whole) -> Sequence[str]:
    """The arms, after stage 1 and after stage 2, that had this share of stage 1's pictures."""
    if share == 1:
        return whole
    return f"stage 1 on {share:.0%}", f"stage 1 on {share:.0%}, then stage 2"


def arm_without(skill: str) -> str:
    """The arm whose LLM's text lacks a skill, after stage 2."""
    return "the beginner with all skills" if skill == ALL_SKILLS else f"the beginner without {skill}"


def ablated(scale: Scale) -> list[str]:
    """The arms of the ablations: architecture, stages, the set of stage 2, the set of stage 1, the baseline."""
    return [
        *("stage 2", *(name for name, _, _ in scale.world.variants), "stage 1", "stage 2 only"),
        *(f"stage 2 on {count}" for count in scale.stage2_sets),
        *(name for share in scale.stage1_shares for name in stage1_arms(share)),
        *("BLIP-2", "BLIP-2 with stage 2"),
        *(f"{name}, stage 1" for name, _, _ in scale.world.variants if scale.world.weak),
        *([WEAK_ARM, f"{WEAK_ARM} with stage 2"] if scale.world.weak else []),
        *(arm.name for arm in scale.world.more),
    ]


def arms(scale: Scale) -> tuple[Arm, ...]:
    """Every arm of a scale, each behind the arm that it begins with."""

    world = scale.world

    def stage1(name: str, count: int, recipe: str = f"{world.recipes}-stage1", **more: Any) -> Arm:
        changes = {"steps": scale.stage1_steps, **world.stage1, **more.pop("changes", {})}
        return Arm(name, recipe, (1, count), changes=tuple(changes.items()), **more)

    def stage2(name: str, start: str | None, count: int = scale.descriptions, **more: Any) -> Arm:
        changes = {"steps": scale.stage2_steps, **more.pop("changes", {})}
        return Arm(name, f"{world.recipes}-stage2", (2, count), start, changes=tuple(changes.items()), **more)

    made = [
        Arm("BLIP-2", start=f"{world.recipes}-blip2", asked="all", seeds=scale.seeds),
        stage2("BLIP-2 with stage 2", "BLIP-2", asked="all"),
        Arm("stage 1", start=f"{world.recipes}-stage1", asked="all"),
        stage2("stage 2", "stage 1", asked="all"),
        stage2("stage 2 only", None, changes={"init": None}),
    ]
    if world.whole == World.whole:
        made[2] = stage1("stage 1", scale.pairs, asked="all")
    for name, recipe, changes in world.variants:
        streams = {"stream": True, "shuffle_buffer": 0} if name == "Q-Former finetuned" else {}
        asked = "abilities" if world.weak else "none"
        made.append(stage1(f"{name}, stage 1", scale.pairs, recipe, changes=changes, asked=asked))
        made.append(stage2(name, f"{name}, stage 1", changes=streams))
    made += [stage2(f"stage 2 on {count}", "stage 1", count) for count in scale.stage2_sets]
    for share in scale.stage1_shares:
        alone, both = stage1_arms(share)
        made += [stage1(alone, round(share * scale.pairs)), stage2(both, alone)]
    if scale.skills:
        made.append(Arm(FIRST_LESSONS, llm=NO_SKILLS, asked="none", seeds=scale.seeds[:1]))
    for skill in (ALL_SKILLS, *scale.skills) if scale.skills else ():
        name = arm_without(skill)
        only: dict[str, Any] = {"llm": skill, "seeds": scale.seeds[:1]}
        made.append(stage1(f"{name}, stage 1", scale.pairs, asked="none", after=FIRST_LESSONS, **only))
        made.append(stage2(name, f"{name}, stage 1", **only))
    if world.weak:
        weak: dict[str, Any] = {"llm": WEAK_LLM, "after": WEAK_LLM, "changes": {"template": "blip2"}, "asked": "all"}
        made.append(Arm(WEAK_LLM, llm=WEAK_LLM, asked="none", seeds=scale.seeds[:1]))
        made.append(stage1(WEAK_ARM, scale.pairs, **weak))
        made.append(stage2(f"{WEAK_ARM} with stage 2", WEAK_ARM, asked="all"))
    return tuple(arm for arm in (*made, *world.more) if not scale.only or arm.name in scale.only)


def jobs(scale: Scale) -> list[tuple[Arm, int]]:
    """(arm, seed) in the order in which they are made: the paper's claims seed by seed, then the skills.

    The first lessons come early: much waits for them, and beside them there should be other work.
    """
    planned = arms(scale)
    found = [(arm, seed) for seed in scale.seeds for arm in planned if seed in (arm.seeds or scale.seeds)]
    return sorted(found, key=lambda job: job[0].llm not in (None, NO_SKILLS, WEAK_LLM))


def ablation_scale(quick: bool, seeds: int | None) -> Scale:
    """The part of a reproduction's scale that its ablations are: the same arms and questions, and no others."""
    return replace(find_scale(quick, seeds), stage1_shares=ABLATED_SHARES, skills=())


def find_scale(quick: bool, seeds: int | None) -> Scale:
    """The scale that a command asks for. Raises UserError for a number of seeds that there are no questions for."""
    scale = QUICK if quick else FULL
    if seeds is None:
        return scale
    if not 1 <= seeds <= 10:
        raise UserError(f"seeds is {seeds}, expected 1 to 10")
    return replace(scale, seeds=tuple(range(seeds)))
