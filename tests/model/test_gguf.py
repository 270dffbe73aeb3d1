"""LLMs in GGUF files: read as transformers reads them, by every path that takes an LLM."""

from __future__ import annotations

import contextlib
import json
import struct
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from minigpt4 import MiniGPT4, UserError
from minigpt4.memory import plan
from minigpt4.model import convert, parts
from minigpt4.model.gguf import open_tensors
from minigpt4.model.quick_gguf import QuickReader
from tiny import tiny_tokenizer

WIDTH, HEADS = 64, 2
QUESTION = ([Image.new("RGB", (40, 40), "red")], ["What is it?"])
GREEDY = {"do_sample": False, "max_new_tokens": 5}


def write_gguf(path: Path, kind: str, quantized: gguf.GGMLQuantizationType) -> None:
    """A random LLM of one layer as llama.cpp's converter writes it, its matrices in blocks."""
    architecture = kind.replace("_", "")
    words = tiny_tokenizer(path.parent, special=("<pad>", "<s>", "</s>"))
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS}
    sizes |= {"intermediate_size": 96, "head_dim": WIDTH // HEADS, "max_position_embeddings": 256}
    if kind.endswith("moe"):
        sizes |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768}  # as by default
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=words, initializer_range=0.2, tie_word_embeddings=False, **sizes)
    state = AutoModelForCausalLM.from_config(config).state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("random")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    if kind.endswith("moe"):
        writer.add_expert_count(4)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(768)
    vocabulary = json.loads((path.parent / "tokenizer.json").read_text())["model"]
    tokens = sorted(vocabulary["vocab"], key=vocabulary["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i < 3 else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in _names(state, architecture).items():
        values = tensor.numpy()
        blocks = quantized if values.ndim > 1 and values.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(np.ascontiguousarray(values), blocks)
        writer.add_tensor(name, data, raw_dtype=blocks)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for other in path.parent.glob("*.json"):
        other.unlink()


def _names(state: dict[str, torch.Tensor], architecture: str) -> dict[str, torch.Tensor]:
    """The tensors under llama.cpp's names; it stores Llama's queries and keys with their halves interleaved."""
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA if architecture == "llama" else gguf.MODEL_ARCH.QWEN3MOE, 1)
    found = {}
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, 1)
            found |= {"blk.0.ffn_gate_exps.weight": gate, "blk.0.ffn_up_exps.weight": up}
            continue
        if name.endswith("experts.down_proj"):
            found["blk.0.ffn_down_exps.weight"] = tensor
            continue
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = tensor.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH).swapaxes(1, 2).reshape(WIDTH, WIDTH)
        found[known.get_name(name.removesuffix(".weight")) + ".weight"] = tensor
    return found


@pytest.fixture(scope="module", params=["llama-Q8_0", "llama-Q4_1", "qwen3_moe-Q8_0"])
def gguf_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind, blocks = request.param.split("-")
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(path, kind, gguf.GGMLQuantizationType[blocks])
    return path


def test_its_tensors_and_logits_are_those_that_transformers_reads(gguf_file: Path) -> None:
    place = {"pretrained_model_name_or_path": gguf_file.parent, "gguf_file": gguf_file.name}
    expected = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    tensors, state = open_tensors(gguf_file), expected.state_dict()
    assert set(tensors) == {name for name in state if "rotary" not in name}
    for name, tensor in tensors.items():
        assert torch.equal(tensor, state[name]), name
    llm = parts.load_llm(gguf_file, torch.float32)
    ids = AutoTokenizer.from_pretrained(**place)("A red ball.", return_tensors="pt")["input_ids"]
    assert torch.equal(llm.tokenizer("A red ball.", return_tensors="pt")["input_ids"], ids)
    words = expected.config.vocab_size
    torch.testing.assert_close(llm.model(ids).logits[..., :words], expected(ids).logits)


def test_the_quick_reader_reads_what_ggufs_own_reads(gguf_file: Path, tmp_path: Path) -> None:
    slow, quick = gguf.GGUFReader(gguf_file), QuickReader(gguf_file)
    assert {key: (field.contents(), field.types) for key, field in quick.fields.items()} == {
        key: (field.contents(), field.types) for key, field in slow.fields.items()
    }
    assert [(t.name, t.data_offset, t.tensor_type) for t in quick.tensors] == [
        (t.name, t.data_offset, t.tensor_type) for t in slow.tensors
    ]
    content = gguf_file.read_bytes()
    words = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens") + 8  # the number of them
    for broken in (content[: words + 40], content[:words] + b"\xff" * 6 + content[words + 6 :]):
        (tmp_path / "broken.gguf").write_bytes(broken)
        with pytest.raises((ValueError, struct.error)):
            QuickReader(tmp_path / "broken.gguf")


def test_loading_reads_no_vocabulary_by_ggufs_own_reader(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[int] = []
    theirs = gguf.GGUFReader._get_field_parts

    def counted(self: gguf.GGUFReader, offset: int, kind: int) -> object:
        slow.append(kind)
        return theirs(self, offset, kind)

    monkeypatch.setattr(gguf.GGUFReader, "_get_field_parts", counted)
    llm = parts.load_llm(gguf_file, torch.float32)
    assert slow
    assert gguf.GGUFValueType.ARRAY not in slow
    assert len(slow) < len(llm.tokenizer)


def test_it_is_taken_wherever_an_llm_is_named(gguf_file: Path, tiny_vision: Path, tmp_path: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, gguf_file, template="vicuna_v0", device="cpu")
    answer = model.generate(*QUESTION, **GREEDY)
    model.save_pretrained(tmp_path / "alignment")
    assert json.loads((tmp_path / "alignment" / "alignment.json").read_text())["origin"]["llm"] == str(gguf_file)
    model.export(tmp_path / "export")
    convert.assemble(tiny_vision, gguf_file.parent, tmp_path / "assembled", template="vicuna_v0")
    for made in ("alignment", "export", "assembled"):
        assert MiniGPT4.from_pretrained(tmp_path / made, device="cpu").generate(*QUESTION, **GREEDY) == answer, made
    assert sum(part.parameters for part in plan(tmp_path / "alignment").parts) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_an_alignment_is_refused_if_its_file_is_another_one(tiny_vision: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", gguf.GGMLQuantizationType.Q8_0)
    MiniGPT4.assemble(tiny_vision, path, template="vicuna_v0", device="cpu").save_pretrained(tmp_path / "alignment")
    path.unlink()
    write_gguf(path, "llama", gguf.GGMLQuantizationType.Q4_1)
    with pytest.raises(UserError, match=r"was aligned with other weights than those now in .*model.gguf"):
        MiniGPT4.from_pretrained(tmp_path / "alignment", device="cpu")


@pytest.mark.parametrize("filename", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_code_beside_it_does_not_run(filename: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", gguf.GGMLQuantizationType.Q8_0)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    kinds = dict.fromkeys(["AutoConfig", "AutoModelForCausalLM"], "evil.Evil") | {"AutoTokenizer": ["evil.Evil", None]}
    named = {"auto_map": kinds, "model_type": "llama", "tokenizer_class": "Evil"}
    (tmp_path / filename).write_text(json.dumps(named))
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    with contextlib.suppress(UserError):
        parts.load_llm(path, torch.float32)
    assert not (tmp_path / "ran").exists()


def test_what_cannot_be_read_is_refused(tiny_vision: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", gguf.GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    assemble = (MiniGPT4.assemble, partial(convert.assemble, out=tmp_path / "out"))
    with pytest.raises(UserError, match=r"model\.gguf: a GGUF file is unpacked to float32, not to load_in='int8'"):
        MiniGPT4.assemble(tiny_vision, path, device="cpu", load_in="int8")
    for content, said in (
        (whole[: len(whole) // 2], "cannot be read"),
        (whole.replace(b"llama", b"lhama"), "lhama"),
        (b"GGUF", "cannot be read"),
        (b"", "cannot be read"),
    ):
        path.write_bytes(content)
        for way in assemble:
            with pytest.raises(UserError, match=rf"model\.gguf.*{said}"):
                way(tiny_vision, path, template="vicuna_v0")
    path.write_bytes(whole)
    (tmp_path / "other.gguf").write_bytes(whole)
    for way in assemble:
        with pytest.raises(UserError, match=r"holds 2 GGUF files \(model\.gguf, other\.gguf\); name the file"):
            way(tiny_vision, tmp_path)
    assert not (tmp_path / "out").exists()
