"""CHAIR and POPE on hand-worked examples."""

import math

import pytest

from minigpt4.evaluation.benchmarks.coco import Annotations, Vocabulary
from minigpt4.evaluation.benchmarks.hallucination import (
    SAMPLINGS,
    count_objects,
    draw_probes,
    f1,
    probe_figures,
    ratio,
    yes_or_no,
)

WORDS = Vocabulary(["dog", "cat", "person", "frisbee", "car"])


def test_chair_by_hand():
    present = {"dog", "frisbee"}
    long = "A dog and another dog chase a frisbee past a car. A man looks on from the car."
    one, wrong = count_objects(long, WORDS, present)
    two, _ = count_objects("A dog.", WORDS, present)
    assert wrong == ["car", "person", "car"]
    assert one == {"mentions": 6, "hallucinated": 3, "found": 2, "present": 2, "words": 18}
    assert two == {"mentions": 1, "hallucinated": 0, "found": 1, "present": 2, "words": 2}
    assert ratio("hallucinated", "mentions", [one, two]) == pytest.approx(3 / 7)
    assert ratio("found", "present", [one, two]) == pytest.approx(3 / 4)


def test_nothing_named_is_no_hallucination_and_no_rate():
    nothing, _ = count_objects("It is lovely.", WORDS, {"dog"})
    assert nothing["hallucinated"] == 0
    assert math.isnan(ratio("hallucinated", "mentions", [nothing]))
    assert math.isnan(ratio("found", "present", [count_objects("", WORDS, set())[0]]))


@pytest.fixture
def instances() -> Annotations:
    objects = {1: {"dog", "frisbee"}, 2: {"dog", "frisbee", "person"}, 3: {"person", "car"}, 4: {"cat"}, 5: set()}
    kinds = ("dog", "cat", "person", "frisbee", "car")
    names = {image: f"{image}.jpg" for image in objects}
    return Annotations(names, {image: sorted(found) for image, found in objects.items()}, kinds)


def test_absent_objects_are_drawn_as_the_three_ways_say(instances):
    probes = draw_probes(instances, [1], per_image=1)
    there = [probe for probe in probes if probe.present]
    assert len(there) == 1
    assert there[0].kind in instances.of_image[1]
    assert there[0].samplings == SAMPLINGS
    absent = {way: [p.kind for p in probes if not p.present and way in p.samplings] for way in SAMPLINGS}
    assert absent["popular"] == ["person"]  # in two pictures; cat and car in one each
    assert absent["adversarial"] == ["person"]  # the only one ever seen beside a dog or frisbee
    assert absent["random"][0] in {"cat", "person", "car"}


def test_a_question_is_asked_once_and_answers_are_balanced_in_every_way(instances):
    probes = draw_probes(instances, list(instances.of_image), per_image=2)
    assert len({(probe.image, probe.kind) for probe in probes}) == len(probes)
    for way in SAMPLINGS:
        drawn = [probe.present for probe in probes if way in probe.samplings]
        assert drawn.count(True) == drawn.count(False) > 0
    assert not [probe for probe in probes if probe.image == 5]  # nothing is there to ask about
    assert probes == draw_probes(instances, list(instances.of_image), per_image=2)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", True),
        ("Yes, there is no doubt.", True),
        ("yes.", True),
        ("There is a dog in the picture.", True),
        ("There are two dogs. No cat, though.", True),
        ("No.", False),
        ("no, I cannot see one", False),
        ("There is no dog in the image.", False),
        ("There isn\u2019t a dog.", False),
        ("The image does not show a dog.", False),
        ("I see no dog here.", False),
        ("A dog.", None),
        ("I cannot tell.", None),
        ("Nobody knows. Yes.", None),
        ("", None),
    ],
)
def test_yes_or_no(answer, expected):
    assert yes_or_no(answer) is expected


def test_figures_of_yes_and_no_by_hand():
    answers = [(True, True)] * 3 + [(True, False), (True, None)] + [(False, False)] * 2 + [(False, True), (False, None)]
    found = probe_figures(answers)
    assert (found["accuracy"].share, found["accuracy"].undecided) == (pytest.approx(5 / 9), 2)
    assert found["precision"].share == pytest.approx(3 / 4)
    assert found["recall"].share == pytest.approx(3 / 5)
    assert found["f1"].value == pytest.approx(2 * 0.75 * 0.6 / (0.75 + 0.6))
    assert found["yes"].share == pytest.approx(4 / 9)
    assert found["neither"].share == pytest.approx(2 / 9)
    assert math.isnan(f1([(False, False)]))
