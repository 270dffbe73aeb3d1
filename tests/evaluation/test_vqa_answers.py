"""Answer normalisation and the benchmarks' accuracies, on examples worked by hand from their definitions."""

import pytest

from minigpt4.evaluation.benchmarks.vqa import aokvqa_accuracy, contained, gqa_accuracy, normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A Dog.", "dog"),
        ("the  red\tball", "red ball"),
        ("Two", "2"),
        ("none", "0"),
        ("ten cats", "10 cats"),
        ("dont know", "don't know"),
        ("doesn\u2019t", "doesn't"),
        ("its", "its"),  # a word of its own
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("yes/no", "yes no"),
        ("black-and-white", "black and white"),
        ("red, white", "red white"),
        ("$5!", "5"),
        ("an", ""),
    ],
)
def test_normalisation(answer, expected):
    assert normalize_answer(answer) == expected


def test_vqa_accuracy_leaves_each_human_out():
    people = ["red"] * 2 + ["blue"] * 8
    # Leaving out a "red" (2 times) leaves 1 match: 1/3. Leaving out a "blue" (8 times) leaves 2: 2/3.
    assert vqa_accuracy("Red.", people) == pytest.approx((2 * 1 / 3 + 8 * 2 / 3) / 10)
    # Three said "green": without one of them 2/3 (3 times), else 3/3 (7 times).
    assert vqa_accuracy("green", ["green"] * 3 + ["teal"] * 7) == pytest.approx(0.9)
    assert vqa_accuracy("4", ["four"] * 4 + ["5"] * 6) == 1
    assert vqa_accuracy("one", ["1"] + ["2"] * 9) == pytest.approx(0.3)
    assert vqa_accuracy("six", ["1"] * 10) == 0


def test_aokvqa_accuracy_leaves_none_out():
    assert aokvqa_accuracy("a kite", ["kite"] * 2 + ["plane"] * 8) == pytest.approx(2 / 3)
    assert aokvqa_accuracy("kite", ["kite"] * 3 + ["plane"] * 7) == 1


def test_gqa_accuracy_is_equality():
    assert gqa_accuracy("The bed", ["bed"]) == 1
    assert gqa_accuracy("bed room", ["bed"]) == 0


@pytest.mark.parametrize(
    ("reply", "candidates", "found"),
    [
        ("The ball is red.", ["red", "blue"], ["red"]),
        ("It is dark red", ["red", "dark red"], ["dark red"]),
        ("It is scarred", ["red"], []),
        ("There are three of them.", ["3"], ["3"]),
        ("Yes, there is.", ["yes", "no"], ["yes"]),
        ("There is no dog", ["no"], []),  # no answer to a yes-or-no question
        ("red or blue", ["red", "blue"], ["red", "blue"]),
        ("It is at the top-left.", ["top-left", "top"], ["top-left"]),
    ],
)
def test_what_a_sentence_says(reply, candidates, found):
    assert contained(reply, candidates) == found
