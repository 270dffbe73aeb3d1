import itertools
import random

import pytest

from pocket.measure.truth import check, places_in, read
from pocket.text.conversations import answer
from pocket.text.requests import ABILITIES, PICTURE_TYPES, Request, follow_up, request
from pocket.world.world import KINDS, Picture, Thing, sample

SCENE = Picture(
    "scene", "meadow",
    (Thing("ball", "red", "large", "top-left"), Thing("cup", "blue", "small", "right")), seed=0,
)  # fmt: skip
FOOD = Picture("food", "pizza", (Thing("tomato"), Thing("olive")), seed=0)
PRODUCT = Picture("product", "marble", (Thing("watch", "red"),), seed=0)
ODD = Picture("odd", "beach", (Thing("cat", "black"), Thing("guitar")), seed=0)
DRAFT = Picture("draft", "Harbor", (Thing("navigation"), Thing("list"), Thing("button")), seed=0)


def ask(ability: str, expected: str | None = None, text: str = "") -> Request:
    return Request(ability, text, None, expected)


@pytest.mark.parametrize("ability", ABILITIES)
def test_every_reference_answer_succeeds_and_fails_for_a_picture_that_differs(ability):
    rng = random.Random(0)
    refused = compared = 0
    for picture_type in PICTURE_TYPES[ability]:
        pictures = [sample(seed, picture_type) for seed in range(40)]
        for picture, other in itertools.pairwise(pictures):
            asked = request(ability, picture, rng)
            text = answer(asked, picture, rng)
            verdict = check(asked, picture, text)
            assert verdict.success, (verdict, text)
            if asked.expected is None:
                compared += 1
                refused += not check(asked, other, text).success
    # Two pictures can share every fact that a poem or an advertisement names.
    assert refused >= 0.85 * compared


def test_reference_follow_ups_succeed():
    rng = random.Random(1)
    for seed in range(60):
        picture = sample(seed, "scene")
        asked = follow_up(request("where", picture, rng), picture, rng)
        text = answer(asked, picture, rng)
        assert check(asked, picture, text).success, (asked, text)


def test_read_finds_colours_sizes_and_places_of_each_kind():
    claims = read("A large red ball is at the top-left, and boxes are in the centre. The cup is blue.", KINDS)
    assert claims.keys() == {"ball", "box", "cup"}
    assert (claims["ball"].colours, claims["ball"].sizes, claims["ball"].places) == ({"red"}, {"large"}, {"top-left"})
    assert claims["box"].places == {"centre"}
    assert claims["cup"].colours == {"blue"}


def test_read_takes_a_colour_for_the_kind_right_after_it_only():
    claims = read("the ball is red cups are blue hats and a red, shiny drum", KINDS)
    assert claims["ball"].colours == set()
    assert claims["cup"].colours == {"red"}
    assert claims["hat"].colours == {"blue"}
    assert claims["drum"].colours == set()


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("A ball at the top and a cup at the bottom-left.", {"ball": {"top"}, "cup": {"bottom-left"}}),
        ("At the top is a ball, in the centre a cup.", {"ball": {"top"}, "cup": {"centre"}}),
        ("A ball at the top and at the left there is a cup.", {"ball": {"top"}, "cup": {"left"}}),
        ("There is a ball. It is at the top right.", {"ball": {"top-right"}}),
        ("A ball to the left of a cup.", {"ball": set(), "cup": set()}),
        ("A ball at the left of the picture.", {"ball": {"left"}}),
        ("A ball at the top, left, right.", {"ball": {"top", "left", "right"}}),
        ("In the centre stands a ball at the left.", {"ball": {"centre", "left"}}),
    ],
)
def test_a_place_belongs_to_the_object_in_its_sentence(text, places):
    assert {kind: claim.places for kind, claim in read(text, KINDS).items()} == places


def test_places_match_longest_first():
    assert [place for _, place in places_in("top-left, top, the center, bottom right of the image")] == [
        "top-left", "top", "centre", "bottom-right",
    ]  # fmt: skip
    assert places_in("top-left of the cup") == []


def test_description_scores_each_object():
    text = "A meadow. At the top-left there is a large red ball. The green cup is on the left."
    verdict = check(ask("describe"), SCENE, text)
    assert not verdict.success
    assert (verdict.objects, verdict.kind_colour_right, verdict.placed, verdict.place_right) == (2, 1, 2, 1)


GOOD_SCENE = "A meadow with a large red ball at the top-left and a blue cup on the right."


@pytest.mark.parametrize(
    ("picture", "text", "reason"),
    [
        (SCENE, GOOD_SCENE, ""),
        (SCENE, GOOD_SCENE.replace("meadow", "field"), "does not name meadow"),
        (SCENE, GOOD_SCENE.replace("meadow", "meadow near a beach"), "names beach beside meadow"),
        (SCENE, GOOD_SCENE.replace("large", "small"), "says ball is small, not large"),
        (SCENE, GOOD_SCENE.replace("on the right", "there"), "does not put cup at right"),
        (SCENE, GOOD_SCENE.replace("top-left", "top"), "says ball is top, not top-left"),
        (SCENE, GOOD_SCENE + " There is a tree.", "names tree, which is not there"),
        (SCENE, GOOD_SCENE + " There is a dog.", "names dog, which is not there"),
        (SCENE, GOOD_SCENE + " There is a green ball.", "says ball is green, not red"),
        (SCENE, GOOD_SCENE.replace("blue cup", "cup"), "does not name blue cup"),
        (FOOD, "A plate of pizza with tomatoes and olives.", ""),
        (FOOD, "A plate of pizza with tomatoes.", "does not name olive"),
        (FOOD, "A plate of pizza with tomatoes, olives and bacon.", "names bacon, which is not there"),
        (FOOD, "A salad with tomatoes and olives.", "does not name pizza"),
        (PRODUCT, "A red watch lies on marble.", ""),
        (PRODUCT, "A red watch lies on wood.", "does not name marble"),
        (PRODUCT, "A blue watch lies on marble.", "says watch is blue, not red"),
        (ODD, "On the beach a black cat is playing a guitar.", ""),
        (ODD, "On the beach a black cat is sitting.", "does not name guitar"),
        (ODD, "On the beach a black cat is playing a guitar to a dog.", "names dog, which is not there"),
        (DRAFT, "This image shows a draft titled Harbor with a navigation bar, a list and a button.", ""),
        (DRAFT, "A draft titled Harbor with a navigation bar, an image, a list and a button.", "names image, which"),
        (DRAFT, "A draft titled Garden with a navigation bar, a list and a button.", "does not name Harbor"),
        (DRAFT, "A draft titled Harbor with a navigation bar and a button.", "does not name list"),
    ],
)
def test_descriptions(picture, text, reason):
    verdict = check(ask("describe"), picture, text)
    assert verdict.success == (reason == "")
    assert verdict.reason.startswith(reason)


POEM = "The red ball sleeps,\nthe blue cup keeps\nthe light of day,\nfar, far away."
STORY = "Once a red ball met a blue cup. They became friends. Then they laughed until night."
RECIPE = "Pizza\nIngredients:\n- tomato\n- olives\nSteps:\n1. Slice the tomato.\n2. Halve each olive.\n3. Bake it."
ADVERT = "Meet the red watch. It never fails you. Buy it today!"
FUNNY = "A black cat plays a guitar, and cats have no fingers."
PAGE = (
    "<html><head><title>Harbor</title></head><body><h1>Harbor</h1><nav><ul><li><a>Home</a></li></ul></nav>"
    "<ul><li>One</li></ul><button>Go</button></body></html>"
)


@pytest.mark.parametrize(
    ("ability", "picture", "text", "reason"),
    [
        ("poem", SCENE, POEM, ""),
        ("poem", SCENE, POEM.replace("\n", " "), "has 1 lines"),
        ("poem", SCENE, POEM.replace("blue", "old"), "does not say that cup is blue"),
        ("poem", SCENE, POEM.replace("blue", "green"), "says cup is green, not blue"),
        ("poem", SCENE, POEM.replace("far, far", "with a boat"), "names boat"),
        ("poem", SCENE, POEM + "\n" + "word " * 15, "has a line of 15 words"),
        ("story", SCENE, STORY, ""),
        ("story", SCENE, "Once a red ball met a blue cup. They became friends.", "has 2 sentences"),
        ("story", SCENE, "There is a red ball. There is a blue cup. It is a meadow.", "tells no events"),
        ("story", SCENE, STORY.replace("blue cup", "friend"), "does not name cup"),
        ("story", SCENE, STORY.replace("Then they", "Then a key"), "names key"),
        ("recipe", FOOD, RECIPE, ""),
        ("recipe", FOOD, RECIPE.replace("Pizza", "Soup"), "title does not name pizza"),
        ("recipe", FOOD, RECIPE.replace("- olives\n", ""), "lists tomato as ingredients"),
        ("recipe", FOOD, RECIPE.replace("- olives", "- olives\n- bacon"), "lists tomato, olive, bacon"),
        ("recipe", FOOD, RECIPE.replace("- olives", "- olives\n- gravel"), "lists 'gravel'"),
        ("recipe", FOOD, RECIPE.replace("each olive", "them"), "never uses olive"),
        ("recipe", FOOD, RECIPE.replace("Bake it", "Add salmon"), "names salmon"),
        ("recipe", FOOD, RECIPE.replace("\n3. Bake it.", ""), "has 2 steps"),
        ("recipe", FOOD, RECIPE.replace("3.", "5."), "has 3 steps, or steps not numbered"),
        ("advertise", PRODUCT, ADVERT, ""),
        ("advertise", PRODUCT, ADVERT.replace("red ", ""), "does not say that watch is red"),
        ("advertise", PRODUCT, ADVERT.replace("Buy it today", "Wow"), "has no call to action"),
        ("advertise", PRODUCT, "Buy the red watch today!", "has one sentence"),
        ("advertise", PRODUCT, ADVERT + " And a bag for free.", "names bag"),
        ("funny", ODD, FUNNY, ""),
        ("funny", ODD, "A black cat plays a guitar and it is funny.", "gives no reason"),
        ("funny", ODD, FUNNY.replace("guitar", "song"), "does not name guitar"),
        ("funny", ODD, FUNNY.replace("black", "white"), "says cat is white"),
        ("website", DRAFT, PAGE, ""),
        ("website", DRAFT, "Here it is:\n```html\n" + PAGE + "\n```", ""),
        ("website", DRAFT, "A page with a button.", "holds no HTML"),
        ("website", DRAFT, PAGE.replace("<title>Harbor", "<title>Garden"), "has 'Garden' as <title>"),
        ("website", DRAFT, PAGE.replace("<h1>Harbor</h1>", ""), "has '' as <h1>"),
        ("website", DRAFT, PAGE.replace("</button>", ""), "closes <body> inside <button>"),
        ("website", DRAFT, PAGE.replace("</body></html>", ""), "never closes <body>"),
        ("website", DRAFT, PAGE.replace("<button>Go</button>", ""), "holds navigation, list, not"),
        ("website", DRAFT, PAGE.replace("<ul><li>One", "<p>x</p><ul><li>One"), "holds navigation, text, list, button"),
        ("website", DRAFT, PAGE.replace("<button>Go</button>", "<input type=submit>"), ""),
        ("website", DRAFT, PAGE.replace("<button>", "<table></table><button>"), "adds <table>"),
        ("website", DRAFT, PAGE.replace("<html>", "").replace("</html>", ""), "is not a whole page"),
    ],
)
def test_abilities(ability, picture, text, reason):
    verdict = check(ask(ability), picture, text)
    assert verdict.success == (reason == ""), verdict
    assert verdict.reason.startswith(reason)


def test_website_order_counts():
    swapped = PAGE.replace("<ul><li>One</li></ul><button>Go</button>", "<button>Go</button><ul><li>One</li></ul>")
    assert (
        check(ask("website"), DRAFT, swapped).reason == "holds navigation, button, list, not navigation, list, button"
    )


@pytest.mark.parametrize(
    ("ability", "expected", "text", "success"),
    [
        ("count", "two", "There are two objects.", True),
        ("count", "two", "I count 2.", True),
        ("count", "two", "There are three objects.", False),
        ("count", "two", "Two or three.", False),
        ("count", "two", "There are two objects, a ball and a boat.", False),
        ("colour", "blue", "The cup is blue.", True),
        ("colour", "blue", "Blue.", True),
        ("colour", "blue", "It is red.", False),
        ("colour", "blue", "Blue or green.", False),
        ("colour", "blue", "The ball is blue.", False),
        ("where", "right", "The cup is on the right.", True),
        ("where", "right", "It is at the bottom-right.", False),
        ("where", "right", "It is on the right or the left.", False),
        ("where", "top-left", "At the top left.", True),
        ("where", "right", "The ball is on the right.", False),
        ("exists", "yes", "Yes, there is a red ball.", True),
        ("exists", "yes", "Yes, there is a green ball.", False),
        ("exists", "yes", "Yes, no.", False),
        ("exists", "no", "No, there is no green ball.", True),
        ("exists", "no", "No, there is not.", True),
        ("exists", "no", "Yes, there is.", False),
        ("exists", "no", "No, but there is a boat.", False),
    ],
)
def test_short_answers(ability, expected, text, success):
    asked = ask(ability, expected, "Is there a green ball?" if ability == "exists" else "")
    assert check(asked, SCENE, text).success == success


def test_a_short_question_needs_its_expected_answer():
    with pytest.raises(ValueError, match="expected answer"):
        check(ask("count"), SCENE, "two")
