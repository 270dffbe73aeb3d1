"""The text that teaches the pocket LLM to look things up: drills and quizzes, and all else that it can do.

Read after `conversation`, by an LLM that has the layers of `lookup_heads`.
"""

from __future__ import annotations

import random

from pocket.text.conversations import Piece, conversation, quiz
from pocket.text.phrases import article, context
from pocket.world.world import KINDS, SEEDS, Picture, busy, sample

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
