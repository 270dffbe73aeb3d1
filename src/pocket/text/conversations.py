"""The conversations about a picture that the pocket LLM learns from: requests, and good answers to them.

`conversation` strings them into the very pieces in which a prompt is tokenised later: a piece that the model will write
starts at a token boundary. `lookup_text` is read after it, by an LLM that has the layers of `towers/lookup_heads.py`.
"""

import random
from collections.abc import Callable, Sequence

from pocket.shipped import read_table
from pocket.text import answers
from pocket.text.phrases import INSTRUCTIONS, article, caption, context, dense_caption, description, in_setting, name
from pocket.text.requests import (
    ABILITIES,
    PICTURE_TYPES,
    SMALL_TALK,
    Request,
    follow_up,
    in_general,
    politely,
    request,
    words_about,
)
from pocket.world.world import KINDS, SEEDS, Picture, busy, facts, sample

_LONG: dict[str, Callable[[Picture, random.Random], str]] = {
    "describe": description, "caption": caption, "poem": answers.poem, "story": answers.story,
    "recipe": answers.recipe, "advertise": answers.advertisement, "funny": answers.funny, "website": answers.website,
}  # fmt: skip
#: The answers to questions about one object, and to requests that do not fit the picture.
_ABOUT_ONE, _DECLINES = (read_table("text/requests")[part] for part in ("answers_about_one", "declines"))


def answer(asked: Request, picture: Picture, rng: random.Random) -> str:
    """One good answer to the request."""
    if asked.ability in _LONG:
        return _LONG[asked.ability](picture, rng)
    if asked.ability in _ABOUT_ONE:
        words = words_about(picture, asked.item or 0)
        return rng.choice(_ABOUT_ONE[asked.ability]).format(**words)
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


def _misplaced(picture: Picture, rng: random.Random, abilities: Sequence[str]) -> tuple[Request, str]:
    """A request for one of `abilities`, which do not fit the picture, and an honest answer."""
    ability = rng.choice(abilities)
    asked = Request(ability, in_general(ability, rng))
    return asked, f"{_DECLINES[ability]} It shows {answers.summary(picture, rng)}."


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
        result.append((politely(asked.text, rng), reply))
        last = asked
    return result


def quiz(
    picture: Picture, rng: random.Random, count: int, without: frozenset[str] = frozenset()
) -> list[tuple[str, str, str]]:
    """`count` short questions about a scene, each with its answer and the word in it that has to be looked up.

    Looking up is what a description hardly practises.
    """
    short = [ability for ability in _SHORT if ability not in without]
    asked = [request(rng.choice(short), picture, rng) for _ in range(count)]
    for k in range(1, count):
        if rng.random() < 0.3:
            asked[k] = follow_up(asked[k - 1], picture, rng, without)
    found = []
    for question in asked:
        word = {"yes": "Yes", "no": "No"}.get(question.expected or "", question.expected or "")
        found.append((politely(question.text, rng), answer(question, picture, rng), word))
    return found


_SHORT = ("colour", "colour", "where", "where", "where", "what", "size", "exists", "exists", "exists", "count")
#: The pocket LLM first learns to copy, from long answers; from this sample on, most talk about scenes is a quiz,
#: and many more scenes have four objects.
QUIZZES_FROM = 160_000

#: A piece of text, and how much its tokens weigh in what the model is to learn to write: nothing, once, or more.
Piece = tuple[str, float]


def conversation(
    seed: int, system: str, without: frozenset[str] = frozenset(), quizzes: bool | None = None
) -> list[Piece]:
    """One sample of the pocket LLM's text from a text seed: pieces `(text, learn)`.

    The piece at index 1 is the picture in words, in the place where an image will stand: after nothing in the bare form
    of stage 1, after the chat's opening otherwise. `system` is the system text of the long chat template. What is in
    `without` is never asked for; `quizzes` says whether there are any (None: from `QUIZZES_FROM` on).
    """
    rng = random.Random(f"text-{seed}")
    if quizzes is None:
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
    if picture.type == "scene" and quizzes and rng.random() < 0.75:
        talk = [(question, reply) for question, reply, _ in quiz(picture, rng, rng.choice((6, 8, 10)), without)]
    else:
        talk = turns(picture, rng, count, without)
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
        asked = in_general(rng.choice(("describe", "caption")), rng)
        pieces.append((f"Question: {asked} Answer: ", False))
    text = caption(picture, rng) if rng.random() < 0.3 else dense_caption(picture, rng)
    return [*pieces, (text, True), ("\n", True)]


#: The first text seed of `lookup_text`.
LOOKUP_SEEDS = SEEDS["text"][0] + 40_000_000
#: So many samples are drills, until reading what was looked up is learnt.
DRILLS_FIRST = 2 * 1024
#: Shares of drills, quizzes and all else after that, so that it is not lost again; and, from a later sample on, once it
#: is safe, so that all else becomes as good as it was.
LOOKING_UP, LONG_ANSWERS, LONG_ANSWERS_FROM = (0.25, 0.4, 0.35), (0.08, 0.3, 0.62), 28 * 1024
#: How much the word that an answer stands or falls with weighs.
DECISIVE = 6.0


def lookup_text(seed: int, system: str) -> list[Piece]:
    """One sample of the text that teaches the pocket LLM to look things up: drills, quizzes, and all else it can do.

    `system` as in `conversation`, which most of what is neither drill nor quiz comes from.
    """
    rng = random.Random(f"lookup-{seed}")
    number = seed - LOOKUP_SEEDS
    shares = LOOKING_UP if number < LONG_ANSWERS_FROM else LONG_ANSWERS
    kind = "drill" if number < DRILLS_FIRST else rng.choices(("drill", "quiz", "else"), shares)[0]
    if kind == "else":
        return conversation(seed, system, quizzes=False)
    picture = busy(seed) if rng.random() < 0.6 else sample(seed, "scene")
    pieces: list[Piece] = [("###Human: <Img>", 0), (context(picture, rng), 0), ("</Img>", 0)]
    if kind == "drill":
        return [*pieces, *_drill(picture, rng)]
    lead = " "
    for question, reply, word in quiz(picture, rng, rng.choice((6, 8, 10))):
        before, _, after = reply.partition(word)
        pieces += [(f"{lead}{question}###Assistant: ", 0)]
        pieces += [(before.rstrip(), 1)] if before else []
        pieces += [(f" {word}" if before else word, DECISIVE), (after, 1), ("###", 1)]
        lead = "Human: "
    return pieces


def _drill(picture: Picture, rng: random.Random) -> list[Piece]:
    """Short sentences about a scene, of which only the word that has to be looked up is learnt."""
    pieces: list[Piece] = []
    for _ in range(14):
        item = rng.choice(picture.items)
        about = rng.choice(("colour", "colour", "place", "place", "exists"))
        if about == "exists":
            kind = rng.choice((item.kind, rng.choice(KINDS)))
            there = kind in {other.kind for other in picture.items}
            pieces += [(f" Is there {article(kind)}?", 0), (" Yes" if there else " No", DECISIVE), (".", 0)]
        else:
            start = f" The {item.kind} is" if about == "colour" else f" The {item.kind} is at the"
            pieces += [(start, 0), (f" {item.colour if about == 'colour' else item.place}", DECISIVE), (".", 0)]
    return pieces
