"""The aligned model: its steps against transformers' own forward, what trains, what is saved, what is refused."""

import dataclasses
import hashlib
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import sources
from minigpt4.model.lora import LoRA, set_trainable
from minigpt4.prompts.templates import TEMPLATES
from tiny import D_LLM, D_QFORMER, QUERY_TOKENS, tiny_tokenizer

IMAGE = 3


@pytest.fixture
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (50, 40), colour) for colour in ("red", "blue", "white")]


def prompt(*tokens: int) -> torch.Tensor:
    return torch.tensor([[1, *[IMAGE] * QUERY_TOKENS, *tokens]])


def hashes(model: MiniGPT4) -> dict[str, str]:
    return {n: hashlib.sha256(t.numpy().tobytes()).hexdigest() for n, t in model.state_dict().items()}


# -- the forward pass


def test_the_steps_are_transformers_own_forward(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    input_ids = prompt(40, 50, 60).repeat(3, 1)
    pixels = model.image_processor(pictures, return_tensors="pt")["pixel_values"]
    features = model.encode_images(pictures)
    assert features.shape == (3, QUERY_TOKENS, D_QFORMER)
    assert torch.equal(features, model.encode_pixels(pixels))
    assert model.project(features).shape == (3, QUERY_TOKENS, D_LLM)
    hidden = model.hidden_states(input_ids, features)
    assert hidden.shape == (*input_ids.shape, D_LLM)
    expected = model.blip2(pixel_values=pixels, input_ids=input_ids).logits
    logits = model.logits(hidden)
    assert torch.isneginf(logits[..., IMAGE]).all()
    logits[..., IMAGE] = expected[..., IMAGE]
    torch.testing.assert_close(logits, expected)


def test_pictures_make_a_difference(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    features = model.encode_images(pictures)
    assert (features[0] - features[1]).abs().mean() > 0.1


def test_each_image_goes_to_its_own_place(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    features = model.encode_images(pictures)
    places = [IMAGE] * QUERY_TOKENS
    input_ids = torch.tensor([[1, *places, 40, *places], [1, 50, 60, *places, 70, 80, 90]])
    embedded = model.embed(input_ids, features)
    soft = model.project(features)
    assert torch.equal(embedded[0, 1 : 1 + QUERY_TOKENS], soft[0])
    assert torch.equal(embedded[0, -QUERY_TOKENS:], soft[1])
    assert torch.equal(embedded[1, 3 : 3 + QUERY_TOKENS], soft[2])
    words = model.blip2.language_model.get_input_embeddings().weight
    assert torch.equal(embedded[0, 1 + QUERY_TOKENS], words[40])
    assert torch.equal(embedded[1, -3:], words[[70, 80, 90]])


def test_padding_on_the_right_changes_nothing(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    features = model.encode_images(pictures[:1])
    short, long = prompt(40, 50), prompt(40, 50, 0, 0)
    mask = torch.tensor([[1] * short.shape[1] + [0, 0]])
    padded = model.hidden_states(long, features, mask)[:, : short.shape[1]]
    torch.testing.assert_close(padded, model.hidden_states(short, features))


@pytest.mark.parametrize("count", [0, 2])
def test_places_and_features_must_agree(model: MiniGPT4, pictures: list[Image.Image], count: int) -> None:
    features = model.encode_images(pictures)[:count]
    with pytest.raises(ValueError, match=f"4 positions for image tokens, but features give {4 * count}"):
        model.embed(prompt(40), features)


def test_text_alone_needs_no_features(model: MiniGPT4) -> None:
    assert model.hidden_states(torch.tensor([[1, 40]]), None).shape == (1, 2, D_LLM)


@pytest.mark.parametrize("family", ["Mistral", "Qwen2", "Gemma2", "Phi", "OPT"])
def test_logits_are_those_of_other_llm_families(tiny_vision: Path, tmp_path: Path, family: str) -> None:
    import transformers

    vocabulary = tiny_tokenizer(tmp_path)
    sizes = {"hidden_size": D_LLM, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": vocabulary}
    sizes |= {"ffn_dim": 64, "word_embed_proj_dim": D_LLM} if family == "OPT" else {"intermediate_size": 64}
    if family in ("Mistral", "Qwen2", "Gemma2"):
        sizes["num_key_value_heads"] = 1
    config = getattr(transformers, f"{family}Config")(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    torch.manual_seed(0)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    model = MiniGPT4.assemble(tiny_vision, tmp_path, template="pocket", device="cpu")
    features = torch.randn(1, QUERY_TOKENS, D_QFORMER)
    embeddings = model.embed(prompt(40, 50), features)
    expected = model.blip2.language_model(inputs_embeds=embeddings).logits
    logits = model.logits(model.hidden_states(prompt(40, 50), features))
    logits[..., IMAGE] = expected[..., IMAGE]
    torch.testing.assert_close(logits, expected)


# -- what trains


def test_fresh_projection_follows_the_seed(tiny_vision: Path, tiny_llm: Path) -> None:
    state = torch.random.get_rng_state()
    weights = [
        MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", seed=seed).blip2.language_projection.weight
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_trains_until_a_stage_is_chosen(model: MiniGPT4) -> None:
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("stage", [1, 2])
def test_training_changes_the_projection_and_no_bit_of_the_rest(
    model: MiniGPT4, pictures: list[Image.Image], stage: int
) -> None:
    trained = set_trainable(model, stage)
    assert trained == ["blip2.language_projection.weight", "blip2.language_projection.bias"]
    assert model.stage == stage
    before = hashes(model)
    model.train()
    features = model.encode_images(pictures)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.05)
    for _ in range(3):
        logits = model.logits(model.hidden_states(prompt(40, 50, 60).repeat(3, 1), features)[:, -3:-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor([50, 60] * 3))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = hashes(model)
    assert [name for name in before if before[name] != after[name]] == trained


def test_frozen_parts_have_no_dropout_in_training(model: MiniGPT4, pictures: list[Image.Image]) -> None:
    set_trainable(model, 1)
    features = model.encode_images(pictures)
    model.train()
    assert model.training
    training = [module for module in model.blip2.modules() if module.training]
    assert training == [model.blip2.language_projection]
    assert torch.equal(model.encode_images(pictures), features)  # the Q-Former's dropout is 0.1
    assert not model.eval().blip2.language_projection.training


def test_trained_parameters_are_float32_in_a_bfloat16_model(tiny_vision: Path, tiny_llm: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", dtype="bf16", device="cpu")
    set_trainable(model, 1)
    assert model.dtype is torch.bfloat16
    assert model.blip2.vision_model.post_layernorm.weight.dtype is torch.bfloat16
    assert model.blip2.language_projection.weight.dtype is torch.float32
    features = model.encode_images([Image.new("RGB", (9, 9))])
    hidden = model.hidden_states(prompt(40), features)
    assert features.dtype is hidden.dtype is torch.bfloat16
    model.logits(hidden)[..., 40].sum().backward()
    assert model.blip2.language_projection.weight.grad.abs().sum() > 0


def test_there_is_no_stage_3(model: MiniGPT4) -> None:
    with pytest.raises(UserError, match="no stage 3; the stages are 1, 2"):
        set_trainable(model, 3)


# -- alignments on disk


def test_an_alignment_loads_as_it_was_saved(model: MiniGPT4, pictures: list[Image.Image], tmp_path: Path) -> None:
    set_trainable(model, 2)
    model.save_pretrained(tmp_path / "runs" / "a")
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir()) == [
        "alignment.json",
        "projection.safetensors",
    ]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]  # nothing temporary is left
    loaded = MiniGPT4.from_pretrained(tmp_path / "runs" / "a", device="cpu")
    assert loaded.stage == 2
    assert loaded.template == TEMPLATES["pocket"]
    assert (loaded.vision_fingerprint, loaded.llm_fingerprint) == (model.vision_fingerprint, model.llm_fingerprint)
    assert hashes(loaded) == hashes(model)
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])


def test_pocket_alignment_goes_by_name_and_names_pocket_parts(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_vision, tmp_path / "vision")
    shutil.copytree(tiny_llm, tmp_path / "language")
    monkeypatch.setenv("MINIGPT4_POCKET_WEIGHTS", str(tmp_path))
    model = MiniGPT4.assemble("pocket/vision", "pocket/language", template="pocket")
    model.save_pretrained(tmp_path / "alignments" / "pocket")
    assert str(tmp_path) not in (tmp_path / "alignments" / "pocket" / "alignment.json").read_text()
    loaded = MiniGPT4.from_pretrained("pocket", device="cpu")
    assert hashes(loaded) == hashes(model)


def test_parts_given_by_relative_path_are_found_from_elsewhere(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_vision.parent)
    MiniGPT4.assemble(tiny_vision.name, tiny_llm, template="pocket").save_pretrained(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert MiniGPT4.from_pretrained("a").num_query_tokens == QUERY_TOKENS


def test_a_template_of_ones_own_is_kept(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    own = dataclasses.replace(TEMPLATES["pocket"], system="Be brief.")
    MiniGPT4.assemble(tiny_vision, tiny_llm, template=own).save_pretrained(tmp_path / "a")
    assert MiniGPT4.from_pretrained(tmp_path / "a").template == own


def test_a_directory_in_use_is_not_written_to(model: MiniGPT4, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite, reason in ((False, "exists and is not empty"), (True, r"holds no alignment\.json")):
        for save in (model.save_pretrained, model.export):
            with pytest.raises(UserError, match=reason):
                save(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_replaces_an_earlier_alignment(model: MiniGPT4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=r"\(alignment.json, projection.safetensors\); --overwrite"):
        model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.blip2.language_projection.weight += 1
    model.save_pretrained(tmp_path / "a", overwrite=True)
    assert hashes(MiniGPT4.from_pretrained(tmp_path / "a", device="cpu")) == hashes(model)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("method", ["save_pretrained", "export"])
def test_a_full_disk_leaves_what_was_there(model: MiniGPT4, tmp_path: Path, method: str) -> None:
    model.save_pretrained(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written .*nothing was changed") as caught:
            getattr(model, method)(tmp_path / "a", overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def edit_record(directory: Path, **changes: Any) -> None:
    path = directory / "alignment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_record_suggests_of_decoding_holds_where_nothing_is_asked(
    model: MiniGPT4, pictures: list[Image.Image], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "a")
    edit_record(tmp_path / "a", decoding={"do_sample": False, "repetition_penalty": 1.3})
    suggested = MiniGPT4.from_pretrained(tmp_path / "a")
    suggested.save_pretrained(tmp_path / "b")
    suggested = MiniGPT4.from_pretrained(tmp_path / "b")
    asked: dict[str, Any] = {"max_new_tokens": 40}
    plain, held, other = (
        asking.generate(pictures[0], ["Hello"], **asked, **more)
        + [asking.start_chat().ask("Hello", image=pictures[0], **asked, **more)]
        for asking, more in (
            (model, {"do_sample": False, "repetition_penalty": 1.3}), (suggested, {}),
            (suggested, {"repetition_penalty": 1.0}),
        )
    )  # fmt: skip
    assert held == plain
    assert other != plain


def test_a_projection_that_does_not_fit_names_both_shapes(model: MiniGPT4, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a")
    wider = {"weight": torch.zeros(48, D_QFORMER), "bias": torch.zeros(48)}
    save_file(wider, tmp_path / "a" / "projection.safetensors")
    with pytest.raises(UserError, match=r"a: its projection goes from 24 to 48, but .* width is 24 .* LLM .* is 32"):
        MiniGPT4.from_pretrained(tmp_path / "a")


def test_an_llm_of_another_width_names_both_shapes(model: MiniGPT4, tiny_llm: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    LlamaForCausalLM(config).save_pretrained(llm)
    model.save_pretrained(tmp_path / "a")
    edit_record(tmp_path / "a", origin=dataclasses.asdict(dataclasses.replace(model.origin, llm=str(llm))))
    with pytest.raises(UserError, match=r"goes from 24 to 32, but .* width is 24 .*llm is 16"):
        MiniGPT4.from_pretrained(tmp_path / "a")


def test_other_weights_than_those_it_was_aligned_with(
    tiny_vision: Path, tiny_llm: Path, model: MiniGPT4, tmp_path: Path
) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    MiniGPT4.assemble(tiny_vision, llm, template="pocket").save_pretrained(tmp_path / "a")
    tensors = load_file(llm / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1.001
    save_file(tensors, llm / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"was aligned with other weights than those now in .*llm \(fingerprint"):
        MiniGPT4.from_pretrained(tmp_path / "a")
    assert MiniGPT4.assemble(tiny_vision, llm, template="pocket").vision_fingerprint == model.vision_fingerprint


def test_parts_that_are_gone(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    MiniGPT4.assemble(tiny_vision, llm, template="pocket").save_pretrained(tmp_path / "a")
    shutil.rmtree(llm)
    with pytest.raises(UserError, match="llm: no such directory"):
        MiniGPT4.from_pretrained(tmp_path / "a")


def test_broken_alignments(model: MiniGPT4, tmp_path: Path) -> None:
    directory = tmp_path / "a"
    model.save_pretrained(directory)
    projection = directory / "projection.safetensors"
    projection.write_bytes(projection.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"projection\.safetensors: cannot be read"):
        MiniGPT4.from_pretrained(directory)
    projection.unlink()
    with pytest.raises(UserError, match=r"holds no projection\.safetensors"):
        MiniGPT4.from_pretrained(directory)
    edit_record(directory, origin={})
    with pytest.raises(UserError, match=r"alignment\.json: 'origin\.vision_qformer' is missing"):
        MiniGPT4.from_pretrained(directory)
    edit_record(directory, format_version=99)
    with pytest.raises(UserError, match="format version 99, this package reads version 1"):
        MiniGPT4.from_pretrained(directory)
    with pytest.raises(UserError, match=r"holds no alignment\.json; give an alignment"):
        MiniGPT4.from_pretrained(tmp_path)


def test_tensors_that_the_configuration_asks_for(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    vision = Path(shutil.copytree(tiny_vision, tmp_path / "vision"))
    tensors = load_file(vision / "model.safetensors")
    save_file(tensors | {"query_tokens": torch.zeros(1, 9, D_QFORMER)}, vision / "model.safetensors")
    with pytest.raises(UserError, match=r"query_tokens has shape \(1, 9, 24\), its config\.json asks for \(1, 4, 24\)"):
        MiniGPT4.assemble(vision, tiny_llm, template="pocket")
    del tensors["qformer.layernorm.weight"]
    save_file(tensors, vision / "model.safetensors")
    with pytest.raises(UserError, match=r"the tensor qformer\.layernorm\.weight \(24,\) .* is missing"):
        MiniGPT4.assemble(vision, tiny_llm, template="pocket")


def test_lora_for_an_llm_without_its_layers_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    with pytest.raises(UserError, match="LoRA is made for no layer of a gpt2"):
        LoRA(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1)), 2)


def test_short_memory_is_told_as_that() -> None:
    told = r"^llm: needs more memory than there is \(CUDA out of memory\); try load_in"
    with pytest.raises(UserError, match=told), sources.readable("llm", "is no LLM ({})"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_unreadable_picture_is_a_users_mistake(model: MiniGPT4, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        model.encode_images([tmp_path / "missing.png"])
