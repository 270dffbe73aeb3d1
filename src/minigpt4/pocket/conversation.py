"""What people ask about a picture, and the conversations that the pocket LLM learns from.

A `Request` is a question with enough beside it to check the answer. `conversation` strings requests and answers into
the very pieces in which a prompt is tokenised later: a piece that the model will write starts at a token boundary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minigpt4.pocket import answers
from minigpt4.pocket.language import (
    INSTRUCTIONS,
    NUMBERS,
    article,
    at_place,
    caption,
    context,
    dense_caption,
    description,
    in_setting,
    name,
)
from minigpt4.pocket.world import COLOURS, KINDS, SEEDS, Picture, busy, facts, sample


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


def _wording(text: str, rng: random.Random) -> str:
    return text.format(**{key: rng.choice(options) for key, options in _WORDINGS.items()})


#: For each ability with one object in question: phrasings with {thing}, and the answer's phrasings.
_ABOUT_ONE = {
    "colour": (
        ("What colour is the {kind}?", "Which colour does the {kind} have?", "Tell me the colour of the {kind}."),
        ("The {kind} is {colour}.", "It is {a_thing}.", "The colour of the {kind} is {colour}."),
    ),
    "where": (
        ("Where is the {kind}?", "Where can I find the {thing}?", "In which part of the picture is the {kind}?"),
        ("The {thing} is {at}.", "It is {at}.", "You can find it {at}."),
    ),
    "what": (
        ("What is {at}?", "Which object is {at}?", "What can you see {at}?"),
        ("There is a {size} {thing} {at}.", "It is a {size} {thing}."),
    ),
    "size": (
        ("How big is the {kind}?", "Is the {kind} small or large?", "What size is the {thing}?"),
        ("The {kind} is {size}.", "It is {size}."),
    ),
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
        words = _words(picture, index)
        expected = {"colour": "colour", "where": "place", "what": "kind", "size": "size"}[ability]
        return Request(ability, rng.choice(_ABOUT_ONE[ability][0]).format(**words), index, words[expected])
    if ability == "exists":
        return _exists(picture, rng)
    expected_word = {"count": NUMBERS[len(picture.items)], "setting": picture.setting}.get(ability)
    return Request(ability, _wording(rng.choice(_ASKING[ability]), rng), None, expected_word)


def _words(picture: Picture, index: int) -> dict[str, str]:
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


_LONG: dict[str, Callable[[Picture, random.Random], str]] = {
    "describe": description,
    "caption": caption,
    "poem": answers.poem,
    "story": answers.story,
    "recipe": answers.recipe,
    "advertise": answers.advertisement,
    "funny": answers.funny,
    "website": answers.website,
}


def answer(asked: Request, picture: Picture, rng: random.Random) -> str:
    """One good answer to the request."""
    if asked.ability in _LONG:
        return _LONG[asked.ability](picture, rng)
    if asked.ability in _ABOUT_ONE:
        words = _words(picture, asked.item or 0)
        return rng.choice(_ABOUT_ONE[asked.ability][1]).format(**words)
    if asked.ability == "count":
        number = asked.expected
        many = "is one object" if number == "one" else f"are {number} objects"
        return rng.choice((f"There {many}.", f"There {many} in the picture.", f"I count {number}."))
    if asked.ability == "setting":
        return f"It takes place {in_setting(picture, rng)}."
    item = picture.items[asked.item or 0]
    if asked.expected == "yes":
        return rng.choice(("Yes, there is.", "Yes, I can see it.", f"Yes, there is {article(name(item))}."))
    return rng.choice(("No, there is not.", "No, I cannot see one.", "No, it is not in the picture."))


_DECLINES = {
    "recipe": "There is no food in this picture.",
    "advertise": "There is no product in this picture.",
    "funny": "I see nothing funny here.",
    "website": "This is not a website draft.",
}


def _misplaced(picture: Picture, rng: random.Random, abilities: Sequence[str]) -> tuple[Request, str]:
    """A request for one of `abilities`, which do not fit the picture, and an honest answer."""
    ability = rng.choice(abilities)
    return Request(
        ability, _wording(rng.choice(_ASKING[ability]), rng)
    ), f"{_DECLINES[ability]} It shows {answers.summary(picture, rng)}."


def turns(picture: Picture, rng: random.Random, count: int, without: frozenset[str]) -> list[tuple[str, str]]:
    """Up to `count` questions and answers about one picture, no ability asked for twice but by a follow-up question."""
    fitting = [a for a in (*ABILITIES, *SMALL_TALK) if picture.type in PICTURE_TYPES[a] and a not in without]
    misfitting = [a for a in _DECLINES if picture.type not in PICTURE_TYPES[a] and a not in without]
    chosen = rng.sample(fitting, min(count, len(fitting)))
    result: list[tuple[str, str]] = []
    last: Request | None = None
    for ability in chosen:
        if rng.random() < 0.03 and misfitting:
            asked, reply = _misplaced(picture, rng, misfitting)
        else:
            follows = last is not None and picture.type == "scene" and rng.random() < 0.3
            asked = follow_up(last, picture, rng, without) if follows and last else request(ability, picture, rng)
            reply = answer(asked, picture, rng)
        result.append((_politely(asked.text, rng), reply))
        last = asked
    return result


def quiz(picture: Picture, rng: random.Random, count: int, without: frozenset[str]) -> list[tuple[str, str]]:
    """`count` short questions about a scene, each with its answer: what a description hardly practises, looking up."""
    short = [ability for ability in _SHORT if ability not in without]
    asked = [request(rng.choice(short), picture, rng) for _ in range(count)]
    for k in range(1, count):
        if rng.random() < 0.3:
            asked[k] = follow_up(asked[k - 1], picture, rng, without)
    return [(_politely(question.text, rng), answer(question, picture, rng)) for question in asked]


def _politely(text: str, rng: random.Random) -> str:
    """The same request as another person would type it."""
    chance = rng.random()
    if chance < 0.06:
        return text[:-1]
    if chance < 0.12:
        return text.lower()
    if chance < 0.2 and not text.endswith("?"):
        return f"Please {text[0].lower()}{text[1:]}"
    return text


_SHORT = ("colour", "colour", "where", "where", "where", "what", "size", "exists", "exists", "exists", "count")
#: The pocket LLM first learns to copy, from long answers; from this sample on, most talk about scenes is a quiz,
#: and many more scenes have four objects.
QUIZZES_FROM = 160_000

#: A piece of text, and whether the model is to learn to write it.
Piece = tuple[str, bool]


def conversation(seed: int, system: str, without: frozenset[str] = frozenset()) -> list[Piece]:
    """One sample of the pocket LLM's text from a text seed: pieces `(text, learn)`.

    The piece at index 1 is the picture in words, in the place where an image will stand: after nothing in the bare form
    of stage 1, after the chat's opening otherwise. `system` is the system text of the long chat template. What is in
    `without` is never asked for.
    """
    rng = random.Random(f"text-{seed}")
    quizzes = seed - SEEDS["text"][0] >= QUIZZES_FROM
    picture = busy(seed) if quizzes and rng.random() < 0.4 else sample(seed)
    words = context(picture, rng)
    form = rng.choices(("bare", "training", "chat", "chat with system"), (0.16, 0.1, 0.62, 0.12))[0]
    if form == "bare":
        text = caption(picture, rng) if rng.random() < 0.6 else dense_caption(picture, rng)
        return [("", False), (words, False), (text, True), ("\n", True)]
    if form == "training":
        asked = rng.choice(INSTRUCTIONS)
        head, reply = f"</Img> {asked} ###Assistant: ", description(picture, rng)
        return [("###Human: <Img>", False), (words, False), (head, False), (reply, True), ("###", True)]
    count = rng.choice((2, 3, 3, 4))
    quizzed = picture.type == "scene" and quizzes and rng.random() < 0.75
    talk = quiz(picture, rng, rng.choice((6, 8, 10)), without) if quizzed else turns(picture, rng, count, without)
    opening = f"{system}###" if form == "chat with system" else "###"
    pieces: list[Piece] = [(f"{opening}Human: <Img>", False), (words, False)]
    lead = "</Img> "
    for asked_text, reply in talk:
        pieces += [(f"{lead}{asked_text}###Assistant: ", False), (reply, True), ("###", True)]
        lead = "Human: "
    return pieces


def caption_text(seed: int) -> list[Piece]:
    """One sample of the captioning LM's text: the picture in words, then a caption; sometimes asked for in words."""
    rng = random.Random(f"caption-{seed}")
    picture = sample(seed)
    words = " ".join(facts(picture)) if rng.random() < 0.3 else context(picture, rng)
    pieces: list[Piece] = [(words, False)]
    if rng.random() < 0.4:
        asked = _wording(rng.choice(_ASKING[rng.choice(("describe", "caption"))]), rng)
        pieces.append((f"Question: {asked} Answer: ", False))
    text = caption(picture, rng) if rng.random() < 0.3 else dense_caption(picture, rng)
    return [*pieces, (text, True), ("\n", True)]
