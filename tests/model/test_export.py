"""An export in plain transformers: the same prompts, the same answers, with no code of ours."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    pipeline,
)

from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import convert, export, sources
from minigpt4.model.loading import read_record
from minigpt4.model.lora import Trained, set_trainable
from minigpt4.prompts.encode import CUT, encode_chat
from minigpt4.prompts.templates import TEMPLATES, Message
from speaking import make_it_say
from tiny import D_LLM, tiny_tokenizer

#: The letters of a chat format.
_WRITTEN = "".join(vars(TEMPLATES["vicuna_v0"])[part] for part in ("system", "user", "assistant"))

#: What somebody who never heard of this package writes: an answer, a conversation, and the pipeline.
PLAIN = """
import json, sys
from transformers import AutoProcessor, Blip2ForConditionalGeneration, pipeline
picture, other = ({"type": "image", "path": path} for path in sys.argv[1:3])
def said(text):
    return {"type": "text", "text": text}
chats = {
    "one": [{"role": "user", "content": [picture, said("Describe it.")]}],
    "other": [{"role": "user", "content": [other, said("Describe it.")]}],
    "several": [{"role": "user", "content": [picture, other, said("Compare.")]}],
    "second turn": [
        {"role": "user", "content": [picture, said("What colour?")]},
        {"role": "assistant", "content": [said("A large red ball.")]},
        {"role": "user", "content": [said("Like "), other, said("?")]},
    ],
}
for directory in sys.argv[3:]:
    processor = AutoProcessor.from_pretrained(directory)
    model = Blip2ForConditionalGeneration.from_pretrained(directory)
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_p) == (True, 1.0, 0.9), "the released demo's"
    assert settings.max_new_tokens == 300 and settings.repetition_penalty in (None, 1.0)
    settings.max_new_tokens, settings.do_sample = 16, False
    found = {}
    for name, messages in chats.items():
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        ids = inputs["input_ids"][0].tolist()
        new = model.generate(**inputs, generation_config=settings)[0, len(ids):]
        found[name] = {"ids": ids, "text": processor.decode(new, skip_special_tokens=True)}
    pipe = pipeline("image-text-to-text", model=directory)
    for name in ("one", "several"):
        chat = pipe(text=chats[name], max_new_tokens=16, generate_kwargs={"do_sample": False})
        found["pipeline " + name] = {"text": chat[0]["generated_text"][-1]["content"]}
    print(json.dumps(found))
assert not any(name.startswith("minigpt4") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("pictures") / name for name in ("radial.png", "linear.png")]
    Image.radial_gradient("L").resize((50, 40)).convert("RGB").save(paths[0])
    Image.linear_gradient("L").resize((40, 70)).convert("RGB").save(paths[1])
    return paths


def tiny_tied_llm(directory: Path) -> Path:
    """A Llama whose head is its embedding, which does not know `<image>`."""
    vocabulary = tiny_tokenizer(directory, special=("<pad>", "<s>", "</s>"))
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=D_LLM, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_plain_transformers_answers_the_same(
    tiny_vision: Path, tiny_llm: Path, pictures: list[Path], tmp_path: Path
) -> None:
    models = [
        MiniGPT4.assemble(tiny_vision, llm, template="pocket", dtype="float32", device="cpu")
        for llm in (tiny_llm, tiny_tied_llm(tmp_path / "llm"))
    ]
    exports = [tmp_path / "export", tmp_path / "tied export"]
    for model, directory in zip(models, exports, strict=True):
        model.export(directory)
    command = [sys.executable, "-I", "-c", PLAIN, *pictures, *exports]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    talk = [
        Message("user", "What colour?", images=1),
        Message("assistant", "A large red ball."),
        Message("user", "Like <ImageHere>?", images=1),
    ]
    for model, line in zip(models, run.stdout.splitlines(), strict=True):
        found = json.loads(line)
        answers = model.generate(pictures, ["Describe it."] * 2, do_sample=False, max_new_tokens=16)
        assert len(set(answers)) == 2
        assert [found[name]["text"].strip() for name in ("one", "other")] == answers
        assert found["pipeline one"]["text"].strip() == answers[0]
        [compared] = model.generate([pictures], ["Compare."], do_sample=False, max_new_tokens=16)
        assert found["several"]["text"].strip() == found["pipeline several"]["text"].strip() == compared
        assert found["second turn"]["ids"] == encode_chat(
            model.tokenizer, model.template, talk, model.num_query_tokens, model.image_token_id
        )


def test_image_token_cannot_be_generated_and_the_stop_string_ends(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket")
    model.export(tmp_path / "export")
    settings = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    stop = model.tokenizer("###")["input_ids"]
    assert settings["suppress_tokens"] == [model.image_token_id]
    assert settings["stop_string"] == "###"
    assert settings["eos_token_id"] == [2, *stop]
    assert settings["sequence_bias"][0] == [[model.image_token_id], -10000.0]
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert config["architectures"] == ["MiniGPT4ForConditionalGeneration"]
    assert config["model_type"] == "blip-2"
    assert config["text_config"]["eos_token_id"] == [2, *stop]
    assert config["text_config"]["sequence_bias"] == settings["sequence_bias"]
    # What the LLM decodes by belongs to the template: neither our own decoding nor another export goes by it.
    llm = MiniGPT4.assemble(tiny_vision, tmp_path / "export", template="blip2", device="cpu").blip2.language_model
    assert llm.generation_config.sequence_bias is None
    assert not hasattr(llm.config, "sequence_bias")


def test_a_stop_string_of_several_tokens_in_plain_transformers(
    tiny_vision: Path, tiny_llm: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """No end token can catch that: the generation config makes EOS sure behind it, for every way to generate."""
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    rows = len(model.tokenizer)
    make_it_say(model.blip2.language_model, model.tokenizer, ["A", "b", "#", "##", "c"])
    assert len(model.tokenizer) == rows, "all of it must be in the vocabulary"
    model.export(tmp_path / "export")
    asked = {"type": "image", "path": str(pictures[0])}, {"type": "text", "text": "What is it?"}
    messages = [{"role": "user", "content": list(asked)}]
    pipe = pipeline("image-text-to-text", model=str(tmp_path / "export"), device="cpu")
    found = pipe(text=messages, max_new_tokens=12, generate_kwargs={"do_sample": False})
    assert found[0]["generated_text"][-1]["content"] == "Ab###"
    plain, processor = pipe.model, pipe.processor
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    for settings in ({}, {"num_beams": 3}):  # with the settings in config.json alone
        ids = plain.generate(**inputs, max_new_tokens=12, **settings)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(ids) == "Ab###</s>"


def test_spellings_of_a_stop_string(tiny_vision: Path, tiny_llm: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    vocabulary = {"#": 5, "##": 6, "\u2581##": 7, "\u2581###": 8, "a#": 9}
    assert sorted(export._spellings(vocabulary, "###", first=True)) == [[5, 5, 5], [5, 6], [6, 5], [7, 5], [8]]
    at_once = replace(TEMPLATES["pocket"], stop=TEMPLATES["pocket"].before_answer[-4:])
    assert len(export._biases(model.tokenizer, at_once, 3, [2])) == 1, "or no answer would begin"


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece"])
def test_the_exported_tokenizer_gives_a_rendered_chat_the_ids_that_ours_have(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, kind: str
) -> None:
    """It cuts where the chat template says; with sentencepiece, where ours takes a conversation whole, nowhere."""
    llm = tmp_path / "llm"
    shutil.copytree(tiny_llm, llm)
    if kind == "sentencepiece":  # of a class that builds its own pre-tokenizer when it is loaded
        pieces = ["<unk>", "<s>", "</s>", "<image>", *dict.fromkeys("▁ARed.#:" + _WRITTEN), "▁A", "▁R", "▁Re", "▁Red"]
        merges = [("▁", "A"), ("▁", "R"), ("▁R", "e"), ("▁Re", "d")]
        LlamaTokenizer({piece: i for i, piece in enumerate(pieces)}, merges).save_pretrained(llm)
    model = MiniGPT4.assemble(tiny_vision, llm, template="vicuna_v0")
    model.export(tmp_path / "export")
    MiniGPT4.from_pretrained(tmp_path / "export").export(tmp_path / "again")
    talk = [("user", "Red A."), ("assistant", "A."), ("user", "A Red"), ("assistant", "Red."), ("user", "A")]
    ids = encode_chat(
        model.tokenizer, model.template, [Message(*turn) for turn in talk], model.num_query_tokens, model.image_token_id
    )
    for name in ("export", "again"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        messages = [{"role": role, "content": text} for role, text in talk]
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
        assert rendered.count(CUT) == {"byte-level": 4, "sentencepiece": 0}[kind]
        whole = tokenizer(rendered.replace(CUT, ""), add_special_tokens=False)["input_ids"]
        assert (whole == ids) is (kind == "sentencepiece")
        messages[-1]["content"] = "A#"  # would join the end symbol
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        seam = {"byte-level": CUT, "sentencepiece": " "}[kind]
        assert rendered.endswith(f"A#{seam}###Assistant: ")


def test_an_export_loads_as_the_model_it_was(
    tiny_vision: Path, tiny_llm: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="blip2", device="cpu")
    before = model.tokenizer.get_added_vocab(), model.tokenizer.chat_template
    model.export(tmp_path / "export")
    assert (model.tokenizer.get_added_vocab(), model.tokenizer.chat_template) == before
    loaded = MiniGPT4.from_pretrained(tmp_path / "export", device="cpu")
    assert loaded.template == model.template
    assert loaded.origin == model.origin
    state, expected = loaded.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert torch.equal(loaded.encode_images(pictures), model.encode_images(pictures))
    # what was exported can be aligned further: its parts are those it came from
    loaded.save_pretrained(tmp_path / "again")
    again = MiniGPT4.from_pretrained(tmp_path / "again", device="cpu").state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("qformer", "trained"),
    [
        (True, Trained(projection_layers=3)),
        (True, Trained(lora_rank=2)),
        (True, Trained(qformer=True)),
        (False, Trained()),
    ],
    ids=["three layers", "LoRA", "Q-Former trained", "no Q-Former"],
)
def test_a_variant_is_exported_from_memory(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, qformer: bool, trained: Trained
) -> None:
    """What a stage leaves in memory, exported whole: without what it was made of, the same logits; and still in use."""
    vision, llm = shutil.copytree(tiny_vision, tmp_path / "vision"), shutil.copytree(tiny_llm, tmp_path / "llm")
    model = MiniGPT4.assemble(vision, llm, template="pocket", device="cpu", qformer=qformer, trained=trained)
    set_trainable(model, 1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    ids = torch.tensor([[1, *[model.image_token_id] * model.num_query_tokens, 40, 41]])

    def logits(model: MiniGPT4) -> torch.Tensor:
        features = model.encode_images([Image.radial_gradient("L").convert("RGB")])
        with torch.no_grad():
            return model.logits(model.hidden_states(ids, features))

    expected = logits(model)
    model.export(tmp_path / "export")
    assert torch.equal(logits(model), expected)
    shutil.rmtree(vision)
    shutil.rmtree(llm)
    loaded = MiniGPT4.from_pretrained(tmp_path / "export", device="cpu")
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-4, atol=1e-4)
    assert loaded.stage == 1
    # What is trained on from it is an alignment of the exported parts, not of those that it was made of.
    loaded.save_pretrained(tmp_path / "further")
    again = MiniGPT4.from_pretrained(tmp_path / "further", device="cpu")
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)
    if qformer and trained.projection_layers == 1:  # transformers has a model for it
        plain = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "export")
        pixels = model.image_processor([Image.radial_gradient("L").convert("RGB")], return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            found = plain(input_ids=ids, pixel_values=pixels).logits
        words = [i for i in range(expected.shape[-1]) if i != model.image_token_id]
        torch.testing.assert_close(found[..., words], expected[..., words], rtol=1e-4, atol=1e-4)


def test_a_variant_is_exported_in_the_dtype_of_its_files(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    half = shutil.copytree(tiny_llm, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.bfloat16).save_pretrained(half)
    model = MiniGPT4.assemble(tiny_vision, half, template="pocket", device="cpu", trained=Trained(lora_rank=2))
    model.save_pretrained(tmp_path / "alignment")
    convert.export(tmp_path / "alignment", tmp_path / "export")
    assert json.loads((tmp_path / "export" / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"
    convert.export(tmp_path / "alignment", tmp_path / "wide", dtype="float32")
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["text_config"]["dtype"] == "float32"


def test_an_export_made_from_files_suggests_the_same_decoding(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    model.decoding = {"do_sample": False, "repetition_penalty": 1.15}
    model.save_pretrained(tmp_path / "alignment")
    convert.export(tmp_path / "alignment", tmp_path / "export")
    convert.export(tmp_path / "export", tmp_path / "quantized", quantize="4bit")
    assert read_record(tmp_path / "export").decoding == read_record(tmp_path / "quantized").decoding == model.decoding


def test_an_export_on_the_hub_is_its_own_part(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", trained=Trained(lora_rank=2))
    model.export(tmp_path / "export")
    monkeypatch.chdir(tmp_path)
    assert read_record("export").origin.llm == str(tmp_path / "export")
    monkeypatch.setattr(sources, "resolve", str)  # as hub ids are
    assert read_record("export").origin.llm == read_record("export").origin.vision_qformer == "export"


def test_a_variant_on_the_hub_holds_its_parts(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    """As the hub's cache has it, in a process that may not ask the hub."""
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", qformer=False)
    place = tmp_path / "hub" / "models--me--mine"
    model.export(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    code = "from minigpt4 import MiniGPT4; print(MiniGPT4.from_pretrained('me/mine', device='cpu').has_qformer)"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout == "False\n", done.stderr


def test_broken_export(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket").export(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read") as caught:
        MiniGPT4.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
