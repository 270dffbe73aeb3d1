"""Models of somebody else: whatever stands in their files, no code of theirs runs, and one line says what is wrong."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from minigpt4.errors import UserError
from minigpt4.memory import plan
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import parts, sources


@pytest.fixture
def llm(tiny_llm: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llm, tmp_path / "llm"))


@pytest.fixture
def vision(tiny_vision: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_vision, tmp_path / "vision"))


@pytest.fixture
def alignment(vision: Path, llm: Path, tmp_path: Path) -> Path:
    MiniGPT4.assemble(vision, llm, template="pocket").save_pretrained(tmp_path / "aligned")
    return tmp_path / "aligned"


def edit(path: Path, place: str, value: Any) -> None:
    """Set one value of a JSON file, by its keys with dots between them."""
    whole = json.loads(path.read_text()) if path.exists() else {}
    *outer, last = place.split(".")
    inner = whole
    for key in outer:
        inner = inner.setdefault(key, {})
    inner[last] = value
    path.write_text(json.dumps(whole))


def refusal(load: Any, *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json"]
)
@pytest.mark.parametrize("known", [True, False])
def test_code_in_an_llms_directory_is_not_run(
    llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, known: bool
) -> None:
    """Also if its kind is one that transformers knows, and if standard input would say yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (llm / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    classes = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M", "AutoTokenizer": ["own.T", None]}
    edit(llm / file, "auto_map", classes)
    if not known:
        edit(llm / "config.json", "model_type", "own")
    for load in (parts.read_llm_config, parts.load_tokenizer, lambda name: parts.load_llm(name, torch.float32)):
        message = refusal(load, llm)
        assert f"contains code of its own (auto_map in {file})" in message or not known
    assert not (tmp_path / "ran").exists()


def test_code_in_other_places_is_not_run(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    (llm / "custom_generate").mkdir()
    (llm / "custom_generate" / "generate.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert "contains code of its own (custom_generate" in refusal(parts.load_llm, llm, torch.float32)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("trained.lora_rank", 10**9, "trained.lora_rank = 1000000000: "),
        ("trained.lora_rank", -1, "trained.lora_rank = -1: "),
        ("trained.lora_rank", [1], r"trained.lora_rank = [1]: "),
        ("trained.projection_layers", 10**9, "trained.projection_layers = 1000000000: "),
        ("trained.rank", 3, "trained.rank = 3: unexpected"),
        ("origin.llm", "a\0b", "origin.llm = 'a\\x00b': "),
        ("origin.llm", "", "origin.llm = '': "),
        ("origin.llm", "\x1b[2J", "origin.llm = '\\x1b[2J': "),
        ("origin.vision_qformer", {"a": 1}, "origin.vision_qformer = {'a': 1}: "),
        ("origin.llm_fingerprint", "x" * 100_000, "origin.llm_fingerprint = 'xxx"),
        ("template", {"name": 1}, "template.name = 1: "),
        ("template", "../x", "template: there is no chat template '../x'"),
        ("template", 7, "template = 7: "),
        ("stage", 10**30, "stage = 1000"),
        ("qformer", [], "qformer = []: "),
        ("decoding", {"temperature": 0}, "decoding.temperature"),
        ("decoding", {"max_new_tokens": 10**9}, "decoding.max_new_tokens"),
        ("format_version", "\x1b" * 1000, "format version '\\x1b"),
        ("format_version", True, None),
    ],
)
def test_records_with_odd_values(alignment: Path, key: str, value: Any, expected: str | None) -> None:
    """Each is refused before anything is loaded, by its key, and in a line that is not as long as the value."""
    edit(alignment / "alignment.json", key, value)
    if expected is None:
        assert MiniGPT4.from_pretrained(alignment)
        return
    shutil.rmtree(alignment.parent / "llm")
    message = refusal(MiniGPT4.from_pretrained, alignment)
    assert expected in message
    assert message.startswith(str(alignment))
    assert len(message) < len(str(alignment)) + 300


@pytest.mark.parametrize("text", ["[" * 100_000, "", "null", '{"format_version": ' + "9" * 5000 + "}", "\0"])
def test_records_that_are_no_json_object(alignment: Path, text: str) -> None:
    (alignment / "alignment.json").write_text(text)
    assert "alignment.json" in refusal(MiniGPT4.from_pretrained, alignment)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("llm/config.json", "num_hidden_layers", 10**9),
        ("llm/config.json", "hidden_size", 10**12),
        ("llm/config.json", "vocab_size", "many"),
        ("llm/config.json", "rope_parameters", 5),
        ("llm/config.json", "architectures", 5),
        ("llm/config.json", "dtype", "../x"),
        ("llm/tokenizer_config.json", "tokenizer_class", 5),
        ("llm/tokenizer_config.json", "added_tokens_decoder", [1]),
        ("llm/generation_config.json", "eos_token_id", {"a": 1}),
        ("vision/config.json", "vision_config.num_hidden_layers", 10**9),
        ("vision/config.json", "vision_config.image_size", 10**6),
        ("vision/config.json", "vision_config.image_size", 0),
        ("vision/config.json", "vision_config.patch_size", [8]),
        ("vision/config.json", "vision_config.num_attention_heads", 7),
        ("vision/config.json", "vision_config", 5),
        ("vision/config.json", "qformer_config.hidden_size", 2.5),
        ("vision/config.json", "qformer_config.num_hidden_layers", -1),
        ("vision/config.json", "num_query_tokens", 10**9),
        ("vision/preprocessor_config.json", "image_mean", "x"),
        ("vision/preprocessor_config.json", "resample", {"a": 1}),
    ],
)
def test_configurations_with_odd_values(alignment: Path, file: str, key: str, value: Any) -> None:
    """Refused, or of no effect; `plan`, which reads no weights, says the same."""
    edit(alignment.parent / file, key, value)
    for load in (MiniGPT4.from_pretrained, plan):
        try:
            load(alignment)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert str(alignment.parent) in str(error) or "the parts' config.json" in str(error)  # noqa: PT017


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_deep_json_in_an_llms_directory(alignment: Path, file: str) -> None:
    (alignment.parent / "llm" / file).write_text('{"a":' * 50_000)
    assert "llm" in refusal(MiniGPT4.from_pretrained, alignment)


def test_weights_that_lie(alignment: Path, llm: Path, tmp_path: Path) -> None:
    projection = alignment / "projection.safetensors"
    good = projection.read_bytes()
    size = struct.unpack("<Q", good[:8])[0]
    header = json.loads(good[8 : 8 + size])
    huge = json.dumps({**header, "weight": {**header["weight"], "shape": [2**40, 2**40]}}).encode()
    for content in (
        *(good[:length] for length in (0, 7, 8, 8 + size // 2, 8 + size, len(good) - 1)),
        good + b"x",
        struct.pack("<Q", 2**62) + good[8:],
        struct.pack("<Q", len(huge)) + huge + good[8 + size :],
        good[: 8 + size] + b"\xff" * (len(good) - 8 - size),
    ):
        projection.write_bytes(content)
        assert "projection.safetensors" in refusal(MiniGPT4.from_pretrained, alignment)
    index = {"weight_map": {"model.norm.weight": "../aligned/projection.safetensors"}}
    for odd in (index, {"weight_map": ["x"]}, {"weight_map": {"a": 5}}, {}, {"weight_map": {"a": "a\0"}}):
        (llm / "model.safetensors").unlink(missing_ok=True)
        (llm / "model.safetensors.index.json").write_text(json.dumps(odd))
        assert str(llm) in refusal(sources.Checkpoint, llm)
    save_file({"b": torch.zeros(1)}, llm / "shard.safetensors")
    (llm / "model.safetensors.index.json").write_text('{"weight_map": {"a": "shard.safetensors"}}')
    assert "the tensor a is missing" in refusal(sources.Checkpoint(llm).__getitem__, "a")
    (llm / "model.safetensors.index.json").unlink()
    for odd in ([torch.zeros(1)], {"\x1b[31ma": torch.zeros(1)}, torch.zeros(1)):
        torch.save(odd, llm / "pytorch_model.bin")
        assert str(llm) in refusal(parts.load_llm, llm, torch.float32)
