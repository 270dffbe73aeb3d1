import pytest

from minigpt4.statistics import Rate
from pocket.measure.survey import ABILITIES, Judged, Rates, difference
from pocket.measure.truth import Finding, check
from pocket.reproduce.claims import MARGIN, Outcome, at_least, judge, more, not_more, read_claims
from pocket.reproduce.experiments import FULL, arms
from pocket.reproduce.survey import FORMS, Evidence, Figures, draw_exam, figures
from pocket.world import world

CLAIMS = read_claims(FULL.world)


def made(**rates):
    """Figures with these rates of 100 for every seed, `_` standing for a blank."""
    found = Figures(Rates({name.replace("_s_", "'s ").replace("__", " "): Rate(n, 100) for name, n in rates.items()}))
    found.words = {"caption": (700, 100), "description": (3000, 100), "story": (4000, 100)}
    return found


GOOD = {
    "abilities": 90, **dict.fromkeys(ABILITIES, 90), "fails_describe": 2, "fails_poem": 1, "kind_colour": 98,
    "covered__description": 95,
    "covered__caption": 40, "covered__short": 30, "false__caption": 0, "false__description": 20, "false__story": 40,
    "right__kind": 99, "right__colour": 98, "right__size": 97, "right__place": 60, "scene_s_colour": 95,
    "scene_s_where": 50,
}  # fmt: skip
WEAK = {**GOOD, "abilities": 2, **dict.fromkeys(ABILITIES, 2), "covered__description": 30}


def evidence(**changed):
    """What the paper found, as made figures of three seeds, but for the arms in `changed`."""
    arms = {
        "stage 2": GOOD, "stage 1": GOOD | {"fails_describe": 35, "fails_poem": 32}, "BLIP-2": WEAK,
        "BLIP-2 with stage 2": WEAK, "no Q-Former": GOOD | {"abilities": 85}, "three layers": GOOD | {"abilities": 70},
        "Q-Former finetuned": GOOD | {"abilities": 60},
    }  # fmt: skip
    for name, rates in changed.items():
        arms[name] = arms[name] | rates  # a new mapping: arms share theirs
    return Evidence({name: {seed: made(**rates) for seed in range(3)} for name, rates in arms.items()})


def outcomes(found):
    return {claim.key: claim.outcome(found) for claim in CLAIMS}


def test_all_claims_hold_on_figures_like_the_papers():
    assert set(outcomes(evidence()).values()) == {Outcome.HOLDS}
    assert len(CLAIMS) == 7


#: A claim, an arm, its figures that refute the claim, and the other claims that rest on the same figures.
@pytest.mark.parametrize(
    ("key", "arm", "rates", "others"),
    [
        ("strong-llm", "BLIP-2", {"poem": 95}, set()),
        ("second-stage", "stage 1", {"fails_describe": 3}, set()),
        ("second-stage", "stage 2", {"fails_poem": 40}, set()),
        ("coverage", "BLIP-2", {"covered__description": 97}, set()),
        ("blip2-stage2", "BLIP-2 with stage 2", {"abilities": 20}, set()),
        ("one-layer", "three layers", {"abilities": 99}, set()),
        ("hallucination", "stage 2", {"false__story": 0, "false__description": 0}, set()),
        ("positions", "stage 2", {"right__place": 99}, set()),
        ("strong-llm", "stage 2", {"abilities": 1}, {"one-layer"}),
    ],
)
def test_claim_that_does_not_hold_is_said_not_to(key, arm, rates, others):
    found = outcomes(evidence(**{arm: rates}))
    assert {name for name, outcome in found.items() if outcome is Outcome.FAILS} == {key} | others


def test_world_tells_the_abilities_and_forms_that_are_measured():
    assert (FULL.world.abilities, FULL.world.forms) == ([*ABILITIES], [*FORMS])


def test_claims_name_what_is_trained_and_measured():
    exam = draw_exam(1, 1, 0)
    firsts = [exam.pictures[question.picture].items[0].kind for question in exam.questions]
    counted = figures(exam, [Judged(f"There is a {kind}.", None, Finding(False)) for kind in firsts])
    trained, measured = {arm.name for arm in arms(FULL)}, {*counted.rates, *(f"words {form}" for form in FORMS)}
    for claim in CLAIMS:
        assert {test["is"] for test in claim.tests} <= {"more", "not more", "at least", "shown"}
        measures = [test[side] for test in claim.tests for side in ("one", "other") if isinstance(test[side], list)]
        for arm, name in [*measures, *(row[1:] for row in claim.ours)]:
            assert arm in trained
            assert name in measured, f"{claim.key}: {name}"


def test_claims_without_figures_are_not_judged():
    assert set(outcomes(Evidence({})).values()) == {Outcome.OPEN}


def test_what_is_only_shown_decides_nothing():
    found = dict(evidence().of)
    found["the beginner with all skills"] = {0: made(**GOOD | {"abilities": 0})}
    claim = CLAIMS[0]
    shown = [test for test in claim.tests if test["is"] == "shown"]
    assert judge(shown[0], Evidence(found)) == ("0 % (0–4) against 2 % (1–4): -2 points (-4 to +2)", None)
    assert claim.outcome(Evidence(found)) is Outcome.HOLDS


def test_more_needs_the_whole_interval_and_every_seed():
    high, low = Rate(90, 100), Rate(50, 100)
    assert more(high, low) is Outcome.HOLDS
    assert more(low, high) is Outcome.FAILS
    assert more(low, low) is Outcome.FAILS  # not above
    assert more(Rate(12, 20), Rate(10, 20)) is Outcome.OPEN  # too few to tell
    assert more(Rate(5050, 10_000), Rate(5000, 10_000)) is Outcome.FAILS  # surely below the margin
    assert more(high, low, [(Rate(60, 60), Rate(10, 60)), (Rate(30, 40), Rate(40, 40))]) is Outcome.OPEN


def test_no_more_needs_to_be_surely_within_the_margin():
    assert not_more(Rate(500, 1000), Rate(500, 1000)) is Outcome.HOLDS
    assert not_more(Rate(90, 100), Rate(50, 100)) is Outcome.FAILS
    assert not_more(Rate(10, 20), Rate(10, 20)) is Outcome.OPEN
    assert MARGIN == 0.05


def test_at_least_needs_the_whole_interval():
    found = [at_least(Rate(n, 100), 0.10) for n in (30, 2, 10)]
    assert found == [Outcome.HOLDS, Outcome.FAILS, Outcome.OPEN]


def test_interval_of_a_difference_is_newcombes():
    # Newcombe 1998, table II, (a): 56/70 against 48/80, method 10: 0.0524 to 0.3339
    found, low, high = difference(Rate(56, 70), Rate(48, 80))
    assert (round(found, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)
    with pytest.raises(ValueError, match="observations"):
        difference(Rate(0, 0), Rate(1, 2))


def test_answers_are_counted_by_form():
    exam = draw_exam(1, 2, 0)
    scenes = [question for question in exam.questions if question.ability in {f"scene's {form}" for form in FORMS}]
    assert len(exam.pictures) == 5 + 2
    assert len(scenes) == 6

    def record(question):
        picture = exam.pictures[question.picture]
        item = picture.items[0]
        absent = next(kind for kind in world.KINDS if kind not in {other.kind for other in picture.items})
        text = f"There is a {item.size} {item.colour} {item.kind} at the {item.place}."
        if question.ability == "scene's story":
            text += f" Once a {absent} came."
        return Judged(text, None, check(question.request, picture, text))

    found = figures(exam, [record(question) for question in exam.questions])
    assert found.rates["false description"] == Rate(0, 2)
    assert found.rates["false story"] == Rate(2, 4)
    assert found.rates["falsely story"] == Rate(2, 2)
    objects = sum(len(picture.items) for picture in exam.pictures[5:])
    assert found.rates["right kind"] == Rate(2, objects)
    assert found.rates["right place"] == found.rates["right colour"] == Rate(2, 2)
    assert found.words["description"][1] == 2
    assert (found + found).rates["false story"] == Rate(4, 8)
    assert (found + found).mean_words("story") == found.mean_words("story")


def test_exams_of_two_seeds_share_no_picture():
    seeds = [{picture.seed for picture in draw_exam(50, 100, seed).pictures} for seed in (0, 1, 9)]
    assert len(set.union(*seeds)) == sum(map(len, seeds))
    first, count = world.SEEDS["evaluation"]
    assert all(first <= seed < first + count for found in seeds for seed in found)
