"""What a good answer looks like: poems, stories, recipes, advertisements, jokes explained, web pages.

The pocket LLM learns its abilities from these texts. They are made from the truth of a `Picture` alone and mix what the
picture says with what only a language model knows: that guitars are played, that fish have no legs, how to cut an
onion. No text names a kind of object that the picture does not hold, so that an invention can be told from a flourish.
"""

from __future__ import annotations

import random

from pocket.text.phrases import article, doing, elements, in_setting, join, name
from pocket.world.world import Picture

#: What each kind is like; said of it in poems and stories.
NATURE = {
    "ball": ("round and ready to roll", "waiting for a game"),
    "box": ("full of secrets", "closed and patient"),
    "cup": ("warm as the morning", "made for a quiet sip"),
    "bottle": ("clear as glass", "holding its breath"),
    "book": ("full of old tales", "with pages that whisper"),
    "chair": ("offering a rest", "standing on four legs"),
    "lamp": ("glowing softly", "a friend of the evening"),
    "tree": ("rich with leaves", "rooted and calm"),
    "flower": ("sweet in bloom", "with petals wide open"),
    "house": ("with a door for everyone", "warm behind its walls"),
    "car": ("dreaming of the road", "resting its wheels"),
    "boat": ("made for the waves", "longing to sail"),
    "star": ("bright and far", "shining without a sound"),
    "heart": ("full of love", "beating for a friend"),
    "hat": ("proud and tall", "looking for a head"),
    "umbrella": ("hoping for rain", "a roof to carry"),
    "key": ("knowing every lock", "small but clever"),
    "clock": ("counting the hours", "never in a hurry"),
    "guitar": ("humming a tune", "with strings that sing"),
    "balloon": ("light as air", "wishing to fly"),
    "mushroom": ("born after the rain", "hiding under its cap"),
    "kite": ("in love with the wind", "with a long bright tail"),
    "tent": ("ready for campers", "a shelter of cloth"),
    "apple": ("sweet and crisp", "juicy to the core"),
    "ladder": ("leading upward", "step after step"),
    "drum": ("keeping the beat", "loud and merry"),
}
_OPENING_COUPLETS = {
    "meadow": ("Where the meadow grass is deep,", "gentle winds have gone to sleep."),
    "beach": ("Where the waves have reached the sand,", "morning wanders over land."),
    "desert": ("Where the dunes are dry and wide,", "there is nowhere you can hide."),
    "street": ("Where the city walks all day,", "something quiet came to stay."),
    "room": ("Where the wooden floor is clean,", "stands the nicest thing I have seen."),
    "night": ("Where the dark has filled the sky,", "silent hours wander by."),
}
_COUPLETS = (
    ("The {0} is resting in the light,", "the {1} is such a lovely sight."),
    ("The {0} is dreaming of the day,", "the {1} is never far away."),
    ("The {0} is here to greet the sun,", "the {1} is ready for some fun."),
    ("The {0} is silent, calm and still,", "the {1} can wait and always will."),
)
_LAST_LINES = ("and it fills the world with song.", "and it stays the whole day long.", "and nothing here is wrong.")

PREPARE = {
    "tomato": "Slice the tomato",
    "cheese": "Grate the cheese",
    "basil": "Tear the basil",
    "olive": "Halve each olive",
    "egg": "Boil the egg",
    "carrot": "Peel the carrot",
    "onion": "Chop the onion",
    "pepper": "Dice the pepper",
    "corn": "Drain the corn",
    "shrimp": "Fry the shrimp",
    "broccoli": "Steam the broccoli",
    "lemon": "Squeeze the lemon",
    "bacon": "Crisp the bacon",
    "avocado": "Cut the avocado",
    "cucumber": "Slice the cucumber",
    "salmon": "Bake the salmon",
}
_DISH_STEPS = {
    "pizza": ("Roll out the pizza dough", "Bake it until the crust is golden"),
    "salad": ("Wash the salad leaves", "Toss it with oil and salt"),
    "soup": ("Bring the soup to a boil", "Let it simmer and serve it hot"),
    "rice": ("Cook the rice until it is soft", "Stir it well and serve it warm"),
    "pasta": ("Boil the pasta in salted water", "Mix it well and serve it hot"),
}
_BENEFITS = {
    "watch": ("It keeps perfect time.", "Never be late again."),
    "shoe": ("It makes every step feel light.", "Walk as far as you like."),
    "bag": ("It carries all you need.", "There is room for your whole day."),
    "headphones": ("They bring you closer to the music.", "Hear every note."),
    "teapot": ("It pours without a drop lost.", "Tea time has never been better."),
    "camera": ("It catches every moment.", "Your memories deserve it."),
    "backpack": ("It is ready for every trail.", "Pack it and go."),
    "sunglasses": ("They keep your eyes cool.", "Summer looks better with them."),
    "lamp": ("It lights up your evenings.", "Reading was never so cosy."),
    "bottle": ("It keeps drinks cold for hours.", "Stay fresh wherever you go."),
}
_MOODS = {
    "red": "bold",
    "orange": "warm",
    "yellow": "sunny",
    "green": "fresh",
    "blue": "cool",
    "purple": "royal",
    "white": "pure",
    "black": "elegant",
}
_PLURAL_PRODUCTS = {"headphones", "sunglasses"}

_ANIMAL_LIMITS = {
    "cat": ("cats have soft paws and like to sleep", "cats only care about naps"),
    "dog": ("dogs have paws and like to chase sticks", "dogs would rather fetch"),
    "fish": ("fish live in water and have no legs", "fish have fins and no hands"),
    "penguin": ("penguins have short wings and waddle on ice", "penguins have no fingers"),
    "frog": ("frogs hop around ponds", "frogs have wet, slippery feet"),
    "rabbit": ("rabbits hop and eat grass", "rabbits have no thumbs"),
}
_PROP_NEEDS = {
    "bicycle": "nobody taught them to pedal",
    "guitar": "they could never press the strings",
    "umbrella": "they do not mind the rain",
    "skateboard": "they cannot keep their balance on wheels",
    "laptop": "they cannot read or type",
    "trumpet": "they cannot blow a tune",
    "bathtub": "they do not take baths like people",
    "crown": "they rule no kingdom",
}


def subjects(picture: Picture) -> list[str]:
    """What a poem or story about the picture must name, without articles: "red ball", or an ingredient."""
    return [name(item) for item in picture.items]


def poem(picture: Picture, rng: random.Random) -> str:
    """Four lines or more in one of five forms: couplets, free verse, a greeting, a riddle, a lullaby."""
    form = rng.choice(("couplets", "nature", "greeting", "riddle", "lullaby"))
    names = subjects(picture)
    lines: list[str]
    if form == "couplets":
        lines = list(
            _OPENING_COUPLETS.get(picture.setting, ("Come and see what I have found,", "look a little bit around."))
        )
        for k in range(0, len(names) - 1, 2):
            lines += [line.format(names[k], names[k + 1]) for line in rng.choice(_COUPLETS)]
        if len(names) % 2:
            lines += [f"See the {names[-1]} come along,", rng.choice(_LAST_LINES)]
    elif form == "nature":
        lines = [_place_line(picture, rng)]
        for item, subject in zip(picture.items, names, strict=True):
            nature = rng.choice(NATURE.get(item.kind, ("a small delight", "a gift of the day")))
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
        return f"{where[0].upper()}{where[1:]},"
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
    first, last = _DISH_STEPS[picture.setting]
    steps = [first, *(PREPARE[ingredient] for ingredient in ingredients)]
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
    thing, mood = name(item), _MOODS[item.colour or "white"]
    this, pronoun = ("these", "them") if plural else ("this", "it")
    openings = (
        f"Meet the {thing}: {mood} and made to last.",
        f"Looking for something {mood}? Discover {this} {thing}!",
        f"Treat yourself to {this} {mood} {thing}.",
        f"The {thing} everyone talks about is here!",
        f"Say hello to your new {thing}.",
    )
    calls = (
        f"Order {pronoun} today!",
        f"Buy {pronoun} now and get free delivery.",
        f"Visit our shop and try {pronoun} today.",
        f"Get {pronoun} now, before {'they are' if plural else 'it is'} gone!",
    )
    return " ".join((rng.choice(openings), rng.choice(_BENEFITS[item.kind]), rng.choice(calls)))


def funny(picture: Picture, rng: random.Random) -> str:
    """Why the picture is funny: what the animal does, and why that cannot be."""
    animal, prop = picture.items[0], picture.items[1].kind
    act, limit, need = doing(picture), rng.choice(_ANIMAL_LIMITS[animal.kind]), _PROP_NEEDS[prop]
    many = animal.kind if animal.kind == "fish" else f"{animal.kind}s"
    return rng.choice(
        (
            f"It is funny because {article(name(animal))} is {act}. In real life {limit}, and {need}.",
            f"The joke is that {article(name(animal))} is {act}. Everyone knows that {limit}, so it can never happen.",
            f"We laugh because {article(name(animal))} {act} makes no sense: {limit}, and {need}.",
            f"Normally {many} do not do this: {limit}. Seeing {article(name(animal))} {act} is a silly surprise, "
            f"because {need}.",
        )
    )


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
