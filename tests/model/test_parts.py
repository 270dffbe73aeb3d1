"""Reading frozen parts: wherever their files put the tensors, whatever is wrong with them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt4.errors import UserError
from minigpt4.model import parts, sources
from tiny import D_LLM, IMAGE_SIZE, tiny_tokenizer


@pytest.fixture
def vision_copy(tiny_vision: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vision, tmp_path / "vision"))


def edit_tensors(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of `model.safetensors` by name (`__` for a dot), or leave them out if None."""
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."))
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, directory / "model.safetensors")


def test_pocket_names_lead_to_the_packages_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIGPT4_POCKET_WEIGHTS", str(tmp_path))
    (tmp_path / "language").mkdir()
    (tmp_path / "alignments" / "pocket-stage1").mkdir(parents=True)
    assert sources.resolve("pocket/language") == tmp_path / "language"
    assert sources.resolve("pocket-stage1") == tmp_path / "alignments" / "pocket-stage1"
    with pytest.raises(UserError, match=r"'pocket/vision' is not in this installation .* pocket build"):
        sources.resolve("pocket/vision")


def test_other_names_are_directories_or_hub_ids(tmp_path: Path) -> None:
    assert sources.resolve(tmp_path) == tmp_path
    assert sources.resolve("Salesforce/blip2-opt-2.7b") == "Salesforce/blip2-opt-2.7b"
    with pytest.raises(UserError, match=r"no such directory.*pocket-stage1"):
        sources.resolve("pockett")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        sources.resolve(tmp_path / "file")


def test_a_mistyped_path_that_looks_like_a_hub_id() -> None:
    with pytest.raises(UserError, match=r"runs/nothing: no such directory, and no model .* from the hub"):
        parts.load_llm("runs/nothing", torch.float32)


def test_vision_side_is_found_in_a_whole_sharded_blip2(tiny_vision: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_vision / "model.safetensors")
    half = len(tensors) // 2
    shards = {
        "model-1.safetensors": {f"model.{name}": tensors[name] for name in list(tensors)[:half]},
        "model-2.safetensors": {name: tensors[name] for name in list(tensors)[half:]},
        "model-3.safetensors": {"language_model.lm_head.weight": torch.zeros(2, 2)},
    }
    for filename, content in shards.items():
        save_file(content, tmp_path / filename)
    index = {"weight_map": {name: filename for filename, content in shards.items() for name in content}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for filename in ("config.json", "preprocessor_config.json"):
        shutil.copy(tiny_vision / filename, tmp_path)
    whole, alone = parts.load_vision_qformer(tmp_path), parts.load_vision_qformer(tiny_vision)
    assert whole.tensors.keys() == alone.tensors.keys()
    assert all(torch.equal(whole.tensors[name], alone.tensors[name]) for name in alone.tensors)
    assert whole.fingerprint == alone.fingerprint


def test_older_bin_files_are_read_without_running_code(vision_copy: Path) -> None:
    expected = parts.load_vision_qformer(vision_copy).fingerprint
    tensors = load_file(vision_copy / "model.safetensors")
    (vision_copy / "model.safetensors").unlink()
    torch.save(tensors, vision_copy / "pytorch_model.bin")
    assert parts.load_vision_qformer(vision_copy).fingerprint == expected
    torch.save({"vision_model.x": shutil.rmtree}, vision_copy / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read"):
        parts.load_vision_qformer(vision_copy)


def test_fingerprint_sees_weights_and_not_how_they_are_stored(vision_copy: Path) -> None:
    tensors = {name: tensor.half().float() for name, tensor in load_file(vision_copy / "model.safetensors").items()}
    halves = {name: tensor.half() for name, tensor in reversed(tensors.items())}
    assert sources.fingerprint(halves) == sources.fingerprint(tensors)
    for changed in ("qformer.layernorm.bias", "vision_model.encoder.layers.1.mlp.fc2.weight", "query_tokens"):
        assert sources.fingerprint(tensors | {changed: tensors[changed] + 0.01}) != sources.fingerprint(tensors)
    matrix = "vision_model.encoder.layers.1.mlp.fc2.weight"
    for row in (0, len(tensors[matrix]) // 2, -1):
        moved = tensors[matrix].clone()
        moved[row] += 0.01
        assert sources.fingerprint(tensors | {matrix: moved}) != sources.fingerprint(tensors)
    assert sources.fingerprint({"a": tensors["query_tokens"]}) != sources.fingerprint({"b": tensors["query_tokens"]})


def test_image_size_follows_the_tower(vision_copy: Path) -> None:
    path = vision_copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"height": 9, "width": 9}}))
    assert dict(parts.load_vision_qformer(vision_copy).image_processor.size) == {
        "height": IMAGE_SIZE,
        "width": IMAGE_SIZE,
    }


def test_llm_in_place_of_the_vision_side(tiny_llm: Path) -> None:
    with pytest.raises(UserError, match=r"is no vision side \(model_type 'llama'\)"):
        parts.load_vision_qformer(tiny_llm)


def test_vision_side_in_place_of_the_llm(tiny_vision: Path) -> None:
    with pytest.raises(UserError, match="is no decoder-only LLM with a tokenizer") as caught:
        parts.load_llm(tiny_vision, torch.float32)
    assert "\n" not in str(caught.value)


def test_encoder_decoder_in_place_of_the_llm(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    vocabulary = tiny_tokenizer(tmp_path)
    config = T5Config(vocab_size=vocabulary, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no decoder-only LLM") as caught:
        parts.load_llm(tmp_path, torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("filename", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_missing_and_broken_files_are_named(vision_copy: Path, filename: str) -> None:
    path = vision_copy / filename
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=filename) as caught:
        parts.load_vision_qformer(vision_copy)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=filename):
        parts.load_vision_qformer(vision_copy)


def test_truncated_llm(tiny_llm: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read"):
        parts.load_llm(copy, torch.float32)


def test_missing_shard(tiny_vision: Path, tmp_path: Path) -> None:
    for filename in ("config.json", "preprocessor_config.json"):
        shutil.copy(tiny_vision / filename, tmp_path)
    index = {"weight_map": {"query_tokens": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"the shard model-1\.safetensors that its index names is missing"):
        parts.load_vision_qformer(tmp_path)


def test_image_token_that_the_tokenizer_knows_is_left_as_it_is(tiny_llm: Path) -> None:
    llm = parts.load_llm(tiny_llm, torch.float32)
    assert llm.image_token_id == 3
    assert llm.model.get_input_embeddings().num_embeddings == len(llm.tokenizer)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spare_rows", [0, 5])
def test_image_token_is_added_where_it_is_unknown(tmp_path: Path, tied: bool, spare_rows: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    known = tiny_tokenizer(tmp_path, special=("<pad>", "<s>", "</s>"))
    config = LlamaConfig(
        vocab_size=known + spare_rows, hidden_size=D_LLM, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    original = LlamaForCausalLM(config)
    original.save_pretrained(tmp_path)
    llm = parts.load_llm(tmp_path, torch.float32)
    assert llm.image_token_id == known
    assert llm.tokenizer("a<image>b")["input_ids"].count(known) == 1
    rows = llm.model.get_input_embeddings().weight
    assert len(rows) == max(known + spare_rows, known + 1)
    assert torch.equal(rows[:known], original.get_input_embeddings().weight[:known])
    ids = torch.tensor([[1, 50, 60]])
    assert torch.allclose(llm.model(ids).logits[..., :known], original(ids).logits[..., :known], atol=1e-6)
    if not spare_rows:
        assert not rows[known].any()
