"""Where answers end behind a vLLM server, shown by a toy LLM that says what the test wants."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from server import Client, said, serve, shown, user
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4 import MiniGPT4
from speaking import make_it_say
from tiny import D_LLM, tiny_tokenizer

PICTURE = Image.new("RGB", (40, 30), "teal")


@pytest.fixture(scope="module")
def model(tiny_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> MiniGPT4:
    """Says "It is #teal." and the stop string, in tokens that hold what stands around it too, and goes on.

    What it would say first of all is `<image>`.
    """
    directory = tmp_path_factory.mktemp("llm")
    config = LlamaConfig(
        vocab_size=tiny_tokenizer(directory), hidden_size=D_LLM, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=1, num_key_value_heads=1, head_dim=64,  # vLLM has no attention for smaller heads
        max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    model = MiniGPT4.assemble(tiny_vision, directory, template="vicuna_v0", dtype="float32", device="cpu")
    llm = model.blip2.language_model
    make_it_say(llm, model.tokenizer, ["It", " is", " #", "teal", ".#", "##Human", ": And"])
    start = llm.get_input_embeddings().weight[model.tokenizer("Assistant: ", add_special_tokens=False)["input_ids"][-1]]
    with torch.no_grad():
        llm.get_output_embeddings().weight[model.image_token_id] += 2 * start
    return model


@pytest.fixture(scope="module")
def client(model: MiniGPT4, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    directory = tmp_path_factory.mktemp("serving")
    model.export(directory / "export")
    with serve(directory / "export", directory / "server.log") as url:
        yield Client(url)


def test_the_stop_string_ends_an_answer_whatever_its_tokens_hold(model: MiniGPT4, client: Client) -> None:
    assert model.generate(PICTURE, ["What?"], do_sample=False, max_new_tokens=20) == ["It is #teal."]
    response = client.ask(user(shown(PICTURE), said("What?")), max_tokens=20)
    assert response.choices[0].message.content == "It is #teal."
    assert response.choices[0].finish_reason == "stop"


def test_no_part_of_the_stop_string_is_streamed(client: Client) -> None:
    chunks = client.ask(user(shown(PICTURE), said("What?")), max_tokens=20, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "It is #teal."
    assert len(pieces) > 2


def test_a_request_may_have_stop_strings_of_its_own(client: Client) -> None:
    response = client.ask(user(shown(PICTURE), said("What?")), max_tokens=20, stop=["teal", "rust"])
    assert response.choices[0].message.content == "It is #"
    response = client.ask(user(shown(PICTURE), said("What?")), max_tokens=20, stop="rust")
    assert response.choices[0].message.content == "It is #teal."
