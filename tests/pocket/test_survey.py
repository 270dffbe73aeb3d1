import random

import pytest

from minigpt4.prompts.templates import Message
from minigpt4.statistics import Rate
from minigpt4.text_failures import failure
from pocket.measure.survey import (
    ABILITIES,
    FIRST_QUESTIONS,
    MAX_NEW_TOKENS,
    Judged,
    draw_survey,
    measure,
    put,
    write_pictures,
)
from pocket.measure.truth import check
from pocket.text.conversations import answer
from pocket.text.phrases import dense_caption
from pocket.world import world


def records(survey, reply):
    found = []
    for question in survey.questions:
        picture = survey.pictures[question.picture]
        text = reply(question, picture)
        found.append(Judged(text, failure(text, ended=True), check(question.request, picture, text)))
    return found


def test_survey_asks_each_ability_equally_often_about_held_out_pictures():
    survey = draw_survey(6)
    first, count = world.SEEDS["evaluation"]
    seeds = [picture.seed for picture in survey.pictures]
    assert len(set(seeds)) == 30
    assert all(first <= seed < first + count for seed in seeds)
    asked = [question.ability for question in survey.questions]
    assert all(asked.count(ability) == 6 for ability in ABILITIES)
    assert sum(asked.count(ability) for ability in FIRST_QUESTIONS) == 6
    assert {survey.pictures[q.picture].type for q in survey.questions if q.ability == "describe"} == set(world.TYPES)
    for i, question in enumerate(survey.questions):
        if question.after is not None:
            before = survey.questions[question.after]
            assert question.after < i
            assert (before.picture, question.ability) == (question.picture, "follow_up")
    assert survey == draw_survey(6)
    assert not set(seeds) & {picture.seed for picture in draw_survey(6, seed=1).pictures}


def test_whoever_knows_the_truth_reaches_every_rate_in_full():
    rng = random.Random(0)
    survey = draw_survey(10)
    rates = measure(survey, records(survey, lambda question, picture: answer(question.request, picture, rng)))
    assert {name: rate.share for name, rate in rates.items() if name.startswith("fails")} == {
        "fails_describe": 0, "fails_poem": 0,
    }  # fmt: skip
    assert {rate.share for name, rate in rates.items() if not name.startswith("fails")} == {1}
    assert rates["abilities"] == Rate(80, 80)


def test_whoever_only_ever_gives_captions_has_no_abilities():
    rng = random.Random(0)
    survey = draw_survey(10)
    rates = measure(survey, records(survey, lambda question, picture: dense_caption(picture, rng)))
    assert rates["kind_colour"].share == rates["place"].share == 1
    assert rates["fails_describe"].share == 0
    assert {name: rates[name].successes for name in ABILITIES[:-2]} == dict.fromkeys(ABILITIES[:-2], 0)


def test_partly_right_descriptions_count_by_object():
    survey = draw_survey(3)
    ours = records(survey, lambda question, picture: f"a {picture.items[0].colour} {picture.items[0].kind}")
    scenes = [p for p in survey.pictures if p.type == "scene"]
    rates = measure(survey, ours)
    assert rates["kind_colour"] == Rate(3, sum(len(picture.items) for picture in scenes))
    assert rates["place"].successes == 0


@pytest.fixture
def model(tiny_vision, tiny_llm):
    from minigpt4.minigpt4 import MiniGPT4

    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket")


def test_put_gives_each_question_the_answer_it_would_have_alone(model, tmp_path):
    survey = draw_survey(2)
    paths = write_pictures(survey, tmp_path)
    assert {path.suffix for path in paths} == {".png", ".jpg"}
    answered = []
    found = put(survey, model, model.encode_images(paths), batch_size=5, progress=answered.append)
    assert sum(answered) == len(found) == len(survey.questions)

    last = survey.questions[-1]
    assert last.after is not None
    before = survey.questions[last.after].request.text
    settings = {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS}
    [first] = model.generate(paths[last.picture], before, **settings)
    turns = [Message("user", before), Message("assistant", first), Message("user", last.request.text)]
    assert first == found[last.after].text
    assert model.generate(paths[last.picture], turns, **settings) == [found[-1].text]


def test_pictures_are_drawn_once(tmp_path):
    survey = draw_survey(1)
    [path, *_] = write_pictures(survey, tmp_path)
    path.write_bytes(b"mine")
    write_pictures(survey, tmp_path)
    assert path.read_bytes() == b"mine"
