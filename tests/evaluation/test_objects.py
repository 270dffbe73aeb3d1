"""Objects in texts: synonyms, plurals, compounds, and the categories of other files."""

import pytest

from minigpt4.evaluation.benchmarks.coco import Vocabulary, coco_names, plural, with_article

CATEGORIES = sorted({category for category in coco_names().values() if category is not None})


@pytest.fixture(scope="module")
def coco() -> Vocabulary:
    return Vocabulary(CATEGORIES)


def test_the_table_has_all_eighty_categories_each_named_by_itself():
    assert len(CATEGORIES) == 80
    assert all(coco_names()[category] == category for category in CATEGORIES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Two women ride their bikes past a fire-hydrant.", ["person", "bicycle", "fire hydrant"]),
        ("A hot dog and a dog.", ["hot dog", "dog"]),
        ("People eat hotdogs", ["person", "hot dog"]),
        ("The toilet seat is up; the toilet brush and the toilet paper are new.", ["toilet"]),
        ("A teddy bear beside a polar bear", ["teddy bear", "bear"]),
        ("Glasses of wine, a wine glass, and knives", ["wine glass", "wine glass", "knife"]),
        ("A baby elephant; a baby.", ["elephant", "person"]),
        ("a bus stop, a stop sign and a school bus", ["stop sign", "bus"]),
        ("A carrot cake with a carrot", ["cake", "carrot"]),
        ("a baseball cap, a baseball bat, a baseball", ["baseball bat", "sports ball"]),
        ("A clock tower over the train station", ["clock"]),
        ("the man\u2019s tie; a tie-dye shirt", ["person", "tie", "tie"]),
        ("a carp and a catalogue", []),
    ],
)
def test_mentions(coco, text, found):
    assert coco.mentions(text) == found


@pytest.mark.parametrize(
    ("text", "fruit"),
    [
        ("He peels an orange.", 1),
        ("Oranges in a bowl", 1),
        ("the orange on the table", 1),
        ("an orange cat", 0),
        ("an orange and white cat", 0),
        ("The bus is orange.", 0),
    ],
)
def test_orange_is_a_fruit_only_where_it_is_no_colour(coco, text, fruit):
    assert coco.mentions(text).count("orange") == fruit


def test_every_mention_counts_in_order(coco):
    assert coco.mentions("A dog, a cat, and the dog again") == ["dog", "cat", "dog"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("dog", "dogs"), ("bus", "buses"), ("bench", "benches"), ("puppy", "puppies"), ("toy", "toys"),
        ("man", "men"), ("policeman", "policemen"), ("sheep", "sheep"), ("wine glass", "wine glasses"),
        ("glass of wine", "glasses of wine"), ("scissors", "scissors"), ("knife", "knives"),
    ],
)  # fmt: skip
def test_plurals(word, expected):
    assert plural(word) == expected


def test_a_subset_of_cocos_categories_keeps_the_synonyms_and_the_compounds():
    assert Vocabulary(["dog"]).mentions("A puppy eats a hot dog; a woman watches.") == ["dog"]


def test_other_categories_are_found_by_their_names():
    assert Vocabulary(["teapot", "headphones"]).mentions("Teapots and a pair of headphones, a puppy") == [
        "teapot",
        "headphones",
    ]


def test_articles_of_questions():
    assert [with_article(kind) for kind in ("dog", "oven", "skis", "broccoli")] == [
        "a dog", "an oven", "a pair of skis", "broccoli",
    ]  # fmt: skip
