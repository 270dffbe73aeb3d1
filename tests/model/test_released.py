"""The released files: converted, they compute what the paper's model computes (`tests/golden/reference.py`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from minigpt4.data.batches import Batches, tokenise
from minigpt4.generation.batching import decode
from minigpt4.generation.decoding import Decoding
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.convert import convert as convert_files
from minigpt4.prompts.encode import encode_chat
from minigpt4.prompts.templates import Message
from minigpt4.training.loss import next_token_loss

FILES = Path(__file__).parents[1] / "golden" / "released"
EXPECTED: dict[str, Any] = json.loads((FILES / "expected.json").read_text())
HEADS = {"vision_heads": EXPECTED["sizes"]["vision_heads"], "qformer_heads": EXPECTED["sizes"]["qformer_heads"]}


def convert(out: Path, template: str = "vicuna_v0", **changes: Any) -> MiniGPT4:
    given = {
        "vision": FILES / "eva_vit.pth",
        "qformer": FILES / "blip2_pretrained.pth",
        "projection": FILES / "pretrained.pth",
        "llm": FILES / "llm",
        **HEADS,
        **changes,
    }
    convert_files(**given, out=out, template=template)
    return MiniGPT4.from_pretrained(out, dtype="float32", device="cpu")


def convert_variant(out: Path, template: str = "vicuna_v0", **changes: Any) -> MiniGPT4:
    projection = FILES / "pretrained_without_qformer.pth"
    return convert(out, template, **{"qformer": None, "projection": projection, "without_qformer": True, **changes})


VARIANTS = {"with_qformer": convert, "without_qformer": convert_variant}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], MiniGPT4]:
    """Both variants, converted for both chat formats."""
    root = tmp_path_factory.mktemp("converted")
    return {
        (variant, template): make(root / f"{variant}-{template}", template)
        for variant, make in VARIANTS.items()
        for template in ("vicuna_v0", "llama2")
    }


def pictures() -> list[Path]:
    return [FILES / "0.png", FILES / "1.png"]


def conversations() -> list[list[Message]]:
    first = Message("user", EXPECTED["question"], images=1)
    return [[first], [first, Message("assistant", EXPECTED["reply"]), Message("user", EXPECTED["follow_up"])]]


# -- exactness


@pytest.mark.parametrize("variant", VARIANTS)
def test_projected_features(models: dict, variant: str) -> None:
    expected = load_file(FILES / "expected.safetensors")
    model = models[variant, "vicuna_v0"]
    images = [Image.open(path) for path in pictures()]
    pixels = model.image_processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected["pixel_values"], atol=1e-6, rtol=0)
    with torch.no_grad():
        projected = model.project(model.encode_images(pictures()))
    torch.testing.assert_close(projected, expected[variant], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_losses(models: dict, variant: str, stage: str) -> None:
    model, expected = models[variant, "vicuna_v0"], EXPECTED[variant][stage]
    samples = tokenise(
        model.tokenizer,
        list(zip([b"0", b"1"], expected["captions" if stage == "stage1" else "descriptions"], strict=True)),
        [] if stage == "stage1" else [EXPECTED["question"]],
        max_text_tokens=160,
        num_query_tokens=model.num_query_tokens,
        image_token_id=model.image_token_id,
    )
    batch = Batches(samples, 2, seed=0)[0]
    features = model.encode_images([pictures()[int(key)] for key in batch.images])
    with torch.no_grad():
        assert float(next_token_loss(model, batch, features)) == pytest.approx(expected["loss"], abs=1e-4)


@pytest.mark.parametrize("template", ["vicuna_v0", "llama2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_prompts_and_answers(models: dict, variant: str, template: str) -> None:
    model = models[variant, template]
    features = model.encode_images(pictures()[:1])
    places = [model.image_token_id] * model.num_query_tokens
    for messages, turn in zip(conversations(), EXPECTED[variant]["chat"][template], strict=True):
        ids = encode_chat(model.tokenizer, model.template, messages, model.num_query_tokens, model.image_token_id)
        assert ids == [*turn["pieces"][0], *places, *turn["pieces"][1]]
        for beams, expected in ((1, turn["greedy"]), (3, turn["beams"])):
            decoding = Decoding(max_new_tokens=len(expected), do_sample=False, num_beams=beams)
            [answer] = decode(model, [ids], [features], decoding, model.template.stop)
            assert list(answer.tokens) == expected


PLAIN = """
import json, sys
import torch
from transformers import AutoProcessor, Blip2ForConditionalGeneration
picture, talks = sys.argv[1], json.loads(sys.argv[2])
for directory in sys.argv[3:]:
    processor = AutoProcessor.from_pretrained(directory)
    model = Blip2ForConditionalGeneration.from_pretrained(directory)
    for messages in talks:
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        length = inputs["input_ids"].shape[1]
        found = {"ids": inputs["input_ids"][0].tolist()}
        for beams in (1, 3):
            new = model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=beams)
            found[str(beams)] = new[0, length:].tolist()
        # The loss with the placeholder's logit among the others, and, as docs/released.md says, without it.
        image_token_id = model.config.image_token_id
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == image_token_id, -100)
        with torch.no_grad():
            outputs = model(**inputs, labels=labels)
        assert (outputs.logits[..., image_token_id] == 0).all()
        outputs.logits[..., image_token_id] = float("-inf")
        without = model.language_model.loss_function(outputs.logits, labels, model.config.text_config.vocab_size)
        found["loss"], found["loss without"] = float(outputs.loss), float(without)
        print(json.dumps(found))
assert not any(name.startswith("minigpt4") for name in sys.modules)
"""


def test_plain_transformers_reads_and_writes_the_same_tokens(tmp_path: Path) -> None:
    """With beams, whose order an extra token's share of the probability would change."""
    templates = ("vicuna_v0", "llama2")
    exports = [tmp_path / template for template in templates]
    converted = [convert(out, template) for template, out in zip(templates, exports, strict=True)]
    image_token_id = converted[0].image_token_id
    image = {"type": "image", "path": str(pictures()[0])}
    talks = [
        [{"role": m.role, "content": [image] * m.images + [{"type": "text", "text": m.text}]} for m in messages]
        for messages in conversations()
    ]
    command = [sys.executable, "-I", "-c", PLAIN, str(pictures()[0]), json.dumps(talks), *map(str, exports)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    expected = EXPECTED["with_qformer"]["chat"]
    turns = [(model, turn) for model, name in zip(converted, templates, strict=True) for turn in expected[name]]
    for line, (model, turn) in zip(run.stdout.splitlines(), turns, strict=True):
        places = [image_token_id] * EXPECTED["sizes"]["queries"]
        found = json.loads(line)
        ids = torch.tensor([found["ids"]])
        with torch.no_grad():
            logits = model.logits(model.hidden_states(ids, model.encode_images(pictures()[:1])))
        labels = ids.masked_fill(ids == image_token_id, -100)[0, 1:]
        own = torch.nn.functional.cross_entropy(logits[0, :-1], labels)
        assert found.pop("loss without") == pytest.approx(float(own), abs=1e-5)
        # What the placeholder's row of zeros takes: its logit is 0, whatever the LLM thinks.
        share = torch.nn.functional.softplus(-logits[0, :-1][labels != -100].logsumexp(-1)).mean()
        assert found.pop("loss") == pytest.approx(float(own + share), abs=1e-5)
        assert found == {
            "ids": [*turn["pieces"][0], *places, *turn["pieces"][1]],
            "1": turn["greedy"],
            "3": turn["beams"],
        }


def test_image_token_has_no_probability(models: dict) -> None:
    """Whatever the embedding and head of its added row hold."""
    model = models["with_qformer", "vicuna_v0"]
    ids = torch.tensor([[1, 40, 50]])
    llm = model.blip2.language_model
    head, before = llm.get_output_embeddings().weight, model.logits(model.hidden_states(ids, None))
    row = head.data[model.image_token_id].clone()
    try:
        head.data[model.image_token_id] = 100.0
        assert torch.equal(llm(ids).logits, before)
        assert torch.isneginf(before[..., model.image_token_id]).all()
    finally:
        head.data[model.image_token_id] = row
