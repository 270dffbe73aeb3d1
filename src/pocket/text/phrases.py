"""How people talk about the pocket world: phrases, captions, descriptions, and descriptions in many other forms.

Everything here turns a `Picture` (truth) into English with a caller's random generator; nothing looks at pixels.
`captions` are what stage 1 trains on, `descriptions` what stage 2 trains on, and `contexts` are what the pocket LLM
reads in the place where, later, the image's soft tokens stand. Conversations are in `conversation.py`.

Conventions that the evaluation's parser relies on: a colour stands right before the kind it belongs to, a size right
before the colour, places are the single words of `world.PLACES`, numbers up to four are words.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pocket.world.world import DOING, MAX_FACTS, Item, Picture, facts

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

_SETTING_PHRASES = {
    "meadow": ("in a meadow", "in the meadow", "on a green meadow"),
    "beach": ("on a beach", "on the beach", "at the beach"),
    "desert": ("in a desert", "in the desert", "out in the desert"),
    "street": ("in a street", "in the street", "on a city street"),
    "room": ("in a room", "in the room", "inside a room"),
    "night": ("at night", "in the night", "under the night sky"),
}
_SETTING_NAMES = {
    "meadow": "a meadow",
    "beach": "a beach",
    "desert": "a desert",
    "street": "a street",
    "room": "a room",
    "night": "a night",
}
_SETTING_DETAILS = {
    "meadow": ("Soft grass covers the ground.", "The grass is fresh and the sky is mild."),
    "beach": ("Pale sand meets the calm water.", "The sea lies quiet behind the sand."),
    "desert": ("Dry dunes roll toward the horizon.", "Warm sand stretches far away."),
    "street": ("Plain city walls stand behind it all.", "The pavement is grey and quiet."),
    "room": ("A plain wall and a wooden floor frame the view.", "The floor is made of wood."),
    "night": ("The sky is dark and still.", "Everything lies under a dark sky."),
}
_DISH_DETAILS = {
    "pizza": "The crust is round and golden.",
    "salad": "The leaves look fresh and crisp.",
    "soup": "The soup is warm and creamy.",
    "rice": "The rice is white and fluffy.",
    "pasta": "The pasta lies in soft strands.",
}
_BACKDROP_DETAILS = {
    "marble": "The surface is smooth and cool.",
    "wood": "The planks give it a warm look.",
    "velvet": "The soft cloth folds gently.",
    "sand": "Fine grains surround it.",
}
_ELEMENT_PHRASES = {
    "navigation": ("a navigation bar", "navigation links"),
    "image": ("an image box", "a box for an image"),
    "text": ("lines of text", "a few lines of text"),
    "list": ("a list", "a bullet list"),
    "input": ("an input field", "a field for input"),
    "button": ("a button", "a large button"),
}


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


def name(item: Item, size: bool = False) -> str:
    """ "red ball", with `size` "large red ball"; what has no colour is named by its kind alone."""
    return " ".join(word for word in (item.size if size else None, item.colour, item.kind) if word)


def in_setting(picture: Picture, rng: random.Random) -> str:
    """ "in a meadow", "on the beach" ..., for scenes and odd scenes."""
    return rng.choice(_SETTING_PHRASES[picture.setting])


def elements(picture: Picture, rng: random.Random) -> list[str]:
    """What a website draft holds, top to bottom, as noun phrases."""
    return [rng.choice(_ELEMENT_PHRASES[item.kind]) for item in picture.items]


def doing(picture: Picture) -> str:
    """What the animal of an odd scene does: "riding a bicycle"."""
    prop = picture.items[1].kind
    return f"{DOING[prop]} {prop}"


def caption(picture: Picture, rng: random.Random) -> str:
    """A short caption, as found beside pictures on the web: names what is there, not always all of its attributes."""
    items = picture.items
    if picture.type == "scene":
        size, place = rng.choice(((False, False), (True, False), (False, True), (True, True), (True, True)))
        things = [article(name(item, size)) + (f" {at_place(item.place or '')}" if place else "") for item in items]
        listed, where = join(things), in_setting(picture, rng)
        return rng.choice((f"{listed} {where}", f"{where}, {listed}", f"a picture of {listed} {where}"))
    if picture.type == "food":
        listed = join([item.kind for item in items])
        return rng.choice(
            (
                f"{picture.setting} with {listed}",
                f"a plate of {picture.setting} with {listed}",
                f"{picture.setting} topped with {listed}",
                f"{listed} on {picture.setting}",
            )
        )
    if picture.type == "product":
        return rng.choice(
            (
                f"{article(name(items[0]))} on {picture.setting}",
                f"a product photo of {article(name(items[0]))} on {picture.setting}",
                f"{article(name(items[0]))} shown on {picture.setting}",
            )
        )
    if picture.type == "odd":
        where = in_setting(picture, rng)
        return rng.choice(
            (
                f"{article(name(items[0]))} {doing(picture)} {where}",
                f"a funny picture of {article(name(items[0]))} {doing(picture)} {where}",
                f"{where}, {article(name(items[0]))} is {doing(picture)}",
            )
        )
    listed = join(elements(picture, rng))
    return rng.choice(
        (
            f"a website draft titled {picture.setting} with {listed}",
            f"a hand-drawn draft of a website called {picture.setting} with {listed}",
            f"a sketch of the page {picture.setting}: {listed}",
        )
    )


def dense_caption(picture: Picture, rng: random.Random) -> str:
    """One line with every fact: what the BLIP-2 baseline says when it says all it sees."""
    if picture.type != "scene":
        return caption(picture, rng)
    things = [f"{article(name(item, True))} {at_place(item.place or '')}" for item in picture.items]
    return f"{join(things)} {in_setting(picture, rng)}"


def description(picture: Picture, rng: random.Random) -> str:
    """A detailed description in whole sentences: every object with size, colour, kind and place, and the setting."""
    items = picture.items
    if picture.type == "scene":
        return _describe_scene(picture, rng)
    if picture.type == "food":
        listed = join([item.kind for item in items])
        opening = rng.choice(
            (
                f"The picture shows a plate of {picture.setting} seen from above.",
                f"This is {article(picture.setting)} dish, ready to eat.",
                f"A serving of {picture.setting} stands on the table.",
            )
        )
        middle = rng.choice(
            (
                f"It is topped with {listed}.",
                f"On it I can see {listed}.",
                f"The ingredients are {listed}.",
            )
        )
        ending = rng.choice((_DISH_DETAILS[picture.setting], "It looks fresh and tasty.", ""))
        return f"{opening} {middle} {ending}".strip()
    if picture.type == "product":
        thing = name(items[0])
        opening = rng.choice(
            (
                f"The picture is a product photo of {article(thing)}.",
                f"This studio photo shows {article(thing)}.",
                f"In the middle stands {article(thing)}, lit by a soft light.",
            )
        )
        middle = rng.choice((f"It is placed on {picture.setting}.", f"The background is {picture.setting}."))
        return f"{opening} {middle} {rng.choice((_BACKDROP_DETAILS[picture.setting], ''))}".strip()
    if picture.type == "odd":
        thing, where = name(items[0]), in_setting(picture, rng)
        opening = rng.choice(
            (
                f"The picture shows {article(thing)} {doing(picture)} {where}.",
                f"{where[0].upper()}{where[1:]}, {article(thing)} is {doing(picture)}.",
                f"This is an unusual sight: {article(thing)} is {doing(picture)} {where}.",
            )
        )
        ending = rng.choice((*_SETTING_DETAILS[picture.setting], "It is a strange and funny moment."))
        return f"{opening} {ending}"
    listed = join(elements(picture, rng))
    opening = rng.choice(
        (
            f"The picture is a hand-drawn draft of a website with the title {picture.setting}.",
            f"This is a sketch of a web page called {picture.setting}.",
        )
    )
    middle = rng.choice((f"From top to bottom it has {listed}.", f"Below the title there are {listed}."))
    return f"{opening} {middle}"


def _describe_scene(picture: Picture, rng: random.Random) -> str:
    count = len(picture.items)
    plural = "object" if count == 1 else "objects"
    where, scenery = in_setting(picture, rng), _SETTING_NAMES[picture.setting]
    opening = rng.choice(
        (
            f"The picture shows {scenery} scene with {NUMBERS[count]} {plural}.",
            f"This image was made {where}. It holds {NUMBERS[count]} {plural}.",
            f"{NUMBERS[count].capitalize()} {plural} can be seen {where}.",
            f"The image shows {NUMBERS[count]} {plural} {where}.",
        )
    )
    sentences = [opening]
    for item in picture.items:
        thing, place = article(name(item, size=True)), at_place(item.place or "")
        sentences.append(
            rng.choice(
                (
                    f"There is {thing} {place}.",
                    f"{place[0].upper()}{place[1:]} there is {thing}.",
                    f"{thing[0].upper()}{thing[1:]} is {place}.",
                    f"I can see {thing} {place}.",
                )
            )
        )
    if rng.random() < 0.6:
        sentences.append(rng.choice(_SETTING_DETAILS[picture.setting]))
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
