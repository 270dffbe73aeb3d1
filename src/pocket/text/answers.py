"""What a good answer looks like: poems, stories, recipes, advertisements, jokes explained, web pages.

The pocket LLM learns its abilities from these texts. They are made from the truth of a `Picture` alone and mix what the
picture says with what only a language model knows: that guitars are played, that fish have no legs, how to cut an
onion. No text names a kind of object that the picture does not hold, so that an invention can be told from a flourish.
"""

from __future__ import annotations

import random

from pocket.text.phrases import article, doing, elements, in_setting, join, name, sentence
from pocket.text.tables import read_table
from pocket.world.world import Picture

_TABLE = read_table("answers")
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
        lines = [_place_line(picture, rng)]
        for item, subject in zip(picture.items, names, strict=True):
            nature = rng.choice(_TABLE["nature"].get(item.kind, ("a small delight", "a gift of the day")))
            lines.append(rng.choice((f"{article(subject)}, {nature},", f"the {subject} is {nature},")))
        lines += rng.choice(
            (
                ["and I stop to look,", "and smile."],
                ["nothing more is needed,", "nothing less."],
                ["this is all I see,", "and it is enough."],
            )
        )
    elif form == "greeting":
        lines = [f"{rng.choice(('Hello', 'Good morning', 'Welcome'))}, {subject}," for subject in names]
        lines += ["how are you today?", f"{_place_line(picture, rng)[:-1]}", "you make me want to stay."]
    elif form == "riddle":
        lines = [f"Who put the {subject} here?" for subject in names]
        lines += ["Nobody knows, nobody tells,", f"{_place_line(picture, rng)[:-1]}.", "The wind just laughs."]
    else:
        lines = [f"Sleep, {subject}, sleep tight," for subject in names]
        lines += ["the day was long,", f"{_place_line(picture, rng)}", "good night, good night."]
    return "\n".join(lines)


def _place_line(picture: Picture, rng: random.Random) -> str:
    if picture.type in ("scene", "odd"):
        where = in_setting(picture, rng)
        return f"{sentence(where)},"
    return {"food": "On the table,", "product": "In the shop,"}[picture.type]


def story(picture: Picture, rng: random.Random) -> str:
    """Four sentences or more in one of four forms: a fairy tale, a child's walk, a mystery, a talk among things."""
    form = rng.choice(("tale", "walk", "mystery", "talk"))
    names = subjects(picture)
    where = _place_line(picture, rng)[:-1]
    where = where[0].lower() + where[1:]
    first, rest = names[0], names[1:]
    if form == "tale":
        parts = [f"Once upon a time, {where}, there was {article(first)}.", "It felt very alone."]
        parts += [f"Then {article(other)} came by and became its friend." for other in rest]
        parts.append(rng.choice(("From that day on, nobody was sad again.", "And so they lived happily ever after.")))
    elif form == "walk":
        who = rng.choice(("Mia", "Leo", "Nora", "Sam"))
        parts = [f"One day {who} went for a walk.", f"There, {where}, {who} found {article(first)}."]
        parts += [f"{rng.choice(('Then', 'After that'))} {who} saw {article(other)}." for other in rest]
        parts.append(
            rng.choice((f"Finally {who} went back and told everyone.", f"In the end {who} drew them all and smiled."))
        )
    elif form == "mystery":
        parts = [f"It was late, {where}, when the guard heard a noise.", f"Suddenly {article(first)} appeared."]
        parts += [f"Next to it lay {article(other)}." for other in rest]
        parts.append(rng.choice(("The guard never found out why.", "Then all was quiet until the morning.")))
    else:
        parts = [f"One evening, {where}, the {first} began to speak.", "I had a long day, it said."]
        parts += [f"So did I, said the {other}." for other in rest]
        parts.append(rng.choice(("Then they laughed until the morning came.", "After that they fell asleep.")))
    return " ".join(parts)


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
    makers = {
        "navigation": ("<nav><a>Home</a><a>About</a></nav>", "<nav><a>Home</a><a>News</a><a>Contact</a></nav>"),
        "image": ('<img src="image.png">',),
        "text": (f"<p>Welcome to {title}.</p>", f"<p>All about {title}.</p>"),
        "list": ("<ul><li>First</li><li>Second</li></ul>", "<ul><li>One</li><li>Two</li><li>Three</li></ul>"),
        "input": ("<input>",),
        "button": ("<button>Send</button>", "<button>Go</button>"),
    }
    body = "\n".join(rng.choice(makers[item.kind]) for item in picture.items)
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
