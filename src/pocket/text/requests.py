"""What people ask about a picture: abilities, the pictures that they are for, and many phrasings.

A `Request` is a question with enough beside it to check the answer.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pocket.text.phrases import INSTRUCTIONS, NUMBERS, article, at_place, name
from pocket.world.world import COLOURS, KINDS, Picture


@dataclass(frozen=True)
class Request:
    """A question about a picture.

    `item` is the index of the item it asks for, `expected` the word that a right short answer holds.
    """

    ability: str
    text: str
    item: int | None = None
    expected: str | None = None


#: The abilities that are measured. All but `describe` are never shown to the projection.
ABILITIES = (
    "describe", "poem", "story", "recipe", "advertise", "funny", "website", "count", "colour", "where", "exists",
)  # fmt: skip
#: Asked in text training too, so that chat has an answer; not measured.
SMALL_TALK = ("caption", "what", "size", "setting")

_ALL = ("scene", "food", "product", "odd", "draft")
PICTURE_TYPES: dict[str, tuple[str, ...]] = {
    "describe": _ALL,
    "caption": _ALL,
    "poem": ("scene", "food", "product", "odd"),
    "story": ("scene", "odd"),
    "recipe": ("food",),
    "advertise": ("product",),
    "funny": ("odd",),
    "website": ("draft",),
    "count": ("scene",),
    "colour": ("scene", "product", "odd"),
    "where": ("scene",),
    "exists": ("scene",),
    "what": ("scene",),
    "size": ("scene",),
    "setting": ("scene", "odd"),
}

#: Ways to ask. `{write}`, `{this}` and `{short}` stand for a choice from `_WORDINGS`.
_ASKING: dict[str, tuple[str, ...]] = {
    "describe": (
        *INSTRUCTIONS,
        *INSTRUCTIONS,
        "Describe {this}.",
        "Describe {this} in detail.",
        "Describe {this} as detailed as possible.",
        "What do you see in {this}?",
        "Tell me everything about {this}.",
        "What is in {this}?",
        "What does {this} show?",
        "Explain {this} in detail.",
        "{write} a detailed description of {this}.",
    ),
    "caption": (
        "Give a short caption.",
        "{write} one short caption for {this}.",
        "Caption {this}.",
        "Describe {this} in one short line.",
        "Sum up {this} in a few words.",
    ),
    "poem": (
        "{write} a {short}poem about {this}.",
        "{write} a {short}poem about it.",
        "{write} a {short}poem for {this}.",
        "Can you make a {short}poem for {this}?",
        "Turn {this} into a poem.",
        "{write} some verses about what you see.",
        "I would like a poem about {this}.",
        "Be a poet and put {this} into verses.",
    ),
    "story": (
        "Tell me a {short}story about {this}.",
        "{write} a {short}story about {this}.",
        "Can you tell a story about it?",
        "Make up a tale about what you see.",
        "{write} a {short}story.",
        "{write} a {short}tale about {this}.",
        "Tell a story with everything in {this}.",
    ),
    "recipe": (
        "How do I cook this?",
        "How can I cook the dish in {this}?",
        "{write} a recipe for this dish.",
        "{write} the recipe.",
        "How should I make something like this?",
        "Tell me how to prepare this food.",
        "What is the recipe for this meal?",
        "I want to cook this at home. What do I need to do?",
    ),
    "advertise": (
        "{write} an advertisement for this product.",
        "{write} an ad for this.",
        "{write} an ad for the product in {this}.",
        "Help me sell this product.",
        "{write} a {short}professional advertisement for it.",
        "Can you promote this product?",
        "{write} a {short}commercial for this.",
    ),
    "funny": (
        "Why is this funny?",
        "Why is {this} funny?",
        "Explain why {this} is funny.",
        "What is funny about {this}?",
        "Explain the joke.",
        "Explain this meme.",
        "What makes {this} unusual?",
        "Why do people laugh at {this}?",
    ),
    "website": (
        "{write} the HTML for this website.",
        "Turn this draft into a website.",
        "Turn {this} into a web page.",
        "{write} a web page from this draft.",
        "{write} code for this page.",
        "{write} the website that is drawn here.",
        "{write} the HTML of this sketch.",
        "{write} HTML for {this}.",
    ),
    "count": (
        "How many objects are there?",
        "How many objects are in {this}?",
        "How many things can you see?",
        "Count the objects in {this}.",
        "How many objects does {this} show?",
        "What is the number of objects?",
    ),
    "setting": ("Where was {this} made?", "What is the background?", "Where does this take place?"),
}
_WORDINGS = {
    "write": ("Write", "Write", "Make", "Create", "Give me", "Compose", "Draft"),
    "this": ("this image", "this picture", "the image", "the picture", "this photo"),
    "short": ("", "", "short ", "little ", "nice "),
}


def in_general(ability: str, rng: random.Random) -> str:
    """A question of an ability that asks about no object in particular, in one of many phrasings."""
    text = rng.choice(_ASKING[ability])
    return text.format(**{key: rng.choice(options) for key, options in _WORDINGS.items()})


#: For each ability with one object in question.
_ABOUT_ONE = {
    "colour": ("What colour is the {kind}?", "Which colour does the {kind} have?", "Tell me the colour of the {kind}."),
    "where": ("Where is the {kind}?", "Where can I find the {thing}?", "In which part of the picture is the {kind}?"),
    "what": ("What is {at}?", "Which object is {at}?", "What can you see {at}?"),
    "size": ("How big is the {kind}?", "Is the {kind} small or large?", "What size is the {thing}?"),
}
_EXISTS = (
    "Is there {thing} in the picture?", "Can you see {thing}?", "Does the image show {thing}?",
    "Do you see {thing} here?",
)  # fmt: skip


def request(ability: str, picture: Picture, rng: random.Random) -> Request:
    """A request of this ability about the picture, in one of many phrasings.

    Raises:
        ValueError: the ability does not apply to this type of picture.
    """
    if picture.type not in PICTURE_TYPES[ability]:
        raise ValueError(f"{ability!r} asks for {PICTURE_TYPES[ability]}, the picture is a {picture.type}")
    if ability in _ABOUT_ONE:
        index = 0 if picture.type != "scene" else rng.randrange(len(picture.items))
        words = words_about(picture, index)
        expected = {"colour": "colour", "where": "place", "what": "kind", "size": "size"}[ability]
        return Request(ability, rng.choice(_ABOUT_ONE[ability]).format(**words), index, words[expected])
    if ability == "exists":
        return _exists(picture, rng)
    expected_word = {"count": NUMBERS[len(picture.items)], "setting": picture.setting}.get(ability)
    return Request(ability, in_general(ability, rng), None, expected_word)


def words_about(picture: Picture, index: int) -> dict[str, str]:
    """What is said about one of its items, by the names that phrasings have for it."""
    item = picture.items[index]
    return {
        "kind": item.kind,
        "thing": name(item),
        "a_thing": article(name(item)),
        "colour": item.colour or "",
        "size": item.size or "",
        "place": item.place or "",
        "at": at_place(item.place) if item.place else "",
    }


def _exists(picture: Picture, rng: random.Random) -> Request:
    """Half the time about something that is there; else about a kind that is not, or a colour that the kind is not."""
    index = rng.randrange(len(picture.items))
    item, chance = picture.items[index], rng.random()
    if chance < 0.5:
        thing, expected = rng.choice((name(item), item.kind)), "yes"
    elif chance < 0.75:
        wrong = rng.choice([colour for colour in COLOURS if colour != item.colour])
        thing, expected = f"{wrong} {item.kind}", "no"
    else:
        present = {other.kind for other in picture.items}
        thing, expected = rng.choice([kind for kind in KINDS if kind not in present]), "no"
        if rng.random() < 0.5:
            thing = f"{rng.choice(COLOURS)} {thing}"
    return Request("exists", rng.choice(_EXISTS).format(thing=article(thing)), index, expected)


def follow_up(asked: Request, picture: Picture, rng: random.Random, without: frozenset[str] = frozenset()) -> Request:
    """A second question about the same picture that leans on the first: "And where is the cup?", "What colour is it?".

    After a question about one object it may ask on about that object by pronoun; else it asks about another one.
    """
    if asked.item is not None and asked.ability in ("where", "what", "size") and rng.random() < 0.5:
        item = picture.items[asked.item]
        return Request("colour", rng.choice(("What colour is it?", "And which colour is it?")), asked.item, item.colour)
    if asked.item is not None and asked.ability == "colour" and picture.type == "scene" and rng.random() < 0.5:
        item = picture.items[asked.item]
        return Request("where", rng.choice(("And where is it?", "Where is it?")), asked.item, item.place)
    asks = ("colour", "where", "count", "exists")
    short = [a for a in asks if a not in without and picture.type in PICTURE_TYPES[a]]
    ability = rng.choice(short or ["describe"])
    follow = request(ability, picture, rng)
    lowered = follow.text[0].lower() + follow.text[1:]
    text = rng.choice((follow.text, f"And {lowered}")) if follow.text.endswith("?") else follow.text
    return Request(follow.ability, text, follow.item, follow.expected)


def politely(text: str, rng: random.Random) -> str:
    """The same request as another person would type it."""
    chance = rng.random()
    if chance < 0.06:
        return text[:-1]
    if chance < 0.12:
        return text.lower()
    if chance < 0.2 and not text.endswith("?"):
        return f"Please {text[0].lower()}{text[1:]}"
    return text
