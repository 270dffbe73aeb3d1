"""The exact strings of every chat format: what the released checkpoints, and the pocket LLM, were taught."""

import pytest

from minigpt4.errors import UserError
from minigpt4.prompts.templates import TEMPLATES, Message, get_template, stage1_text, stage2_text, what_is_read

SYSTEM = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
CONVERSATION = (
    Message("user", "Describe this image in detail.", images=1),
    Message("assistant", "a red ball and a box"),
    Message("user", "What is in the left?"),
)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        (
            "vicuna_v0",
            SYSTEM + "###Human: <Img><ImageHere></Img> Describe this image in detail.###Assistant: ",
            "a red ball and a box###Human: What is in the left?###Assistant: ",
        ),
        (
            "llama2",
            SYSTEM + "<s>[INST] <Img><ImageHere></Img> Describe this image in detail. [/INST] ",
            "a red ball and a box<s>[INST] What is in the left? [/INST] ",
        ),
        (
            "pocket",
            "###Human: <Img><ImageHere></Img> Describe this image in detail.###Assistant: ",
            "a red ball and a box###Human: What is in the left?###Assistant: ",
        ),
        (
            "blip2",
            "<ImageHere>Question: Describe this image in detail. Answer: ",
            "a red ball and a box\nQuestion: What is in the left? Answer: ",
        ),
    ],
)
def test_two_turns_are_written_as_the_protocol_says(name: str, first: str, second: str) -> None:
    template = TEMPLATES[name]
    assert template.prompt(CONVERSATION[:1]) == first
    assert template.prompt(CONVERSATION) == first + second
    assert first + CONVERSATION[1].text + template.continuation(CONVERSATION[2]) == first + second


def test_several_images_stand_before_the_text_or_where_it_marks_them() -> None:
    pocket = TEMPLATES["pocket"]
    before = pocket.prompt([Message("user", "Compare them.", images=2)])
    assert before == "###Human: <Img><ImageHere></Img> <Img><ImageHere></Img> Compare them.###Assistant: "
    marked = pocket.prompt([Message("user", "Is <ImageHere> like <ImageHere>?", images=2)])
    assert marked == "###Human: Is <Img><ImageHere></Img> like <Img><ImageHere></Img>?###Assistant: "


def test_a_mark_without_an_image_is_dropped() -> None:
    assert "<ImageHere>" not in TEMPLATES["pocket"].prompt([Message("user", "Look: <ImageHere>")])


def test_marks_and_images_must_agree_in_number() -> None:
    with pytest.raises(UserError, match=r"marks 1 places .* 2 images"):
        TEMPLATES["pocket"].prompt([Message("user", "<ImageHere> and?", images=2)])


def test_a_system_message_replaces_the_templates_own() -> None:
    prompt = TEMPLATES["vicuna_v0"].prompt([Message("system", "Be brief."), Message("user", "Hi")])
    assert prompt == "Be brief.###Human: Hi###Assistant: "


@pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "assistant"], ["user", "user"], ["user", "system"]])
def test_turns_out_of_order_are_refused(roles: list) -> None:
    with pytest.raises(UserError, match="takes turns"):
        TEMPLATES["pocket"].prompt([Message(role, "text") for role in roles])


def test_an_unknown_template_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'vicuna'.*vicuna_v0, llama2, pocket, blip2"):
        get_template("vicuna")


def test_stages_are_asked_in_the_papers_form() -> None:
    assert stage1_text("a red ball") == ("<ImageHere>", "a red ball\n")
    assert stage2_text("Describe it.", "A ball.") == (
        "###Human: <Img><ImageHere></Img> Describe it. ###Assistant: ",
        "A ball.###",
    )


@pytest.mark.parametrize(
    ("question", "whole"),
    [
        *((each, False) for each in ("Describe this image in detail.", "Are both dogs brown?", "What is different?")),
        *((each, False) for each in ("What is in the second picture?", "Where is the first ball?", "Another one!")),
        *((each, True) for each in ("Compare them.", "What is in the FIRST picture?", "Is it like the other one?")),
        *((each, True) for each in ("What do both of them show?", "What do these images have in common?")),
    ],
)
def test_a_question_that_speaks_of_another_image_has_everything_read(question: str, whole: bool) -> None:
    talk = [Message("system", "Compare."), Message("user", "Hello."), Message("assistant", "Hello.")]
    talk += [Message("user", "What is it?", images=1), Message("assistant", "A ball, not the other one.")]
    assert what_is_read([*talk, Message("user", question)]) == [*talk, Message("user", question)], "there is but one"
    new = Message("user", question, images=1)
    assert what_is_read([*talk, new]) == ([*talk, new] if whole else [talk[0], new])
