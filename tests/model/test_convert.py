"""The authors' files as exports, and back: commands, deltas, dtypes, and files that are wrong."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2VisionModel

from converting import FILES, SIZES, VISION_SIDE, answers, convert, options, run, same_weights
from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import parts
from minigpt4.model.convert import assemble, write_projection


def test_commands_from_released_files_and_back(tmp_path: Path) -> None:
    """convert, and export --format released: the projection comes back bit by bit."""
    result = run("convert", *options(), "--out", tmp_path / "model")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'model'}\n"), result.output
    result = run("export", tmp_path / "model", "--format", "released", "--out", tmp_path / "back.pth")
    assert result.exit_code == 0, result.output
    before, after = (torch.load(path, weights_only=True) for path in (FILES / "pretrained.pth", tmp_path / "back.pth"))
    assert after.keys() == {"model"}
    assert after["model"].keys() == before["model"].keys() == {"llama_proj.weight", "llama_proj.bias"}
    assert all(torch.equal(after["model"][name], before["model"][name]) for name in before["model"])
    result = run("convert", *options(), "--out", tmp_path / "model")
    assert result.exit_code == 2
    assert "exists and is not empty (alignment.json, chat_template.jinja, config.json and " in result.stderr
    assert "--overwrite (in Python overwrite=True) replaces all of that" in result.stderr
    (tmp_path / "model" / "config.json").write_text("")
    assert run("convert", *options(), "--out", tmp_path / "model", "--overwrite").exit_code == 0
    assert (tmp_path / "model" / "config.json").stat().st_size


def test_a_trained_alignment_goes_back_to_the_original_and_to_an_export(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", seed=7)
    model.save_pretrained(tmp_path / "alignment")
    path = write_projection(tmp_path / "alignment", tmp_path / "back.pth")
    weights = torch.load(path, weights_only=True)["model"]
    assert torch.equal(weights["llama_proj.weight"], model.blip2.language_projection.weight)
    assert torch.equal(weights["llama_proj.bias"], model.blip2.language_projection.bias)
    with pytest.raises(UserError, match=r"back\.pth: exists"):
        write_projection(tmp_path / "alignment", path)
    path.write_bytes(b"")
    assert write_projection(tmp_path / "alignment", path, overwrite=True).stat().st_size
    result = run("export", tmp_path / "alignment", "--out", tmp_path / "export")
    assert result.exit_code == 0, result.output
    assert same_weights(MiniGPT4.from_pretrained(tmp_path / "export", device="cpu"), model)
    for wrong, reason in (
        (["--format", "onnx"], "'onnx'; choose huggingface or released"),
        ([], "give the new directory as --out"),
    ):
        result = run("export", tmp_path / "alignment", *wrong)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert reason in result.stderr


def test_what_was_converted_can_be_aligned_further_wherever_it_lies(tmp_path: Path) -> None:
    model = convert(tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "moved")
    moved = MiniGPT4.from_pretrained(tmp_path / "moved", device="cpu")
    moved.save_pretrained(tmp_path / "alignment")
    assert same_weights(MiniGPT4.from_pretrained(tmp_path / "alignment", device="cpu"), model)


@pytest.mark.parametrize("command", ["convert", "assemble"])
def test_what_was_written_in_another_dtype_can_be_aligned_further(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, command: str
) -> None:
    """Its vision side is that of its own files, rounded, not the one in float32 that it was made from."""
    if command == "convert":
        convert(tmp_path / "made", dtype="bfloat16")
    else:
        assemble(tiny_vision, tiny_llm, tmp_path / "made", template="pocket", dtype="bfloat16")
    model = MiniGPT4.from_pretrained(tmp_path / "made", device="cpu")
    model.save_pretrained(tmp_path / "alignment")
    again, expected = MiniGPT4.from_pretrained(tmp_path / "alignment", device="cpu").state_dict(), model.state_dict()
    of_vision = [name for name in expected if not name.startswith("blip2.language_model.")]
    assert any("vision_model" in name for name in of_vision)
    assert all(torch.equal(again[name], expected[name]) for name in of_vision)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_of_the_files(tmp_path: Path, dtype: str) -> None:
    convert(tmp_path / "model", dtype=dtype)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == dtype


def test_another_image_size_interpolates_the_position_embedding(tmp_path: Path) -> None:
    small, large = convert(tmp_path / "small"), convert(tmp_path / "large", image_size=48)
    assert dict(large.image_processor.size) == {"height": 48, "width": 48}
    picture = Image.open(FILES / "0.png")
    assert large.encode_images([picture]).shape == small.encode_images([picture]).shape
    # transformers' own way to read larger pictures with the small tower
    pixels = large.image_processor([picture], return_tensors="pt")["pixel_values"]
    expected = small.blip2.vision_model(pixels, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(large.blip2.vision_model(pixels).last_hidden_state, expected)


def test_vicuna_deltas_are_added(tmp_path: Path) -> None:
    """Also the first kind, which has one token more than its base."""
    base, delta = tmp_path / "base", tmp_path / "delta"
    target = load_file(FILES / "llm" / "model.safetensors")
    torch.manual_seed(1)
    weights = {name: torch.randn_like(tensor) for name, tensor in target.items()}
    rows = len(weights["lm_head.weight"]) - 1
    whole = dict(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:rows].clone()
        whole[name] = torch.cat([weights[name], weights[name].mean(0, keepdim=True)])
    shutil.copytree(FILES / "llm", delta)
    shutil.copytree(FILES / "llm", base)
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    save_file({n: target[n] - whole[n] for n in target}, delta / "model.safetensors", metadata={"format": "pt"})
    result = run("convert", *options(llm=None, llm_base=base, llm_delta=delta), "--out", tmp_path / "summed")
    assert result.exit_code == 0, result.output
    summed, direct = MiniGPT4.from_pretrained(tmp_path / "summed", device="cpu"), convert(tmp_path / "direct")
    found = summed.blip2.language_model.state_dict()
    for name, tensor in direct.blip2.language_model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    assert answers(summed) == answers(direct)
    # the sum exists nowhere else, so an alignment trained on from here names this export as its LLM
    summed.save_pretrained(tmp_path / "alignment")
    assert same_weights(MiniGPT4.from_pretrained(tmp_path / "alignment", device="cpu"), summed)


def test_a_delta_for_another_base(tmp_path: Path) -> None:
    base = Path(shutil.copytree(FILES / "llm", tmp_path / "base"))
    tensors = load_file(base / "model.safetensors")
    norm = tensors.pop("model.norm.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"base: has no tensor model\.norm\.weight, but the delta"):
        convert(tmp_path / "out", llm=base, llm_delta=FILES / "llm")
    narrow = {"model.norm.weight": norm, "lm_head.weight": tensors["lm_head.weight"][:, :8].clone()}
    save_file({**tensors, **narrow}, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head\.weight is \(330, 8\), but that of the delta .* is \(330, 24\)"):
        convert(tmp_path / "out", llm=base, llm_delta=FILES / "llm")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]  # nothing half-written either


def test_the_variant_is_exported_as_parts_that_plain_transformers_loads(tmp_path: Path) -> None:
    """What the two parts and the projection give when somebody puts them together by hand."""
    projection = FILES / "pretrained_without_qformer.pth"
    model = convert(tmp_path / "variant", qformer=None, projection=projection, without_qformer=True)
    model.export(tmp_path / "again")
    again = MiniGPT4.from_pretrained(tmp_path / "again", device="cpu")
    assert not again.has_qformer
    assert same_weights(again, model)
    assert answers(again) == answers(model)
    for directory in (tmp_path / "variant", tmp_path / "again"):
        tower = Blip2VisionModel.from_pretrained(directory / "vision")
        llm = AutoModelForCausalLM.from_pretrained(directory / "llm")
        linear = load_file(directory / "projection.safetensors")
        pixels = model.image_processor([Image.open(FILES / "0.png")], return_tensors="pt")["pixel_values"]
        patches = tower(pixels).last_hidden_state[:, 1:]
        soft = patches.reshape(1, -1, 4 * SIZES["vision"]) @ linear["weight"].T + linear["bias"]
        torch.testing.assert_close(soft, model.project(model.encode_pixels(pixels)))
        words = llm.get_input_embeddings().weight
        assert len(words) == SIZES["vocabulary"] + 1
        assert torch.equal(words, model.blip2.language_model.get_input_embeddings().weight)
        assert AutoTokenizer.from_pretrained(directory / "llm").convert_tokens_to_ids("<image>") == len(words) - 1


def test_patches_that_cannot_be_put_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an image of 30 px has 25, which cannot be divided"):
        convert(tmp_path / "out", qformer=None, without_qformer=True, image_size=30)


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"vision": FILES / "pretrained.pth"}, "holds a projection", "a vision tower (eva_vit_g.pth) was expected"),
        ({"qformer": FILES / "eva_vit.pth"}, "holds a vision tower", "a BLIP-2 with a Q-Former"),
        ({"projection": FILES / "blip2_pretrained.pth"}, "holds a BLIP-2 with a Q-Former", "a projection"),
        ({"vision": FILES / "nothing.pth"}, "nothing.pth: no such file", "a vision tower"),
        ({"projection": FILES / "pretrained_without_qformer.pth"}, "goes from 80 to 24", "width is 16"),
        ({"llm": FILES}, "holds no config.json", "give the directory of a model"),
        ({"vision_heads": None}, "20 wide", "no multiple of the head size 88; give --vision-heads"),
        ({"qformer_heads": 3}, "16 wide", "cannot have 3 heads"),
        ({"image_size": 25}, "25 px", "no multiple of the tower's patches of 6 px"),
        ({"template": "vicuna"}, "'vicuna'", "vicuna_v0"),
        ({"dtype": "int3"}, "'int3'", "float32"),
        ({"llm": None}, "--llm", "--llm-base together with --llm-delta"),
        ({"llm_base": FILES / "llm"}, "--llm", "--llm-base together with --llm-delta"),
        ({"qformer": None}, "--qformer", "--no-qformer"),
    ],
)  # fmt: skip
def test_a_wrong_file_or_option_is_one_line(tmp_path: Path, changes: dict, found: str, expected: str) -> None:
    result = run("convert", *options(**changes), "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    assert found in result.output
    assert expected in result.output
    assert list(tmp_path.iterdir()) == []


def changed(source: Path, target: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """A copy of a released file with one tensor replaced, or left out."""
    content = torch.load(source, weights_only=True)
    tensors = content.get("model", content)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    torch.save(content, target)
    return target


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("vision", "blocks.1.mlp.fc2.weight"),
        ("vision", "cls_token"),
        ("qformer", "Qformer.bert.encoder.layer.2.crossattention.self.key.weight"),
        ("qformer", "Qformer.bert.encoder.layer.1.output_query.LayerNorm.bias"),
        ("qformer", "ln_vision.weight"),
        ("projection", "llama_proj.bias"),
    ],
)
def test_a_missing_or_misshaped_tensor_is_named(tmp_path: Path, part: str, name: str) -> None:
    source = {**VISION_SIDE, "projection": FILES / "pretrained.pth"}[part]
    for tensor, reason in ((None, f"holds no tensor {name}"), (torch.zeros(1, 2, 3), rf"{name} has shape \(1, 2, 3\)")):
        wrong = changed(source, tmp_path / "wrong.pth", name, tensor)
        with pytest.raises(UserError, match=rf"wrong\.pth: .*{reason}"):
            convert(tmp_path / "out", **{part: wrong})


def test_unused_tensors_are_not_missed(tmp_path: Path) -> None:
    """The last block, the head, the branch that reads text: dropped, so they may be gone."""
    content = torch.load(FILES / "blip2_pretrained.pth", weights_only=True)["model"]
    kept = {n: t for n, t in content.items() if not n.startswith(("Qformer.cls", "t5_proj")) and "word_emb" not in n}
    kept = {n: t for n, t in kept.items() if ".intermediate.dense" not in n}
    torch.save({"model": kept}, tmp_path / "qformer.pth")
    tower = torch.load(FILES / "eva_vit.pth", weights_only=True)
    lean = {n: t for n, t in tower.items() if not n.startswith(("norm.", "head.", "blocks.2.mlp"))}
    torch.save(lean, tmp_path / "tower.pth")
    lean_model = convert(tmp_path / "lean", vision=tmp_path / "tower.pth", qformer=tmp_path / "qformer.pth")
    assert same_weights(lean_model, convert(tmp_path / "all"))


class Bomb:
    def __reduce__(self) -> tuple:
        return (os.mkdir, ("exploded",))


def test_a_pickle_with_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for new_format in (True, False):
        torch.save({"model": Bomb()}, tmp_path / "bomb.pth", _use_new_zipfile_serialization=new_format)
        with pytest.raises(UserError, match=r"bomb\.pth: holds more than tensors, which could run code") as caught:
            convert(tmp_path / "out", projection=tmp_path / "bomb.pth")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_cut_off_and_foreign_files(tmp_path: Path) -> None:
    whole = (FILES / "eva_vit.pth").read_bytes()
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    for content, reason in (
        (whole[:-300], "cannot be read .* broken or cut off"),
        (whole[:1000], "cannot be read .* broken or cut off"),
        (b"", "cannot be read"),
        (b"<html>404</html>", "cannot be read"),
        (buffer.getvalue(), "holds no tensors by name"),
    ):
        (tmp_path / "bad.pth").write_bytes(content)
        with pytest.raises(UserError, match=rf"bad\.pth: {reason}") as caught:
            convert(tmp_path / "out", vision=tmp_path / "bad.pth")
        assert "\n" not in str(caught.value)


def test_files_in_torchs_older_format(tmp_path: Path) -> None:
    """What torch wrote before 1.6, and some people still publish."""
    torch.save(torch.load(FILES / "eva_vit.pth", weights_only=True), tmp_path / "old.pth",
               _use_new_zipfile_serialization=False)  # fmt: skip
    assert same_weights(convert(tmp_path / "old", vision=tmp_path / "old.pth"), convert(tmp_path / "new"))


def test_a_projection_for_another_llm_names_both_widths(tmp_path: Path) -> None:
    wide = {"llama_proj.weight": torch.zeros(40, SIZES["qformer"]), "llama_proj.bias": torch.zeros(40)}
    torch.save({"model": wide}, tmp_path / "13b.pth")
    with pytest.raises(UserError, match=r"goes from 16 to 40, but .* LLM .*llm is 24; .*4096 wide: 7B, 5120 wide: 13B"):
        convert(tmp_path / "out", projection=tmp_path / "13b.pth")


LLAMA_2023 = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
PLAIN = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    "settings",
    [
        LLAMA_2023,
        {**PLAIN, "tokenizer_class": "LLaMATokenizer"},
        {**PLAIN, "tokenizer_class": None},
        {"eos_token": {"__type": "AddedToken", "content": ""}, "tokenizer_class": "LlamaTokenizerFast"},
        None,
    ],
)
def test_a_llama_of_2023_has_the_ids_of_sentencepiece(tmp_path: Path, settings: dict | None) -> None:
    llm = Path(shutil.copytree(FILES / "llm", tmp_path / "llm"))
    (llm / "tokenizer_config.json").unlink()
    if settings is not None:
        (llm / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = parts.load_tokenizer(llm)
    pieces = SentencePieceProcessor(model_file=str(llm / "tokenizer.model"))
    text = "### Assistant: It's 7 o'clock,\n  naïve 猫."
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (pieces.bos_id(), pieces.eos_id())


def test_a_llama_whose_model_puts_no_space_first_has_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    """Also in an export, and its text comes back as it was."""
    llm = Path(shutil.copytree(FILES / "llm", tmp_path / "llm"))
    model = sentencepiece_model_pb2.ModelProto.FromString((llm / "tokenizer.model").read_bytes())
    model.normalizer_spec.add_dummy_prefix = False
    (llm / "tokenizer.model").write_bytes(model.SerializeToString())
    pieces = SentencePieceProcessor(model_file=str(llm / "tokenizer.model"))
    for tokenizer in (parts.load_tokenizer(llm), convert(tmp_path / "model", llm=llm).tokenizer):
        for text in ("### Assistant: It's 7 o'clock,\n  naïve 猫.", "a red ball", "  a red ball", "\nball"):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert ids == pieces.encode(text)
            assert tokenizer.decode(ids) == text


def test_without_a_qformer_the_norm_alone_will_do(tmp_path: Path) -> None:
    whole = torch.load(FILES / "blip2_pretrained.pth", weights_only=True)
    whole = whole.get("model", whole)
    torch.save({name: whole[name] for name in ("ln_vision.weight", "ln_vision.bias")}, tmp_path / "norm.pth")
    more = {"projection": FILES / "pretrained_without_qformer.pth", "without_qformer": True}
    convert(tmp_path / "whole", **more)
    convert(tmp_path / "norm", qformer=tmp_path / "norm.pth", **more)
    one, other = (load_file(tmp_path / name / "vision" / "model.safetensors") for name in ("whole", "norm"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(UserError, match="the norm after the vision encoder"):
        convert(tmp_path / "wrong", qformer=FILES / "pretrained.pth", **more)
