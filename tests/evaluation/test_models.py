"""Everyone who can answer gives what the model itself gives: local ones, a plain BLIP-2, an endpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaTokenizer

from endpoint import Server
from evaluating import picture_folder
from minigpt4 import MiniGPT4
from minigpt4.errors import UserError
from minigpt4.evaluation.items import Item
from minigpt4.evaluation.models import (
    BLIP2_PROMPT,
    Answering,
    Blip2Answerer,
    EndpointAnswerer,
    MiniGPT4Answerer,
    ModelReply,
    open_answerer,
)
from minigpt4.images import open_image
from minigpt4.model.loading import weights_fingerprint
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message

OPTIONS = ("a red ball", "blue", "the large green tree at the top-left", "red")


@pytest.fixture(scope="module")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def alignment(model: MiniGPT4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alignment") / "model"
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def export(model: MiniGPT4, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "model"
    model.export(directory)
    return directory


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Image.Image]:
    folder = picture_folder(tmp_path_factory.mktemp("photos") / "photos", 5)
    return [open_image(folder / f"{number}.png") for number in range(5)]


def manual(logits: torch.Tensor, ids: list[int], head: int) -> float:
    """The log-likelihood of what stands behind the first `head` tokens, one token at a time."""
    said = logits[0].log_softmax(-1)
    return sum(float(said[place - 1, ids[place]]) for place in range(head, len(ids)))


def test_a_local_model_answers_greedily_as_it_does_itself(
    model: MiniGPT4, alignment: Path, pictures: list[Image.Image]
) -> None:
    prompts = [f"What is in picture {number}?" for number in range(5)]
    found = open_answerer(str(alignment)).answer(pictures, prompts, max_new_tokens=12)
    expected = model.generate(images=pictures, prompts=prompts, do_sample=False, max_new_tokens=12)
    assert [reply.text for reply in found] == expected
    assert len(set(expected)) > 1


def test_samples_differ_and_repeat(alignment: Path, pictures: list[Image.Image]) -> None:
    answerer = open_answerer(str(alignment), Answering(temperature=1.0, seed=3))
    first, second = (answerer.answer(pictures, ["Hi"] * 5, max_new_tokens=8, sample=k) for k in (0, 1))
    assert first != second
    assert first == open_answerer(str(alignment), answerer.settings).answer(pictures, ["Hi"] * 5, max_new_tokens=8)


def test_likelihoods_of_options_are_those_of_each_option_alone(
    model: MiniGPT4, alignment: Path, pictures: list[Image.Image]
) -> None:
    asked = ["What is it?", "Which colour does the ball have?"]
    replies = open_answerer(str(alignment)).likelihoods(pictures[:2], asked, [OPTIONS, OPTIONS[:2]])
    assert [len(reply.scores) for reply in replies] == [4, 2]
    for picture, prompt, reply in zip(pictures, asked, replies, strict=False):
        head = encode_chat(
            model.tokenizer, model.template, [Message("user", prompt, 1)], model.num_query_tokens, model.image_token_id
        )
        for option, score, length in zip(OPTIONS, reply.scores, reply.lengths, strict=False):
            tail = model.tokenizer(option, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([[*head, *tail]])
            with torch.inference_mode():
                logits = model.logits(model.hidden_states(ids, model.encode_images([picture])))
            assert score == pytest.approx(manual(logits, ids[0].tolist(), len(head)), abs=1e-4)
            assert length == len(tail)
        assert reply.text == OPTIONS[max(range(len(reply.scores)), key=lambda i: reply.scores[i])]


def test_options_have_the_tokens_that_sentencepiece_learns_answers_by(
    tiny_vision: Path, tiny_llm: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    pieces = ["<unk>", "<s>", "</s>", "<image>", *dict.fromkeys("▁#Human:Assitc.Wxed"), "▁r", "▁re", "▁red"]
    merges = [("▁", "r"), ("▁r", "e"), ("▁re", "d")]
    LlamaTokenizer({piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "r"]))}, merges).save_pretrained(llm)
    MiniGPT4.assemble(tiny_vision, llm, template="vicuna_v0", device="cpu").save_pretrained(tmp_path / "a")
    [reply] = open_answerer(str(tmp_path / "a")).likelihoods(pictures[:1], ["A?"], [["red", "re"]])
    assert reply.lengths == (1, 1), "▁red and ▁re, as in training"


def test_a_plain_blip2_answers_as_transformers_does(export: Path, pictures: list[Image.Image]) -> None:
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    answerer = open_answerer(f"blip2:{export}")
    assert isinstance(answerer, Blip2Answerer)
    network = Blip2ForConditionalGeneration.from_pretrained(export, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(export)
    prompts = ["What is this?", "Which colour has the cup in the centre?"]
    replies = answerer.answer(pictures[:2], prompts, max_new_tokens=10)
    scored = answerer.likelihoods(pictures[:2], prompts, [OPTIONS, OPTIONS[:1]])
    for picture, prompt, reply, scores in zip(pictures, prompts, replies, scored, strict=False):
        inputs = processor(images=picture, text=BLIP2_PROMPT.format(prompt), return_tensors="pt")
        head = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = network.generate(**inputs, max_new_tokens=10, do_sample=False)[0, head:]
        assert reply.text == processor.decode(out, skip_special_tokens=True).strip()
        for option, score in zip(OPTIONS, scores.scores, strict=False):
            tail = processor.tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
            ids = torch.cat([inputs["input_ids"], torch.tensor([tail])], 1)
            with torch.inference_mode():
                logits = network(pixel_values=inputs["pixel_values"], input_ids=ids).logits
            assert score == pytest.approx(manual(logits, ids[0].tolist(), head), abs=1e-4)


def test_an_encoder_decoder_blip2_is_scored_by_its_decoder(
    tmp_path: Path, tiny_llm: Path, pictures: list[Image.Image]
) -> None:
    """As Salesforce/blip2-flan-t5-xl is built: the options are what the decoder writes."""
    from transformers import (
        AutoTokenizer,
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        T5Config,
    )
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    qformer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
               "encoder_hidden_size": 16, "vocab_size": 8}  # fmt: skip
    text = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                    pad_token_id=0, eos_token_id=2, decoder_start_token_id=0)  # fmt: skip
    torch.manual_seed(0)
    config = Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text, num_query_tokens=2,
                         image_token_index=tokenizer.convert_tokens_to_ids("<image>"))  # fmt: skip
    network = Blip2ForConditionalGeneration(config).eval()
    network.save_pretrained(tmp_path)
    Blip2Processor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer, 2).save_pretrained(tmp_path)
    answerer = open_answerer(str(tmp_path))
    assert isinstance(answerer, Blip2Answerer), "a directory without a record of ours is a plain BLIP-2"
    [reply] = answerer.likelihoods(pictures[:1], ["What is it?"], [OPTIONS])
    _, processor = answerer.model
    inputs = processor(images=pictures[0], text=BLIP2_PROMPT.format("What is it?"), return_tensors="pt")
    for option, score in zip(OPTIONS, reply.scores, strict=True):
        labels = tokenizer(option, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            loss = network(**inputs, labels=labels).loss
        assert score == pytest.approx(-float(loss) * labels.shape[1], abs=1e-3)
    assert isinstance(answerer.answer(pictures[:1], ["What is it?"], max_new_tokens=4)[0], ModelReply)


def test_an_endpoint_sees_the_picture_and_chooses_by_letter(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k-123")
    folder = picture_folder(tmp_path / "photos", 2)
    server = serve("say:A ball.", "say:(B) blue", "say:None of them", "say:I think A", "say:A dog.", "say:A\n\nThe dog")
    answerer = open_answerer(f"openai:{server.url}#some-model", Answering(concurrency=1))
    assert isinstance(answerer, EndpointAnswerer)
    items = [
        Item("0", folder / "0.png", "What is it?", max_new_tokens=7),
        *(Item(str(k), folder / "1.png", "Which colour?", options=("red", "blue")) for k in (1, 2, 3, 4, 5)),
    ]
    found: dict[str, ModelReply] = {}
    answerer.answer_each(items, lambda item, reply: found.update({item.id: reply}))
    assert [found[item.id].text for item in items] == ["A ball.", "blue", "None of them", "I think A", "A dog.", "red"]
    first, second = (request["body"] for request in server.requests[:2])
    assert server.requests[0]["key"] == "Bearer k-123"
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("some-model", 0.0, 7)
    image, text = first["messages"][-1]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"] == "What is it?"
    assert "A. red\nB. blue\n" in second["messages"][-1]["content"][1]["text"]
    assert "k-123" not in str(answerer.identity)


def test_an_endpoint_answers_images_and_prompts_in_python(serve: Callable[..., Server]) -> None:
    server = serve("say:A ball.", "say:A cat.")
    answerer = EndpointAnswerer(f"openai:{server.url}#some-model", Answering())
    images = [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 9))]
    assert [reply.text for reply in answerer.answer(images, ["What?", "Who?"])] == ["A ball.", "A cat."]
    assert [request["body"]["messages"][-1]["content"][1]["text"] for request in server.requests] == ["What?", "Who?"]


def test_who_is_opened_and_what_tells_models_apart(alignment: Path, export: Path, tmp_path: Path) -> None:
    assert isinstance(open_answerer("pocket"), MiniGPT4Answerer)
    assert isinstance(open_answerer(str(export)), MiniGPT4Answerer), "an export keeps its own chat format"
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name, told in ((str(tmp_path), "neither an alignment"), (str(tmp_path / "none"), "no such directory")):
        with pytest.raises(UserError, match=told):
            open_answerer(name)
    with pytest.raises(UserError, match="loaded whole"):
        open_answerer(f"blip2:{export}", Answering(load_in="4bit"))
    signature = weights_fingerprint(alignment)
    assert signature == weights_fingerprint(alignment)
    changed = alignment / "projection.safetensors"
    data = changed.read_bytes()
    try:
        changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert weights_fingerprint(alignment) != signature
    finally:
        changed.write_bytes(data)
