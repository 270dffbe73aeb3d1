"""The lexical check of coverage: stems and overlap."""

import pytest

from minigpt4.evaluation.benchmarks.coverage import content_words, covers, stem


@pytest.mark.parametrize(
    "family",
    [
        ("ride", "rides", "riding"), ("run", "runs", "running"), ("box", "boxes"), ("berry", "berries"),
        ("walk", "walked", "walking"), ("dog", "dogs", "dog's"), ("horse", "horses"), ("jump", "jumped", "jumping"),
        ("sit", "sitting"),
    ],
)  # fmt: skip
def test_forms_of_a_word_have_one_stem(family):
    assert len({stem(word) for word in family}) == 1


@pytest.mark.parametrize(("one", "other"), [("glass", "gla"), ("bus", "bu"), ("red", "r"), ("king", "k")])
def test_different_words_stay_different(one, other):
    assert stem(one) != stem(other)


def test_words_without_content_do_not_count():
    assert content_words("There is a picture of the dogs on it") == {"dog"}


def test_three_of_four_content_words_cover_a_caption():
    caption = "A brown dog catches a frisbee"  # brown, dog, catch, frisbee
    assert not covers(caption, "The dogs are brown.")
    assert covers(caption, "In the park, dogs are catching a frisbee.")
    assert covers("It is there", ""), "a caption without any"
