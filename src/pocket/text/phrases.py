"""How people talk about the pocket world: phrases, captions, descriptions, and descriptions in many other forms.

Everything here turns a `Picture` (truth) into English with a caller's random generator; nothing looks at pixels.
`captions` are what stage 1 trains on, `descriptions` what stage 2 trains on, and `contexts` are what the pocket LLM
reads in the place where, later, the image's soft tokens stand. Conversations are in
`conversations.py`, the phrases in `phrases.yaml`.

Conventions that the evaluation's parser relies on: a colour stands right before the kind it belongs to, a size right
before the colour, places are the single words of `world.PLACES`, numbers up to four are words.
"""

import random
from collections.abc import Sequence

from pocket.shipped import read_table
from pocket.world.world import DOING, MAX_FACTS, Picture, Thing, facts

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
#: A word that stands for "no further fact" where facts are listed in a fixed number of slots.
NO_FACT = "none"

#: Stage 2 draws its instruction from these, as the paper does from its own small set.
INSTRUCTIONS = (
    "Describe this image in detail.",
    "Take a look at this image and describe what you notice.",
    "Give a detailed account of what this picture shows.",
    "What can you see in this image? Tell me every detail.",
)

_TABLE = read_table("text/phrases")


def article(noun: str) -> str:
    """`noun` with "a" or "an" before it, "a pair of" before what comes in pairs."""
    if noun.endswith(("headphones", "sunglasses")):
        return f"a pair of {noun}"
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def join(parts: Sequence[str]) -> str:
    """ "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def at_place(place: str) -> str:
    """Where something is: "in the centre", "on the left", "at the top-left"."""
    preposition = {"centre": "in", "left": "on", "right": "on"}.get(place, "at")
    return f"{preposition} the {place}"


def name(item: Thing, size: bool = False) -> str:
    """ "red ball", with `size` "large red ball"; what has no colour is named by its kind alone."""
    return " ".join(word for word in (item.size if size else None, item.colour, item.kind) if word)


def in_setting(picture: Picture, rng: random.Random) -> str:
    """ "in a meadow", "on the beach" ..., for scenes and odd scenes."""
    return rng.choice(_TABLE["setting_phrases"][picture.setting])


def elements(picture: Picture, rng: random.Random) -> list[str]:
    """What a website draft holds, top to bottom, as noun phrases."""
    return [rng.choice(_TABLE["element_phrases"][item.kind]) for item in picture.items]


def doing(picture: Picture) -> str:
    """What the animal of an odd scene does: "riding a bicycle"."""
    prop = picture.items[1].kind
    return f"{DOING[prop]} {prop}"


def _words(picture: Picture, rng: random.Random) -> dict[str, str]:
    """What the phrases of the table have names for: the setting, the thing in the middle, the list of what is there."""
    words = {"setting": picture.setting, "a_setting": article(picture.setting)}
    if picture.type == "draft":
        return words | {"listed": join(elements(picture, rng))}
    if picture.type == "food":
        return words | {"listed": join([item.kind for item in picture.items])}
    if picture.type == "odd":
        where = in_setting(picture, rng)
        words |= {"where": where, "Where": sentence(where), "doing": doing(picture)}
    return words | {"thing": article(name(picture.items[0]))}


def sentence(text: str) -> str:
    """`text` with a capital letter at its beginning; the others stay as they are."""
    return text[0].upper() + text[1:]


def caption(picture: Picture, rng: random.Random) -> str:
    """A short caption, as found beside pictures on the web: names what is there, not always all of its attributes."""
    if picture.type == "scene":
        size, place = rng.choice(((False, False), (True, False), (False, True), (True, True), (True, True)))
        things = [
            article(name(item, size)) + (f" {at_place(item.place or '')}" if place else "") for item in picture.items
        ]
        words = {"listed": join(things), "where": in_setting(picture, rng)}
    else:
        words = _words(picture, rng)
    return rng.choice(_TABLE["captions"][picture.type]).format(**words)


def dense_caption(picture: Picture, rng: random.Random) -> str:
    """One line with every fact: what the BLIP-2 baseline says when it says all it sees."""
    if picture.type != "scene":
        return caption(picture, rng)
    things = [f"{article(name(item, True))} {at_place(item.place or '')}" for item in picture.items]
    return f"{join(things)} {in_setting(picture, rng)}"


def description(picture: Picture, rng: random.Random) -> str:
    """A detailed description in whole sentences: every object with size, colour, kind and place, and the setting."""
    if picture.type == "scene":
        return _describe_scene(picture, rng)
    words = _words(picture, rng)
    parts = [rng.choice(_TABLE["openings"][picture.type]).format(**words)]
    if picture.type != "odd":
        parts.append(rng.choice(_TABLE["middles"][picture.type]).format(**words))
    endings = {
        "food": lambda: (_TABLE["dish_details"][picture.setting], "It looks fresh and tasty.", ""),
        "product": lambda: (_TABLE["backdrop_details"][picture.setting], ""),
        "odd": lambda: (*_TABLE["setting_details"][picture.setting], "It is a strange and funny moment."),
    }
    if picture.type in endings:
        parts.append(rng.choice(endings[picture.type]()))
    return " ".join(filter(None, parts))


def _describe_scene(picture: Picture, rng: random.Random) -> str:
    number, where = NUMBERS[len(picture.items)], in_setting(picture, rng)
    words = {
        "scenery": _TABLE["setting_names"][picture.setting], "where": where, "count": number,
        "Count": number.capitalize(), "objects": "object" if len(picture.items) == 1 else "objects",
    }  # fmt: skip
    sentences = [rng.choice(_TABLE["openings"]["scene"]).format(**words)]
    for item in picture.items:
        thing, place = article(name(item, size=True)), at_place(item.place or "")
        said = {"thing": thing, "Thing": sentence(thing), "place": place, "Place": sentence(place)}
        sentences.append(rng.choice(_TABLE["placed"]).format(**said))
    if rng.random() < 0.6:
        sentences.append(rng.choice(_TABLE["setting_details"][picture.setting]))
    return " ".join(sentences)


def context(picture: Picture, rng: random.Random) -> str:
    """The picture in words, complete, in one of many forms, from bare keywords to flowing sentences.

    The pocket LLM reads one of these where an image will later stand. Keywords in the order of `world.facts` are
    frequent on purpose: a projected image is a sequence of concepts, not a sentence.
    """
    form = rng.choices(
        ("slots", "keywords", "labelled", "dense", "description", "notes"), (0.34, 0.22, 0.14, 0.1, 0.12, 0.08)
    )[0]
    words = facts(picture)
    # What type of picture it is, the other words tell as well; no caption says it, so an image may not say it clearly.
    if rng.random() < 0.4:
        words = rng.choice((words[1:], [NO_FACT, *words[1:]]))
    if form == "slots":
        return " ".join(words + [NO_FACT] * (MAX_FACTS + rng.choice((0, 2, 2)) - len(words)))
    if form == "keywords":
        return rng.choice((" ", " ", ", ")).join(words)
    if form == "dense":
        return dense_caption(picture, rng)
    if form == "description":
        return description(picture, rng)
    parts = _labelled(picture) if form == "labelled" else _notes(picture)
    if picture.type == "scene" and rng.random() < 0.5:
        head, tail = parts[:1], parts[1:]
        rng.shuffle(tail)
        parts = head + tail
    return rng.choice((". ", "; ", ", ")).join(parts)


def _labelled(picture: Picture) -> list[str]:
    heading = {"food": "dish", "draft": "title", "product": "backdrop"}.get(picture.type, "background")
    parts = [f"{picture.type}, {heading}: {picture.setting}"]
    for item in picture.items:
        details = ", ".join(word for word in (item.colour, item.size, item.place) if word)
        parts.append(f"{item.kind}: {details}" if details else f"item: {item.kind}")
    return parts


def _notes(picture: Picture) -> list[str]:
    parts = [f"{picture.type} {picture.setting}"]
    for item in picture.items:
        thing = name(item, size=True)
        parts.append(f"{item.place}: {thing}" if item.place else thing)
    return parts
