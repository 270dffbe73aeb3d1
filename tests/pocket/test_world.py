"""The truth of the pocket world: seeds name pictures, ranges are disjoint, texts keep every fact."""

import random

import pytest

from minigpt4.text_failures import failure
from pocket.measure.truth import check
from pocket.text.conversations import answer, conversation
from pocket.text.phrases import caption, context, dense_caption
from pocket.text.requests import ABILITIES, PICTURE_TYPES, follow_up, request
from pocket.world import world

PICTURES = [world.sample(world.SEEDS["development"][0] + k) for k in range(300)]


def test_a_seed_names_a_picture():
    assert world.sample(17) == world.sample(17)
    assert world.sample(17, "draft").type == "draft"
    assert len({world.facts(p)[0] for p in PICTURES}) == len(world.TYPES)


def test_the_world_is_as_rich_as_promised():
    assert len(world.KINDS) >= 24
    assert len(world.COLOURS) == 8
    assert len(world.BACKGROUNDS) >= 6
    assert len(world.INGREDIENTS) >= 14
    assert len(world.ANIMALS) * len(world.PROPS) >= 30
    assert len(world.TITLES) >= 40
    assert {len(p.items) for p in PICTURES if p.type == "scene"} == {1, 2, 3, 4}


def test_seed_ranges_are_disjoint():
    ranges = sorted(world.SEEDS.values())
    assert all(first + count <= following for (first, count), (following, _) in zip(ranges, ranges[1:], strict=False))


def test_facts_fit_and_boxes_lie_in_the_picture():
    for picture in PICTURES:
        assert len(world.facts(picture)) <= world.MAX_FACTS
        for item in picture.items:
            assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in item.boxes)


def test_an_unknown_type_is_refused():
    with pytest.raises(ValueError, match="scene, food"):
        world.sample(1, "opera")


@pytest.mark.parametrize("ability", ABILITIES)
def test_reference_answers_pass_their_own_check(ability):
    """The checks are written apart from the texts: each must find every reference answer right and whole."""
    seen = 0
    for picture in PICTURES:
        if picture.type not in PICTURE_TYPES[ability]:
            continue
        rng = random.Random(picture.seed)
        asked = request(ability, picture, rng)
        for question in (asked, follow_up(asked, picture, rng)):
            text = answer(question, picture, rng)
            assert check(question, picture, text).success, (question, text)
            assert failure(text, True) is None, text
            seen += 1
    assert seen > 20


def test_answers_fail_the_check_of_another_picture():
    scenes = [p for p in PICTURES if p.type == "scene"]
    rng = random.Random(0)
    wrong = 0
    for picture, other in zip(scenes, scenes[1:], strict=False):
        asked = request("describe", picture, rng)
        wrong += not check(asked, picture, answer(request("describe", other, rng), other, rng)).success
    assert wrong == len(scenes) - 1


def test_contexts_and_dense_captions_hold_every_fact():
    rng = random.Random(0)
    for picture in PICTURES:
        for item in picture.items:
            assert item.kind in dense_caption(picture, rng) or picture.type == "draft"
            assert (item.colour or "") in context(picture, rng)


def test_texts_vary():
    picture = next(p for p in PICTURES if p.type == "scene" and len(p.items) == 2)
    rng = random.Random(0)
    assert len({caption(picture, rng) for _ in range(60)}) > 15
    assert len({answer(request("poem", picture, rng), picture, rng) for _ in range(60)}) > 20


def test_conversations_are_pieces_with_the_context_second():
    for seed in range(*(world.SEEDS["text"][0] + k for k in (0, 40))):
        pieces = conversation(seed, "system")
        assert pieces == conversation(seed, "system")
        assert not pieces[1][1]
        assert pieces[-1][1]
        assert pieces[-1][0] in ("###", "\n")
