"""Does an answer do what was asked, and is all of it true of the picture?

Every check compares what the text says with the ground truth (`world.Picture`), by reading it, not by matching it with
a template: `read` finds the kinds of things that a text names, with the colours, sizes and places that it gives them,
and a check compares these as sets. What is missing fails, and so does what is invented. Nothing here knows the model,
the wording that the language model was trained on, or whether an answer is good English (see `minigpt4.text_failures`).

What the reader relies on: a colour stands right before the kind it belongs to ("a large red ball") or is said of it
("the ball is red"); a place stands in the same sentence as its object.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pocket.measure.webpage import check_page
from pocket.world import world

if TYPE_CHECKING:
    from pocket.text.requests import Request

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
YES_NO = ("yes", "no")

#: The kinds of things that a text about each type of picture may name, and so may invent.
NOUNS = {
    "scene": world.KINDS, "food": world.INGREDIENTS, "product": world.PRODUCTS, "odd": world.ANIMALS + world.PROPS,
    "draft": world.ELEMENTS,
}  # fmt: skip
#: The words one of which is a picture's `setting`.
SETTINGS = {
    "scene": world.BACKGROUNDS, "food": world.DISHES, "product": world.BACKDROPS, "odd": world.BACKGROUNDS,
    "draft": world.TITLES,
}  # fmt: skip
#: A description of anything but a draft may name nothing else that the world holds either: no ball on the pizza.
_ALL_NOUNS = tuple(dict.fromkeys(NOUNS["scene"] + NOUNS["food"] + NOUNS["product"] + NOUNS["odd"]))


@dataclass(frozen=True)
class Finding:
    """Whether an answer succeeds and, if not, the first thing that is wrong with it.

    For descriptions, also how many of the picture's objects there are, how many are named with the right kind and
    colour (and no other colour), how many have a place, and how many are put in the right one (and no other).
    """

    success: bool
    reason: str = ""
    objects: int = 0
    kind_colour_right: int = 0
    placed: int = 0
    place_right: int = 0


def check(request: "Request", picture: world.Picture, answer: str) -> Finding:
    """Judge `answer` to `request` about `picture` against the ground truth.

    Raises:
        ValueError: There is no check for the request's ability, or a short question has no expected answer.
    """
    if request.ability == "describe":
        return _describe(picture, answer)
    if request.expected is not None:
        wrong = _short_answer(request, picture, answer)
    elif request.ability in _CHECKS:
        wrong = _CHECKS[request.ability](picture, answer)
    else:
        raise ValueError(f"no check for {request.ability!r} without an expected answer")
    return Finding(wrong is None, wrong or "")


# Reading


@dataclass
class Mention:
    """What a text says about one kind of thing."""

    colours: set[str] = field(default_factory=set)
    sizes: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)

    @property
    def said(self) -> tuple[set[str], set[str], set[str]]:
        """In the order of `Thing.attributes`."""
        return self.colours, self.sizes, self.places


def _forms(word: str) -> tuple[str, ...]:
    """A noun's singular and plural."""
    plural = word + ("es" if word.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")
    return (word, plural, word + "s")


def _any_of(words: Iterable[str]) -> str:
    """A regular expression for any of `words`, the longest first: "top-left" is neither "top" nor "left"."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


_COLOUR = _any_of(world.COLOURS)
_PLACE = re.compile(r"\b(?:(?:top|bottom)[- ](?:left|right)|top|left|centre|center|right|bottom)\b")
#: "This image shows" speaks of the picture, not of an image on the page.
_NO_IMAGE_BOX = re.compile(r"(?i)\b(?:this image|the image (?:shows|is a|contains|has))\b")
_SENTENCE_END = re.compile(r"(?<=[.!?;])\s+|\n+")


def places_in(text: str) -> list[tuple[int, str]]:
    """The places of the 3 x 3 grid that a lower-case `text` names, as (position, place) in order.

    "left of the cup" relates two objects and is no place; "left of the picture" is one.
    """
    found = []
    for match in _PLACE.finditer(text):
        if not re.match(r"\s+of\b(?!\s+the (?:picture|image|scene|photo)\b)", text[match.end() :]):
            found.append((match.start(), match.group().replace(" ", "-").replace("center", "centre")))
    return found


def read(text: str, nouns: Sequence[str]) -> dict[str, Mention]:
    """Every one of `nouns` that `text` names (singular or plural), with the colours, sizes and places given to it.

    A place belongs to the object before it in its sentence; in a sentence that opens with a place, each belongs to the
    object after it. In a sentence without any object ("It is at the top.") it belongs to the last one named.
    """
    kind_of = {form: noun for noun in nouns for form in _forms(noun)}
    noun = _any_of(kind_of)
    mention = re.compile(
        rf"\b(?:(?P<size>{_any_of(world.SIZES)})\s+)?(?:(?P<colour>{_COLOUR})\s+)?(?P<kind>{noun})\b"
        rf"(?=(?:\s+(?:is|was|are|were)\s+(?P<said>{_COLOUR})\b(?!\s+(?:{noun})\b))?)"
    )
    claims: dict[str, Mention] = {}
    last: str | None = None
    for sentence in _SENTENCE_END.split(text.lower()):
        events: list[tuple[int, re.Match[str] | str]] = [(m.start(), m) for m in mention.finditer(sentence)]
        events += places_in(sentence)
        waiting: str | None = None  # an object without a place yet, or
        announced: list[str] = []  # places without an object yet
        for _, found in sorted(events, key=lambda event: event[0]):
            if isinstance(found, str):
                if waiting is not None:
                    claims[waiting].places.add(found)
                    waiting = None
                else:
                    announced.append(found)
                continue
            last = kind_of[found["kind"]]
            claim = claims.setdefault(last, Mention())
            claim.colours |= {found["colour"], found["said"]} - {None}
            claim.sizes |= {found["size"]} - {None}
            waiting = None if announced else last
            claim.places |= set(announced)
            announced = []
        if announced and last is not None:
            claims[last].places |= set(announced)
    return claims


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))


def _contradiction(picture: world.Picture, claims: dict[str, Mention]) -> str | None:
    """The first thing claimed that the picture does not hold."""
    truth = {item.kind: item for item in picture.items}
    for kind, claim in claims.items():
        if kind not in truth:
            return f"names {kind}, which is not there"
        for said, true in zip(claim.said, truth[kind].attributes, strict=True):
            if true is not None and said - {true}:
                return f"says {kind} is {', '.join(sorted(said - {true}))}, not {true}"
    return None


def _unfaithful(picture: world.Picture, text: str, colours: bool = True) -> str | None:
    """The first object of the picture that `text` does not name (with its colour, if `colours`), or names wrongly.

    Places are left out: in verse and tales "left", "right" and "top" are everyday words.
    """
    claims = read(text, NOUNS[picture.type])
    for claim in claims.values():
        claim.places.clear()
    for item in picture.items:
        if item.kind not in claims:
            return f"does not name {item.kind}"
        if colours and item.colour is not None and not claims[item.kind].colours:
            return f"does not say that {item.kind} is {item.colour}"
    return _contradiction(picture, claims)


def _settings(picture: world.Picture, text: str) -> set[str]:
    """The settings, dishes, backdrops or titles that `text` names, in lower case."""
    return _words(text) & {word.lower() for word in SETTINGS[picture.type]}


def _wrong_setting(picture: world.Picture, text: str) -> str | None:
    """Whether `text` leaves out the picture's setting, dish, backdrop or title, or names another."""
    named = _settings(picture, text)
    setting = picture.setting.lower()
    if setting not in named:
        return f"does not name {picture.setting}"
    return f"names {min(named - {setting})} beside {picture.setting}" if named - {setting} else None


# Checks: each returns what is wrong, or None


def _described(picture: world.Picture, text: str) -> dict[str, Mention]:
    """What a description says about each thing that it names, of all that it may name."""
    if picture.type == "draft":
        return read(_NO_IMAGE_BOX.sub(" ", text), NOUNS["draft"])
    return read(text, _ALL_NOUNS)


def _describe(picture: world.Picture, text: str) -> Finding:
    """Every item with its kind, colour and place, and the setting; nothing else."""
    claims = _described(picture, text)
    named, placed, wrong = 0, 0, None
    for item in picture.items:
        claim = claims.get(item.kind)
        if claim is not None and claim.colours == ({item.colour} if item.colour else claim.colours):
            named += 1
        else:
            wrong = wrong or f"does not name {' '.join(filter(None, (item.colour, item.kind)))}"
        if claim is not None and item.place and claim.places == {item.place}:
            placed += 1
        elif item.place:
            wrong = wrong or f"does not put {item.kind} at {item.place}"
    wrong = _contradiction(picture, claims) or wrong or _wrong_setting(picture, text)
    places = sum(item.place is not None for item in picture.items)
    return Finding(wrong is None, wrong or "", len(picture.items), named, places, placed)


#: Words that say which type of picture it is, beside the things on it.
_TYPE_WORDS = {
    "food": re.compile(r"\b(?:plate|dish|serving|ingredients|topped)\b"),
    "product": re.compile(r"\b(?:product photo|studio photo)\b"),
    "draft": re.compile(r"\b(?:draft|sketch|web ?page|website)\b"),
}
_HOW_MANY = re.compile(rf"\b({'|'.join(NUMBERS)}) objects?\b")


def statements(picture: world.Picture, text: str) -> tuple[int, int]:
    """(true, false): the statements that a description makes about its picture, judged one by one.

    Each kind that is named is a statement, and so is each colour, size and place that is given to it, the setting, how
    many objects there are, and the type of the picture. What the reader does not know ("It looks tasty.") is none.
    """
    truth = {item.kind: item for item in picture.items}
    judged: list[bool] = []
    for kind, claim in _described(picture, text).items():
        judged.append(kind in truth)
        attributes = truth[kind].attributes if kind in truth else ("", "", "")
        for said, true in zip(claim.said, attributes, strict=True):
            judged += [value == true for value in said if true is not None]
    judged += [word == picture.setting.lower() for word in _settings(picture, text)]
    if picture.type == "scene":
        judged += [NUMBERS.index(number) == len(picture.items) for number in _HOW_MANY.findall(text.lower())]
    judged += [name == picture.type for name, pattern in _TYPE_WORDS.items() if pattern.search(text.lower())]
    return sum(judged), len(judged) - sum(judged)


_CAPTION_SETTINGS = {word for kind, words in SETTINGS.items() if kind != "draft" for word in words}


def missing_fact(caption: str, description: str) -> str | None:
    """The first fact of the caption that the description does not state, or gives otherwise; None if it has all.

    The ground truth that a judge of captions can be measured against. Facts are the kinds that the caption names, with
    the colours, sizes and places that it gives them, and the setting. A description that gives a thing another colour
    beside the right one ("the red ball is blue") does not state it.
    """
    told = read(description, _ALL_NOUNS)
    for kind, wanted in read(caption, _ALL_NOUNS).items():
        if kind not in told:
            return f"does not name {kind}"
        for asked, given in zip(wanted.said, told[kind].said, strict=True):
            if asked and asked != given:
                return f"does not say that {kind} is {', '.join(sorted(asked))}"
    lost = (_words(caption) - _words(description)) & _CAPTION_SETTINGS
    return f"does not name {min(lost)}" if lost else None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])[\"')]*\s+|\n+", text.strip()) if _words(part)]


def _poem(picture: world.Picture, text: str) -> str | None:
    """Four short lines or more that name every object with its colour."""
    lines = _lines(text)
    if len(lines) < 4:
        return f"has {len(lines)} lines, a poem at least 4"
    longest = max(len(line.split()) for line in lines)
    if longest > 14:
        return f"has a line of {longest} words, verse at most 14"
    return _unfaithful(picture, text)


_NARRATION = re.compile(
    r"\b(?:once|one (?:day|night|morning|evening|afternoon)|that (?:day|night|morning|evening)|long ago|then|after|"
    r"afterwards|suddenly|finally|until|later|before|when|at last|in the end|next|soon)\b"
)
_PAST = re.compile(
    r"\b(?:was|were|had|did|went|came|saw|found|said|told|took|made|ran|felt|heard|knew|thought|began|stood|lay|sat|"
    r"fell|grew|gave|left|kept|met|got|became|spoke|woke|slept|sang|rose|flew|hid|lost|won|brought|\w{2,}ed)\b"
)


def _story(picture: world.Picture, text: str) -> str | None:
    """Three sentences or more, told in the past, that name every object with its colour."""
    count = len(_sentences(text))
    if count < 3:
        return f"has {count} sentences, a story at least 3"
    if not _NARRATION.search(text.lower()) or not _PAST.search(text.lower()):
        return "tells no events: no 'once', 'then', 'suddenly' ... with a verb in the past"
    return _unfaithful(picture, text)


def _recipe(picture: world.Picture, text: str) -> str | None:
    """A title with the dish, exactly the right ingredients in a list, and numbered steps that use them all."""
    lines = _lines(text)
    truth = {item.kind for item in picture.items}
    if not lines:
        return "is empty"
    if wrong := _wrong_setting(picture, lines[0]):
        return f"title {wrong}"
    entries = [line for line in lines[1:] if re.match(r"[-*•]\s", line)]
    listed: list[str] = []
    for entry in entries:
        named = list(read(entry, world.INGREDIENTS))
        if len(named) > 1 or (not named and picture.setting not in _words(entry)):
            return f"lists {entry.lstrip('-*• ')!r}, which is not one of the ingredients"
        listed += named
    if sorted(listed) != sorted(truth):
        return f"lists {', '.join(listed) or 'nothing'} as ingredients, not {', '.join(sorted(truth))}"
    steps = [match for line in lines if (match := re.match(r"(\d+)[.)]\s+(.+)", line))]
    if len(steps) < 3 or [int(step[1]) for step in steps] != list(range(1, len(steps) + 1)):
        return f"has {len(steps)} steps, or steps not numbered from 1; a recipe has at least 3"
    unused = truth - read(" ".join(step[2] for step in steps), world.INGREDIENTS).keys()
    if unused:
        return f"never uses {min(unused)}"
    return _unfaithful(picture, text)


_CALL_TO_ACTION = re.compile(
    r"\b(?:buy|order|get|grab|visit|try|call|shop|discover|treat|choose|pick|take|bring|come|hurry|don't miss|"
    r"today|now|reserve|make it yours)\b"
)


def _advertise(picture: world.Picture, text: str) -> str | None:
    """Two sentences or more that name the product with its colour and call to action."""
    if len(_sentences(text)) < 2:
        return "has one sentence, an advertisement at least 2"
    if not _CALL_TO_ACTION.search(text.lower()):
        return "has no call to action"
    return _unfaithful(picture, text)


_REASON = re.compile(
    r"\b(?:because|since|never|cannot|can ?not|can't|could not|couldn't|no|not|don't|doesn't|usually|normally|instead|"
    r"unlike|unusual|impossible|nobody|nothing|without|makes? no sense|in real life)\b"
)


def _funny(picture: world.Picture, text: str) -> str | None:
    """Names the animal and the prop, and gives a reason why they do not belong together."""
    if not _REASON.search(text.lower()):
        return "gives no reason"
    return _unfaithful(picture, text, colours=False)


def _website(picture: world.Picture, text: str) -> str | None:
    """A well-formed HTML page with the draft's title and its elements in order, and no others."""
    return check_page(text, picture.setting, [item.kind for item in picture.items])


_CHECKS: dict[str, Callable[[world.Picture, str], str | None]] = {
    "poem": _poem, "story": _story, "recipe": _recipe, "advertise": _advertise, "funny": _funny, "website": _website,
}  # fmt: skip

_CLASSES = (
    world.COLOURS, NUMBERS, YES_NO, world.SIZES, world.BACKGROUNDS, world.BACKDROPS, world.DISHES, world.ANIMALS,
    world.PROPS, world.ELEMENTS, world.PRODUCTS, world.INGREDIENTS, world.KINDS,
    tuple(title.lower() for title in world.TITLES),
)  # fmt: skip


def _short_answer(request: "Request", picture: world.Picture, text: str) -> str | None:
    """Says the expected word and no other of its class (no second colour, number, place), and nothing untrue."""
    expected = (request.expected or "").lower()
    lower = text.lower()
    if expected in world.PLACES:
        said = {place for _, place in places_in(lower)}
    else:
        words = next((words for words in _CLASSES if expected in words), None)
        if words is None:
            raise ValueError(f"expected answer {expected!r} is not a word of the pocket world")
        form_of = {form: word for word in words for form in _forms(word)} | {word: word for word in words}
        if words is NUMBERS:
            form_of |= {str(number): word for number, word in enumerate(NUMBERS)}
        if words is YES_NO:
            form_of |= {"not": "no", "none": "no"}
        said = {form_of[word] for word in _words(lower) if word in form_of}
    if expected not in said:
        return f"does not say {expected}"
    if said - {expected}:
        return f"says {', '.join(sorted(said - {expected}))} beside {expected}"
    claims = read(text, NOUNS[picture.type])
    if expected == "no":
        # "No, there is no boat": what was asked about is named only to be denied.
        for kind in read(request.text, NOUNS[picture.type]):
            claims.pop(kind, None)
    return _contradiction(picture, claims)
