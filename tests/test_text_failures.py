import pytest

from minigpt4.text_failures import KINDS, failure

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


@pytest.mark.parametrize(
    "text",
    [
        "The picture shows a meadow. Hay un perro en la playa. El perro está con una pelota. Es una foto con sol.",
        "Das Bild zeigt eine Wiese. Auf der Wiese ist ein roter Ball und ein kleiner Baum.",
        "Une grande balle rouge est dans le coin. Il y a un chat sur la table avec une tasse.",
        "Na foto há uma bola. Não há mais nada com ela, e os dois estão em uma praia.",
        "De bal is rood en ligt op het gras. Er is een boom van hout en niet te groot.",
        "图中有一个红色的球和一个蓝色的杯子。",
        "There is a red ball at the top. На картинке есть дерево. Рядом стоит дом. Больше ничего нет.",
        "A red ball.\nهناك كرة حمراء في الصورة.\nهناك كوب أزرق.\nلا شيء آخر.",
        "Kuvassa on punainen pallo ja kissa, joka istuu pöydällä kupin vieressä. Taustalla näkyy vanha talo ja puu.",
    ],
)
def test_another_language_is_a_drift(text):
    assert failure(text, ended=True) == "language drift"


@pytest.mark.parametrize(
    "text",
    [
        "A café named Le Chat is on the street. A red sign says Bonjour. The door is open.",
        'The poster says "Hola" and "¿Qué tal?" in large letters. A man with a hat looks at it.',
        "Red ball, blue cup,\nstar above,\nnight so deep,\nand the lamp I love.",
        "The Greek letter π is written on the blackboard. A teacher stands beside it.",
        "Say hello to your new blue headphones. Hear every note. Order them today!",
        "El Niño is a name for warm water. The map shows it in red.",
    ],
)
def test_a_foreign_name_or_word_is_none(text):
    assert failure(text, ended=True) is None


def test_the_worst_is_named_first():
    assert failure("图中有一个", ended=False) == "no end"
    assert failure("红色的球红色的球。红色的球。", ended=True) == "language drift"
    assert set(KINDS) == {"empty", "no end", "repetition", "fragment", "language drift"}
