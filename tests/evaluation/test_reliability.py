import pytest

from minigpt4.evaluation.reliability import failure

PAGE = "<html>\n<body>\n<ul><li>First</li><li>Second</li></ul>\n<p>Hi.</p>\n</body>\n</html>"


@pytest.mark.parametrize(
    "text",
    [
        "The picture shows a meadow. There is a large red ball at the top-left. There is a small red cup at the top.",
        "a large red ball at the top-left and a small blue cup in the centre",  # a caption closes no sentence
        "Red.",
        "Ha, ha! The red ball, the red ball rolls away.",
        "Hello, red ball,\nhow are you today?\nIn the meadow\nyou make me want to stay.",
        "A red ball\nunder the sky\na blue cup\nand I",
        "Pizza\nIngredients:\n- tomato\nSteps:\n1. Slice the tomato.\n2. Bake it.",
        "Pizza\nIngredients:\n- tomato\nSteps:\n1. Slice the tomato\n2. Bake it",
        'He said: "The ball is red."',
        "The ball is red.",
        PAGE,
    ],
)
def test_good_language_does_not_fail(text):
    assert failure(text, ended=True) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("...", "empty"),
        ("There is a red ball. There is a cup. There is a red ball.", "repetition"),
        ("the ball is red\na cup\nThe ball is red!", "repetition"),
        ("A red red red ball.", "repetition"),
        ("I see the ball the ball the ball and a cup.", "repetition"),
        ("A red ball and a cup, a red ball and a cup, a red ball.", "repetition"),
        ("<p>Hi</p>" * 3, "repetition"),
        ("There is a red ball at the top. There is a blue", "fragment"),
        ("There is a red ball at the top. There is a blue cup", "fragment"),
        ("There is a.", "fragment"),
        ("a large red ball and a", "fragment"),
        ("a large red ball and a small blue", "fragment"),
        ("a large red ball,", "fragment"),
        ("The ball is here.\nThe cup is near,\nthe day is bright\nand the", "fragment"),
        ("<html><body><p>Hi</p>", "fragment"),
        ("<html><body><p>Hi", "fragment"),
    ],
)
def test_each_failure_is_named(text, kind):
    assert failure(text, ended=True) == kind


def test_an_answer_that_hit_the_limit_has_no_end():
    assert failure("There is a red ball. There is a blue cup.", ended=False) == "no end"
    assert failure("", ended=False) == "empty"
