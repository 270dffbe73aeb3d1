"""Where the projection starts: among words, or carried over from another LLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, Blip2ForConditionalGeneration, LlamaConfig, LlamaForCausalLM, T5Config

from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.lora import Trained
from minigpt4.model.projection import carry_projection, fit_to_words, start_among_words
from tiny import tiny_tokenizer

FEATURES = torch.randn(3, 4, 24, generator=torch.Generator().manual_seed(0))


def other_llm(tiny_llm: Path, directory: Path) -> Path:
    """An LLM whose word embeddings are `tiny_llm`'s through a linear map, in another order."""
    size = tiny_tokenizer(directory, special=("<image>", "</s>", "<s>", "<pad>"))
    config = LlamaConfig(
        vocab_size=size, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=2, eos_token_id=1, pad_token_id=3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    ours = json.loads((tiny_llm / "tokenizer.json").read_text())["model"]["vocab"]
    theirs = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    words = load_file(tiny_llm / "model.safetensors")["model.embed_tokens.weight"]
    carry = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for word, row in theirs.items():
            model.model.embed_tokens.weight[row] = words[ours[word]] @ carry
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def aligned(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> MiniGPT4:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", seed=7)
    model.save_pretrained(tmp_path / "aligned")
    return model


def test_what_was_near_a_word_is_near_the_same_word_of_the_other_llm(
    aligned: MiniGPT4, tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    """The other LLM's embeddings are a linear map of the first's, which the regression finds."""
    other = other_llm(tiny_llm, tmp_path / "llm")
    model = MiniGPT4.assemble(tiny_vision, other, template="pocket", device="cpu")
    before = model.project(FEATURES)
    carry_projection(model, tmp_path / "aligned")
    carry = torch.randn(32, 48, generator=torch.Generator().manual_seed(1))
    expected, found = aligned.project(FEATURES) @ carry, model.project(FEATURES)
    near = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
    assert near.min() > 0.99
    assert torch.nn.functional.cosine_similarity(before, expected, dim=-1).max() < 0.9
    assert model.blip2.language_projection.weight.dtype is torch.float32


@pytest.mark.parametrize("kind", ["export", "encoder-decoder"])
def test_from_a_blip2_checkpoint(
    aligned: MiniGPT4, tiny_vision: Path, tiny_llm: Path, tmp_path: Path, kind: str
) -> None:
    """As they lie on the hub, with the LLM inside, T5 as well."""
    checkpoint = tmp_path / "checkpoint"
    if kind == "export":
        aligned.export(checkpoint)
    else:
        t5: Any = T5Config(vocab_size=320, d_model=40, d_ff=8, num_layers=1, num_heads=1, d_kv=8)
        config = Blip2Config(
            vision_config=aligned.blip2.config.vision_config, qformer_config=aligned.blip2.config.qformer_config,
            text_config=t5, num_query_tokens=4,
        )  # fmt: skip
        blip2 = Blip2ForConditionalGeneration(config)
        blip2.load_state_dict(load_file(tiny_vision / "model.safetensors"), strict=False)
        blip2.save_pretrained(checkpoint)
        aligned.tokenizer.save_pretrained(checkpoint)
        shutil.copy(tiny_vision / "preprocessor_config.json", checkpoint)
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    before = model.blip2.language_projection.weight.clone()
    carry_projection(model, checkpoint)
    assert not torch.equal(model.blip2.language_projection.weight, before)
    if kind == "export":  # of the same LLM: all but the ridge's shrinking stays as it was
        near = torch.nn.functional.cosine_similarity(model.project(FEATURES), aligned.project(FEATURES), dim=-1)
        assert near.min() > 0.99


def test_what_cannot_be_carried_over(aligned: MiniGPT4, tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such directory"):
        carry_projection(aligned, "nowhere")
    with pytest.raises(UserError, match=r"projection_from .*: is no BLIP-2; give an alignment or a BLIP-2 checkpoint"):
        carry_projection(aligned, tiny_llm)
    vision = shutil.copytree(tiny_vision, tmp_path / "vision")
    tensors = load_file(vision / "model.safetensors")
    save_file({**tensors, "query_tokens": tensors["query_tokens"] + 1}, vision / "model.safetensors")
    other = MiniGPT4.assemble(vision, tiny_llm, template="pocket", device="cpu")
    with pytest.raises(UserError, match="its vision side is another one than"):
        carry_projection(other, tmp_path / "aligned")


def test_image_tokens_get_the_mean_and_the_spread_of_words(aligned: MiniGPT4) -> None:
    """What they say stays: the same directions from their mean."""
    words = aligned.blip2.language_model.get_input_embeddings().weight
    with torch.no_grad():
        words += 3.0
        aligned.blip2.language_projection.weight *= 40
    before = aligned.project(FEATURES).flatten(0, 1)
    fit_to_words(aligned, FEATURES)
    after = aligned.project(FEATURES).flatten(0, 1)
    torch.testing.assert_close(after.mean(0), words.mean(0))
    spread = (after - after.mean(0)).norm(dim=-1).mean()
    torch.testing.assert_close(spread, (words - words.mean(0)).norm(dim=-1).mean())
    near = torch.nn.functional.cosine_similarity(after - after.mean(0), before - before.mean(0), dim=-1)
    assert near.min() > 0.9999


@pytest.mark.parametrize("layers", [1, 3])
def test_image_tokens_start_around_the_mean_word(tiny_vision: Path, tiny_llm: Path, layers: int) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="vicuna_v0", trained=Trained(projection_layers=layers))
    words = model.blip2.language_model.get_input_embeddings().weight
    with torch.no_grad():
        words += 3.0  # something that all have in common
    start_among_words(model)
    nothing = torch.zeros(1, 4, 24)
    last = model.blip2.language_projection if layers == 1 else model.blip2.language_projection[-1]
    torch.testing.assert_close(last.bias, words.mean(0))
    if layers == 1:
        torch.testing.assert_close(model.project(nothing)[0, 0], words.mean(0))
