from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from minigpt4 import MiniGPT4, UserError
from minigpt4.generation.engine import answers
from minigpt4.prompts.templates import Message

Says = Callable[[Sequence[str]], MiniGPT4]

PLAIN = {"do_sample": False, "max_new_tokens": 40}
QUESTIONS = ["What is it?" + " Tell me more." * i for i in range(8)]


def test_a_batch_gives_the_answers_of_single_runs(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    batch = answers(model, pictures, QUESTIONS, **PLAIN)
    single = [answers(model, p, q, **PLAIN)[0] for p, q in zip(pictures, QUESTIONS, strict=True)]
    assert batch == single
    assert len({len(answer.tokens) for answer in batch}) > 2, "answers of one length would prove little"
    assert {answer.ended for answer in batch} == {True, False}


def test_beams_are_searched_for_each_prompt_on_its_own(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    settings = {"num_beams": 3, "max_new_tokens": 12}
    batch = model.generate(pictures[:3], QUESTIONS[:3], **settings)
    assert batch == [model.generate(p, q, **settings)[0] for p, q in zip(pictures[:3], QUESTIONS[:3], strict=True)]
    assert batch != model.generate(pictures[:3], QUESTIONS[:3], do_sample=False, max_new_tokens=12)


@pytest.mark.parametrize("end", [["###"], ["#", "##"], ["##", "#X"], [".###Human"]], ids=" ".join)
def test_an_answer_stops_where_its_template_says(says: Says, end: list[str]) -> None:
    model = says(["A", " red", "b", *end, "more", "words"])
    [answer] = answers(model, None, "What is it?", **PLAIN)
    assert answer.text == "A redb" + ("." if end[0].startswith(".") else "")
    assert answer.ended
    assert "".join(model.start_chat().stream("What is it?", **PLAIN)) == answer.text


def test_an_answer_stops_at_the_end_tokens_of_the_llms_own_config(says: Says) -> None:
    model = says(["A", " red", "b", "more"])
    model.blip2.language_model.generation_config.eos_token_id = [2, model.tokenizer.convert_tokens_to_ids("b")]
    [answer] = answers(model, None, "What is it?", **PLAIN)
    assert (answer.text, answer.ended) == ("A red", True)


def test_an_answer_without_an_end_says_so(says: Says) -> None:
    [answer] = answers(says(["A", " red", "b", "c"]), None, "What is it?", do_sample=False, max_new_tokens=2)
    assert (answer.text, answer.ended) == ("A red", False)


def test_a_stream_never_shows_a_part_of_the_stop_string(says: Says) -> None:
    model = says(["A", "#", "b", "##", "c", "d#", "##x", "more"])
    pieces = list(model.start_chat().stream("What is it?", **PLAIN))
    assert "".join(pieces) == "A#b##cd"
    assert pieces == ["A", "#b", "##c", "d"], "what could begin the stop string is held back, and only that"


def test_a_stream_brings_the_batch_answer(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    for picture, question in zip(pictures, QUESTIONS, strict=True):
        pieces = list(model.start_chat().stream(question, picture, **PLAIN))
        assert "".join(pieces) == model.generate(picture, question, **PLAIN)[0]
        assert len(pieces) > 1


def test_closing_a_stream_stops_the_llm(says: Says) -> None:
    model = says(["A", "b", "c"])  # and then nothing more, up to the limit
    steps: list[int] = []
    model.blip2.language_model.register_forward_hook(lambda *_: steps.append(1))
    threads = set(threading.enumerate())
    running = model.start_chat().stream("What is it?", do_sample=False, max_new_tokens=450)
    assert next(iter(running)) == "A"
    running.close()  # type: ignore[attr-defined]
    assert len(steps) < 400
    assert set(threading.enumerate()) <= threads


def test_a_stream_raises_what_goes_wrong_in_it(model: MiniGPT4) -> None:
    with pytest.raises(UserError, match=r"tokens long and this LLM reads at most 512"):
        list(model.start_chat().stream("word " * 400))
    with pytest.raises(UserError, match="beams cannot be streamed"):
        list(model.start_chat().stream("What?", num_beams=2))


def test_an_answer_ends_where_the_llm_can_read_no_further(model: MiniGPT4) -> None:
    question = "a" * 480
    [answer] = answers(model, None, question, do_sample=False, max_new_tokens=300)
    prompt = 512 - len(answer.tokens)
    assert 480 < prompt < 512
    assert not answer.ended


def test_a_prompt_near_the_llms_end_leaves_the_others_their_room(model: MiniGPT4) -> None:
    prompts = [QUESTIONS[1], "a" * 480]
    short, long = answers(model, None, prompts, **PLAIN)
    assert [short, long] == [answers(model, None, prompt, **PLAIN)[0] for prompt in prompts]
    assert len(short.tokens) > len(long.tokens), "a short answer would prove nothing"
    assert (short.ended, long.ended) == (True, False)


def test_half_a_character_in_a_question_is_read_as_a_space(model: MiniGPT4) -> None:
    asked, read = (model.generate(None, f"caf{letter}?", **PLAIN) for letter in ("\udce9", " "))
    assert asked == read


def test_the_image_token_is_never_generated(says: Says) -> None:
    model = says(["A", "<image>", "b"])
    for settings in (PLAIN, {"seed": 0, "max_new_tokens": 200}, {"num_beams": 2, "max_new_tokens": 20}):
        [answer] = answers(model, None, "What is it?", **settings)
        assert model.image_token_id not in answer.tokens
    head = model.blip2.language_model.get_output_embeddings().weight
    assert head[model.image_token_id].abs().sum() > 0, "without suppression it would be the likeliest"


def test_features_stand_for_images(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    expected = model.generate(pictures, QUESTIONS, **PLAIN)
    features = model.encode_images(pictures)
    assert model.generate(prompts=QUESTIONS, features=features, **PLAIN) == expected
    assert model.generate(prompts=QUESTIONS[2], features=features[2:3], **PLAIN) == expected[2:3]
    with pytest.raises(UserError, match="not both"):
        model.generate(pictures, QUESTIONS, features=features)
    with pytest.raises(UserError, match="features of 8 images were given for 2 prompts"):
        model.generate(None, QUESTIONS[:2], features=features)


def test_one_picture_serves_many_questions_and_one_question_many_pictures(
    model: MiniGPT4, pictures: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    pictures[3].save(path)
    calls: list[int] = []
    hook = model.blip2.vision_model.register_forward_hook(lambda module, inputs, output: calls.append(len(output[0])))
    shared = model.generate(path, QUESTIONS[:3], **PLAIN)
    assert calls == [1], "encoded once"
    hook.remove()
    assert shared == model.generate([pictures[3]] * 3, QUESTIONS[:3], **PLAIN)
    features = model.encode_images([pictures[3]])
    assert shared == model.generate(prompts=QUESTIONS[:3], features=features, **PLAIN)
    assert model.generate(pictures, QUESTIONS[0], **PLAIN) == model.generate(pictures, QUESTIONS[:1] * 8, **PLAIN)


def test_several_pictures_stand_in_their_order(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    settings = {"do_sample": False, "max_new_tokens": 20}
    one, other = pictures[0], pictures[7]
    batch = model.generate([[one, other], [other, one], None], ["Compare."] * 3, **settings)
    assert len(set(batch)) == 3
    assert batch[0] == model.generate([[one, other]], ["Compare."], **settings)[0]
    marked = model.generate([[one, other]], ["<ImageHere> and <ImageHere>: compare."], **settings)
    assert marked[0] not in batch


def test_a_conversation_is_continued(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    said = [Message("user", "What is it?", 1), Message("assistant", "A red ball."), Message("user", "Where?")]
    [continued] = model.generate(pictures[:1], [said], **PLAIN)
    assert continued != model.generate(pictures[:1], ["Where?"], **PLAIN)[0]
    unsaid = [Message("user", "What is it?"), *said[1:]]
    assert model.generate(pictures[:1], [unsaid], **PLAIN) == [continued], "a picture belongs to the first turn"
    with pytest.raises(UserError, match="speaks of 1 images, but 2 were given"):
        model.generate([pictures[:2]], [said])


def test_pictures_and_prompts_must_be_as_many(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    with pytest.raises(UserError, match="3 images were given for 2 prompts"):
        model.generate(pictures[:3], QUESTIONS[:2])
    with pytest.raises(UserError, match="at least one prompt"):
        model.generate(pictures[0], [])
    with pytest.raises(UserError, match=r"nowhere\.png"):
        model.generate("nowhere.png", "What is it?")


def test_sampling_is_the_default_and_a_seed_repeats_it(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    state = torch.random.get_rng_state()
    first = model.generate(pictures, QUESTIONS, seed=1, max_new_tokens=20)
    assert first == model.generate(pictures, QUESTIONS, seed=1, max_new_tokens=20)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers are left alone"
    assert first != model.generate(pictures, QUESTIONS, seed=2, max_new_tokens=20)
    assert first != model.generate(pictures, QUESTIONS, max_new_tokens=20, do_sample=False)
    tokens = [answers(model, pictures[0], "What?", seed=3, max_new_tokens=9, top_p=1e-6, repetition_penalty=1.0)]
    assert tokens == [answers(model, pictures[0], "What?", max_new_tokens=9, do_sample=False)]


def test_a_repetition_penalty_makes_a_token_rarer(model: MiniGPT4) -> None:
    def repeated(penalty: float) -> int:
        [answer] = answers(
            model, None, "What?", do_sample=False, max_new_tokens=120, repetition_penalty=penalty, template="llama2"
        )
        return len(answer.tokens) - len(set(answer.tokens))

    assert repeated(5.0) < repeated(1.0)


def test_settings_in_the_llms_files_do_not_leak_in(tiny_vision: Path, tiny_llm: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")
    expected = model.generate(None, QUESTIONS, **PLAIN)
    own = model.blip2.language_model.generation_config
    own.do_sample, own.temperature, own.top_p, own.max_length = True, 7.0, 0.1, 3
    own.num_beams, own.repetition_penalty = 4, 9.0
    assert model.generate(None, QUESTIONS, **PLAIN) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 5}, "there is no generation setting 'max_tokens'; the settings are max_new_tokens, "),
        ({"max_new_tokens": 0}, "max_new_tokens=0 does not work: it must be at least 1"),
        ({"temperature": 0.0}, "use do_sample=False"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0"),
        ({"num_beams": 0}, "num_beams=0"),
        ({"seed": 10**20}, "seed=100000000000000000000 does not work: it must be of at most 63 bits"),
        ({"template": "nonsense"}, "there is no chat template 'nonsense'"),
    ],
)
def test_wrong_settings_are_named(model: MiniGPT4, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match="^(?s:.*)" + message.replace("(", r"\(").replace(")", r"\)")):
        model.generate(None, "What is it?", **settings)  # type: ignore[arg-type]


def test_equal_pictures_are_encoded_once(model: MiniGPT4, pictures: list[Image.Image], tmp_path: Path) -> None:
    """In a batch and in a chat, whatever form they come in; a picture changed by a pixel is another one."""
    pictures[0].save(tmp_path / "a.png")
    pictures[0].save(tmp_path / "b.bmp")
    changed = pictures[0].copy()
    changed.putpixel((3, 3), (0, 0, 0))
    calls: list[int] = []
    hook = model.blip2.vision_model.register_forward_hook(lambda module, inputs, output: calls.append(len(output[0])))
    same = [tmp_path / "a.png", str(tmp_path / "b.bmp"), (tmp_path / "a.png").read_bytes(), pictures[0].copy()]
    answered = model.generate([*same, changed], "What is it?", do_sample=False, max_new_tokens=5)
    assert calls == [2]
    assert len(set(answered[:4])) == 1
    chat = model.start_chat()
    for picture in (same[0], changed, same[3], [same[1], changed]):
        chat.ask("What is it?", image=picture, do_sample=False, max_new_tokens=2)
    hook.remove()
    assert calls == [2, 1, 1]
