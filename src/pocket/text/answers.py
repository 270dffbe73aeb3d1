"""What a good answer looks like: poems, stories, recipes, advertisements, jokes explained, web pages.

The pocket LLM learns its abilities from these texts. They are made from the truth of a `Picture` alone and mix what the
picture says with what only a language model knows: that guitars are played, that fish have no legs, how to cut an
onion. No text names a kind of object that the picture does not hold, so that an invention can be told from a flourish.
"""

import random

from pocket.shipped import read_table
from pocket.text.phrases import article, doing, elements, in_setting, join, name, sentence
from pocket.world.world import Picture

_TABLE = read_table("text/answers")
_PLURAL_PRODUCTS = {"headphones", "sunglasses"}


def subjects(picture: Picture) -> list[str]:
    """What a poem or story about the picture must name, without articles: "red ball", or an ingredient."""
    return [name(item) for item in picture.items]


def poem(picture: Picture, rng: random.Random) -> str:
    """Four lines or more in one of five forms: couplets, free verse, a greeting, a riddle, a lullaby."""
    form = rng.choice(("couplets", "nature", "greeting", "riddle", "lullaby"))
    names = subjects(picture)
    lines: list[str]
    if form == "couplets":
        elsewhere = ("Come and see what I have found,", "look a little bit around.")
        lines = list(_TABLE["opening_couplets"].get(picture.setting, elsewhere))
        for k in range(0, len(names) - 1, 2):
            lines += [line.format(names[k], names[k + 1]) for line in rng.choice(_TABLE["couplets"])]
        if len(names) % 2:
            lines += [f"See the {names[-1]} come along,", rng.choice(_TABLE["last_lines"])]
    elif form == "nature":
        lines = [f"{_place(picture, rng)},"]
        for item, subject in zip(picture.items, names, strict=True):
            nature = rng.choice(_TABLE["nature"].get(item.kind, ("a small delight", "a gift of the day")))
            lines.append(rng.choice((f"{article(subject)}, {nature},", f"the {subject} is {nature},")))
        lines += rng.choice(_TABLE["nature_endings"])
    else:
        verses = _TABLE["poems"][form]
        lines = [_one_of(verses["each"], rng).format(subject) for subject in names]
        place = _place(picture, rng)
        lines += [line.format(place=place) for line in verses["ending"]]
    return "\n".join(lines)


def _one_of(phrases: str | list[str], rng: random.Random) -> str:
    return phrases if isinstance(phrases, str) else rng.choice(phrases)


def _place(picture: Picture, rng: random.Random) -> str:
    if picture.type in ("scene", "odd"):
        return sentence(in_setting(picture, rng))
    return {"food": "On the table", "product": "In the shop"}[picture.type]


def story(picture: Picture, rng: random.Random) -> str:
    """Four sentences or more in one of four forms: a fairy tale, a child's walk, a mystery, a talk among things."""
    form = rng.choice(("tale", "walk", "mystery", "talk"))
    told = _TABLE["stories"][form]
    first, *others = subjects(picture)
    where = _place(picture, rng)
    words = {"where": where[0].lower() + where[1:], "first": first, "a_first": article(first)}
    if form == "walk":
        words["who"] = rng.choice(_TABLE["children"])
    parts = [told["opening"].format(**words)]
    parts += [_one_of(told["each"], rng).format(**words, other=other, an_other=article(other)) for other in others]
    return " ".join([*parts, rng.choice(told["endings"]).format(**words)])


def recipe(picture: Picture, rng: random.Random) -> str:
    """Title, list of ingredients, numbered steps, for a picture of food."""
    ingredients = [item.kind for item in picture.items]
    first, last = _TABLE["dish_steps"][picture.setting]
    steps = [first, *(_TABLE["prepare"][ingredient] for ingredient in ingredients)]
    if rng.random() < 0.5:
        steps.append(rng.choice((f"Add everything to the {picture.setting}", f"Put it all on the {picture.setting}")))
    steps.append(last)
    dish = picture.setting
    titles = (f"{dish.capitalize()} with {join(ingredients)}", f"Homemade {dish}", f"My favourite {dish}")
    lines = [rng.choice(titles), "Ingredients:", *(f"- {ingredient}" for ingredient in ingredients), "Steps:"]
    lines += [f"{number}. {step}." for number, step in enumerate(steps, 1)]
    return "\n".join(lines)


def advertisement(picture: Picture, rng: random.Random) -> str:
    """Three sentences that name the product with its colour, praise it, and call to action."""
    item = picture.items[0]
    plural = item.kind in _PLURAL_PRODUCTS
    thing, mood = name(item), _TABLE["moods"][item.colour or "white"]
    this, pronoun = ("these", "them") if plural else ("this", "it")
    words = {"thing": thing, "mood": mood, "this": this, "it": pronoun, "it_is": "they are" if plural else "it is"}
    parts = rng.choice(_TABLE["advertisements"]), rng.choice(_TABLE["benefits"][item.kind]), rng.choice(_TABLE["calls"])
    return " ".join(parts).format(**words)


def funny(picture: Picture, rng: random.Random) -> str:
    """Why the picture is funny: what the animal does, and why that cannot be."""
    animal, prop = picture.items[0], picture.items[1].kind
    act, limit, need = doing(picture), rng.choice(_TABLE["animal_limits"][animal.kind]), _TABLE["prop_needs"][prop]
    many = animal.kind if animal.kind == "fish" else f"{animal.kind}s"
    words = {"thing": article(name(animal)), "doing": act, "limit": limit, "need": need, "many": many}
    return rng.choice(_TABLE["jokes"]).format(**words)


def website(picture: Picture, rng: random.Random) -> str:
    """An HTML page with the draft's title and its elements in order."""
    title = picture.setting
    body = "\n".join(rng.choice(_TABLE["html"][item.kind]).format(title=title) for item in picture.items)
    return f"<html>\n<head><title>{title}</title></head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>"


def summary(picture: Picture, rng: random.Random) -> str:
    """What the picture holds, in a clause; used to decline a request that does not fit the picture."""
    if picture.type == "scene":
        return join([article(subject) for subject in subjects(picture)])
    if picture.type == "odd":
        return f"{article(name(picture.items[0]))} {doing(picture)}"
    if picture.type == "food":
        return f"{picture.setting} with {join(subjects(picture))}"
    if picture.type == "product":
        return article(name(picture.items[0]))
    return f"a website draft called {picture.setting} with {join(elements(picture, rng))}"
