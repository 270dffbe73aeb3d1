"""What people ask about a picture: abilities, the pictures that they are for, and many phrasings.

A `Request` is a question with enough beside it to check the answer.
"""

import random
from dataclasses import dataclass

from pocket.shipped import read_table
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
    "describe": _ALL, "caption": _ALL, "poem": ("scene", "food", "product", "odd"), "story": ("scene", "odd"),
    "recipe": ("food",), "advertise": ("product",), "funny": ("odd",), "website": ("draft",), "count": ("scene",),
    "colour": ("scene", "product", "odd"), "where": ("scene",), "exists": ("scene",), "what": ("scene",),
    "size": ("scene",), "setting": ("scene", "odd"),
}  # fmt: skip

_TABLE = read_table("text/requests")
#: Ways to ask for each ability.
_ASKING: dict[str, list[str]] = {
    **_TABLE["asking"], "describe": [*INSTRUCTIONS, *INSTRUCTIONS, *_TABLE["asking"]["describe"]],
}  # fmt: skip


def in_general(ability: str, rng: random.Random) -> str:
    """A question of an ability that asks about no object in particular, in one of many phrasings."""
    text = rng.choice(_ASKING[ability])
    return text.format(**{key: rng.choice(options) for key, options in _TABLE["wordings"].items()})


def request(ability: str, picture: Picture, rng: random.Random) -> Request:
    """A request of this ability about the picture, in one of many phrasings.

    Raises:
        ValueError: the ability does not apply to this type of picture.
    """
    if picture.type not in PICTURE_TYPES[ability]:
        raise ValueError(f"{ability!r} asks for {PICTURE_TYPES[ability]}, the picture is a {picture.type}")
    if ability in _TABLE["about_one"]:
        index = 0 if picture.type != "scene" else rng.randrange(len(picture.items))
        words = words_about(picture, index)
        expected = {"colour": "colour", "where": "place", "what": "kind", "size": "size"}[ability]
        return Request(ability, rng.choice(_TABLE["about_one"][ability]).format(**words), index, words[expected])
    if ability == "exists":
        return _exists(picture, rng)
    expected_word = {"count": NUMBERS[len(picture.items)], "setting": picture.setting}.get(ability)
    return Request(ability, in_general(ability, rng), None, expected_word)


def words_about(picture: Picture, index: int) -> dict[str, str]:
    """What is said about one of its items, by the names that phrasings have for it."""
    item = picture.items[index]
    return {
        "kind": item.kind, "thing": name(item), "a_thing": article(name(item)), "colour": item.colour or "",
        "size": item.size or "", "place": item.place or "", "at": at_place(item.place) if item.place else "",
    }  # fmt: skip


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
    return Request("exists", rng.choice(_TABLE["exists"]).format(thing=article(thing)), index, expected)


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
