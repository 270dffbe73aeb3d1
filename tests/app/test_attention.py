"""What the model looked at: weights that are weights, that point at what a word names, and that change no answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from minigpt4 import MiniGPT4, UserError
from minigpt4.app.page.attention import patch_attention, token_influence, words
from pocket.world import world
from pocket.world.draw import draw

PLAIN: dict[str, Any] = {"do_sample": False, "max_new_tokens": 40}


def test_words_of_tokens(varied: MiniGPT4) -> None:
    for text in ("A large red  ball.\nÜnü, 日本 lies", " lies", ""):
        tokens = varied.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = words(varied.tokenizer, tokens)
        assert [word for word, _, _ in found] == text.split()
        for word, start, end in found:
            assert word in varied.tokenizer.decode(tokens[start:end])


def test_the_pocket_model_looks_where_the_object_is_that_it_names() -> None:
    model = MiniGPT4.from_pretrained("pocket")
    hits = mass = area = total = 0.0
    for seed in range(12_200_000, 12_200_006):
        truth = world.sample(seed, "scene")
        picture, chat = draw(truth, 224), model.start_chat()
        before = chat.ask("Describe this image in detail.", image=picture, **PLAIN)
        ids, start, features = chat.reading(0)
        [patches] = patch_attention(model, [picture])
        assert torch.allclose(patches.sum((-2, -1)), torch.ones(len(patches)))
        for item in truth.items:
            left, top, right, bottom = item.boxes[0]
            middle = (torch.arange(8) + 0.5) / 8
            inside = ((middle > top) & (middle < bottom))[:, None] & ((middle > left) & (middle < right))
            for word, first, last in words(model.tokenizer, ids[start:]):
                if word.strip(".,") == item.kind and inside.any():
                    [weights] = token_influence(model, ids, features, start + first, start + last)
                    assert weights.sum() == pytest.approx(1)
                    heat = torch.einsum("q,qrc->rc", weights, patches)
                    hits += bool(inside.flatten()[heat.argmax()])
                    mass, area, total = mass + float(heat[inside].sum()), area + float(inside.float().mean()), total + 1
        assert chat.model.start_chat().ask("Describe this image in detail.", image=picture, **PLAIN) == before
    assert total > 8
    assert hits / total > 0.6, "the hottest patch lies on the object"
    assert mass / total > 3 * area / total


def test_every_picture_of_a_chat_has_its_share(varied: MiniGPT4, pictures: list[Image.Image]) -> None:
    chat = varied.start_chat()
    chat.ask("What is it?", image=pictures[0], **PLAIN)
    chat.ask("How does it differ from the first image?", image=pictures[1], **PLAIN)
    ids, start, features = chat.reading(1)
    assert token_influence(varied, ids, features, start, start + 1).shape == (2, varied.num_query_tokens)
    ids, start, features = chat.reading(0)
    assert token_influence(varied, ids, features, start, start + 1).shape == (1, varied.num_query_tokens)
    chat.reset()
    chat.ask("Hello?", **PLAIN)
    ids, start, features = chat.reading(0)
    with pytest.raises(UserError, match="no image was shown"):
        token_influence(varied, ids, features, start, start + 1)


def test_without_a_qformer_a_token_is_its_patches(tiny_vision: Path, tiny_llm: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", qformer=False, dtype="float32", device="cpu")
    [patches] = patch_attention(model, [Image.new("RGB", (40, 30))])
    assert patches.shape == (model.num_query_tokens, 4, 4)
    assert torch.equal(patches.sum(0), torch.full((4, 4), 0.25))
    assert patches[1].flatten().nonzero().flatten().tolist() == [4, 5, 6, 7]
