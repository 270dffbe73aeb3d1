"""CHAIR and POPE on hand-worked examples."""

import math

import pytest

from minigpt4.evaluation.benchmarks.coco import Instances, vocabulary
from minigpt4.evaluation.benchmarks.hallucination import (
    SAMPLINGS,
    chair_i,
    count_objects,
    draw_probes,
    f1,
    hallucinated,
    mean_words,
    present_objects,
    probe_figures,
    recall,
    yes_or_no,
)

WORDS = vocabulary(["dog", "cat", "person", "frisbee", "car"])


def test_what_captions_name_is_there_too():
    assert present_objects(["dog"], ["A puppy with a frisbee", "A man"], WORDS) == {"dog", "frisbee", "person"}


def test_chair_by_hand():
    present = {"dog", "frisbee"}
    long = "A dog and another dog chase a frisbee past a car. A man looks on from the car."
    assert hallucinated(long, WORDS, present) == ["car", "person", "car"]
    one = count_objects(long, WORDS, present)
    two = count_objects("A dog.", WORDS, present)
    assert (one.mentions, one.hallucinated, one.found, one.present, one.words) == (6, 3, 2, 2, 18)
    assert (two.mentions, two.hallucinated, two.found) == (1, 0, 1)
    assert chair_i([one, two]) == pytest.approx(3 / 7)
    assert recall([one, two]) == pytest.approx(3 / 4)
    assert mean_words([one, two]) == 10


def test_nothing_named_is_no_hallucination_and_no_rate():
    nothing = count_objects("It is lovely.", WORDS, {"dog"})
    assert nothing.hallucinated == 0
    assert math.isnan(chair_i([nothing]))
    assert math.isnan(recall([count_objects("", WORDS, set())]))


@pytest.fixture
def instances() -> Instances:
    objects = {1: {"dog", "frisbee"}, 2: {"dog", "frisbee", "person"}, 3: {"person", "car"}, 4: {"cat"}, 5: set()}
    kinds = ("dog", "cat", "person", "frisbee", "car")
    names = {image: f"{image}.jpg" for image in objects}
    return Instances(kinds, names, {image: frozenset(found) for image, found in objects.items()})


def test_absent_objects_are_drawn_as_the_three_ways_say(instances):
    probes = draw_probes(instances, [1], per_image=1)
    there = [probe for probe in probes if probe.present]
    assert len(there) == 1
    assert there[0].kind in instances.objects[1]
    assert there[0].samplings == SAMPLINGS
    absent = {way: [p.kind for p in probes if not p.present and way in p.samplings] for way in SAMPLINGS}
    assert absent["popular"] == ["person"]  # in two pictures; cat and car in one each
    assert absent["adversarial"] == ["person"]  # the only one ever seen beside a dog or frisbee
    assert absent["random"][0] in {"cat", "person", "car"}


def test_a_question_is_asked_once_and_answers_are_balanced_in_every_way(instances):
    probes = draw_probes(instances, list(instances.objects), per_image=2)
    assert len({(probe.image, probe.kind) for probe in probes}) == len(probes)
    for way in SAMPLINGS:
        drawn = [probe.present for probe in probes if way in probe.samplings]
        assert drawn.count(True) == drawn.count(False) > 0
    assert not [probe for probe in probes if probe.image == 5]  # nothing is there to ask about
    assert probes == draw_probes(instances, list(instances.objects), per_image=2)


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
