"""Converting, assembling and exporting as people do it: commands, memory, families of LLMs, and whatever is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoTokenizer, Blip2VisionModel, PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from minigpt4.cli import app
from minigpt4.errors import UserError
from minigpt4.model import parts, released, sources, streaming
from minigpt4.model.alignment import MiniGPT4
from minigpt4.prompts.encode import check_template
from minigpt4.prompts.templates import TEMPLATES, Message
from minigpt4.training.recipe import Recipe
from minigpt4.training.train import train
from tiny import D_LLM, tiny_tokenizer

FILES = Path(__file__).parents[1] / "golden" / "released"
SIZES: dict[str, int] = json.loads((FILES / "expected.json").read_text())["sizes"]
VISION_SIDE = {"vision": FILES / "eva_vit.pth", "qformer": FILES / "blip2_pretrained.pth"}
HEADS = {"vision_heads": SIZES["vision_heads"], "qformer_heads": SIZES["qformer_heads"]}


def run(*arguments: object) -> Result:
    """A command in this process, for one of its own takes seconds to start; `test_cli.py` starts real ones."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def options(**changes: Any) -> list[object]:
    """The options of `minigpt4 convert` for the fixtures, with some changed, or left out if None."""
    given = {
        **VISION_SIDE,
        **HEADS,
        "projection": FILES / "pretrained.pth",
        "llm": FILES / "llm",
        "template": "vicuna_v0",
        **changes,
    }
    return [text for key, value in given.items() if value is not None for text in (f"--{key.replace('_', '-')}", value)]


def convert(out: Path, **changes: Any) -> MiniGPT4:
    given = {**VISION_SIDE, **HEADS, "projection": FILES / "pretrained.pth", "llm": FILES / "llm", **changes}
    released.convert(out=out, template="vicuna_v0", **given)
    return MiniGPT4.from_pretrained(out, device="cpu")


def answers(model: MiniGPT4) -> list[str]:
    return model.generate([FILES / "0.png", FILES / "1.png"], ["What is it?"] * 2, do_sample=False, max_new_tokens=8)


def same_weights(model: MiniGPT4, other: MiniGPT4) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


# -- commands


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
    assert "exists and is not empty" in result.stderr


def test_a_trained_alignment_goes_back_to_the_original_and_to_an_export(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path
) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", seed=7)
    model.save_pretrained(tmp_path / "alignment")
    path = released.write_projection(tmp_path / "alignment", tmp_path / "back.pth")
    weights = torch.load(path, weights_only=True)["model"]
    assert torch.equal(weights["llama_proj.weight"], model.blip2.language_projection.weight)
    assert torch.equal(weights["llama_proj.bias"], model.blip2.language_projection.bias)
    with pytest.raises(UserError, match=r"back\.pth: exists"):
        released.write_projection(tmp_path / "alignment", path)
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


@pytest.mark.parametrize("qformer", [True, False])
def test_an_export_by_the_command_is_that_of_the_model_in_memory(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, qformer: bool
) -> None:
    """Of an alignment of separate parts, of an export, and of an alignment whose parts are inside an export."""
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu", seed=7, qformer=qformer)
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "memory")
    inside = MiniGPT4.assemble(
        tiny_vision, tmp_path / "memory" / ("." if qformer else "llm"), template="pocket", device="cpu", qformer=qformer
    )
    inside.blip2.language_projection.load_state_dict(model.blip2.language_projection.state_dict())
    inside.save_pretrained(tmp_path / "inside")
    for source in ("alignment", "memory", "inside"):
        released.export(tmp_path / source, out := tmp_path / f"{source} streamed")
        MiniGPT4.from_pretrained(tmp_path / source, device="cpu").export(tmp_path / f"{source} loaded")
        assert same_weights(MiniGPT4.from_pretrained(out, device="cpu"), model)
        for path in out.rglob("*.json"):
            expected = tmp_path / f"{source} loaded" / path.relative_to(out)
            # Of parts that were loaded, transformers writes down in which dtype.
            found, wanted = (re.sub(r'\n +"dtype": .*', "", file.read_text()) for file in (path, expected))
            assert json.loads(found) == json.loads(wanted), (source, path)
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    tensors = load_file(llm / "model.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, llm / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((tmp_path / "alignment" / "alignment.json").read_text())
    record["origin"]["llm"] = str(llm)
    (tmp_path / "alignment" / "alignment.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="was aligned with other weights"):
        released.export(tmp_path / "alignment", tmp_path / "wrong")


def test_a_full_disk_while_shards_are_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest shard, which comes after others, finds no room."""
    monkeypatch.setattr(streaming, "SMALLEST_SHARD", 2000)
    monkeypatch.setattr(streaming, "LARGEST_SHARD", 2000)
    convert(tmp_path / "made")
    sizes = [path.stat().st_size for path in sorted((tmp_path / "made").glob("model-*.safetensors"))]
    assert sizes.index(max(sizes)) > 2, "some are written before it"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 1, limits[1]))
    try:
        result = run("convert", *options(), "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (result.exit_code, result.output.count("\n")) == (2, 1), result.output
    assert "out: cannot be written" in result.output
    assert "nothing was changed" in result.output
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


def test_command_assembles_parts(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    result = run("assemble", "--vision-qformer", tiny_vision, "--llm", tiny_llm, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert "vicuna_v0" in result.stdout  # the tiny LLM's tokenizer has no chat template
    loaded = MiniGPT4.from_pretrained(tmp_path / "new", device="cpu")
    assert loaded.stage is None
    assert same_weights(loaded, MiniGPT4.assemble(tiny_vision, tiny_llm, template="vicuna_v0", device="cpu"))


def test_what_was_converted_can_be_aligned_further_wherever_it_lies(tmp_path: Path) -> None:
    model = convert(tmp_path / "made")
    (tmp_path / "made").rename(tmp_path / "moved")
    moved = MiniGPT4.from_pretrained(tmp_path / "moved", device="cpu")
    moved.save_pretrained(tmp_path / "alignment")
    assert same_weights(MiniGPT4.from_pretrained(tmp_path / "alignment", device="cpu"), model)


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


# -- memory


PEAK = """
import sys
from minigpt4.model.released import convert, export
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
def make(llm, out, delta=None):
    convert(
        *sys.argv[1:4], llm, out, template="vicuna_v0", llm_delta=delta,
        vision_heads=int(sys.argv[4]), qformer_heads=int(sys.argv[5]),
    )
small, large, out = sys.argv[6:9]
make(small, out + "-first")  # all that is imported and set up once
export(out + "-first", out + "-second")
jobs = [
    lambda: make(large, out + "-alone"),
    lambda: make(large, out + "-summed", large),
    lambda: export(out + "-alone", out + "-again"),
]
for job in jobs:
    open("/proc/self/clear_refs", "w").write("5")  # makes the peak that of now
    before = status("VmRSS")
    job()
    print(status("VmHWM") - before)
"""


def wide_llm(directory: Path, shard_size: str) -> list[int]:
    """A Llama as wide as the fixture's projection, with much in it, in shards; returns their sizes in bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(FILES / "llm", directory)
    (directory / "model.safetensors").unlink()
    config = LlamaConfig.from_pretrained(directory)
    config.intermediate_size, config.num_hidden_layers = 40_000, 16
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size=shard_size)
    return [path.stat().st_size for path in directory.glob("*.safetensors")]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure")
def test_peak_memory_is_that_of_a_shard(tmp_path: Path) -> None:
    """Peak resident memory beyond what the process had before, of a model in shards, in a process of its own."""
    shards = wide_llm(tmp_path / "llm", "48MB")
    assert len(shards) >= 3
    sizes = [SIZES["vision_heads"], SIZES["qformer_heads"]]
    command = [
        sys.executable, "-c", PEAK, *VISION_SIDE.values(), FILES / "pretrained.pth", *sizes,
        FILES / "llm", tmp_path / "llm", tmp_path / "out",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    vision_side = sum(path.stat().st_size for path in VISION_SIDE.values())
    peaks = list(map(int, done.stdout.split()))
    assert len(peaks) == 3
    assert max(peaks) < vision_side + 1.5 * max(shards), (peaks, shards)
    source, name = sources.Checkpoint(tmp_path / "llm"), "model.layers.15.mlp.down_proj.weight"
    for out, factor in (("out-alone", 1), ("out-summed", 2), ("out-again", 1)):
        assert torch.equal(sources.Checkpoint(tmp_path / out)["language_model." + name], source[name] * factor)


# -- deltas


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


# -- any LLM


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FAMILIES: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str, str]] = {
    # family: special tokens, chat template in that family's style, what a first turn starts with, stop
    "Llama": (
        "Llama", {}, ("<|start|>", "<|eot_id|>"),
        "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m.role + ':\\n\\n' + m.content | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant:\\n\\n' }}{% endif %}",
        "<|eot_id|>",
    ),
    "Qwen": ("Qwen2", {"tie_word_embeddings": True}, ("<|im_start|>", "<|im_end|>"), CHATML, "<|im_end|>"),
    "Mistral": (
        "Mistral", {}, (),
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "</s>",
    ),
    "Gemma": (
        "Gemma2", {"head_dim": 16}, ("<start_of_turn>", "<end_of_turn>"),
        "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role)"
        " + '\\n' + m.content + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
        "<end_of_turn>",
    ),
    "Phi": (
        "Phi", {}, (),
        "{% for m in messages %}{{ ('Instruct: ' if m.role == 'user' else 'Output: ') + m.content + '\\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Output: ' }}{% endif %}",
        "Output: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", list(FAMILIES))
def test_any_llm_trains_a_step_and_answers(tiny_vision: Path, tiny_pairs: Path, tmp_path: Path, family: str) -> None:
    """Assembled from files as the command does it, in the LLM's own chat format; the export answers the same."""
    import transformers

    name, settings, special, chat_template, stop = FAMILIES[family]
    llm = tmp_path / "llm"
    vocabulary = tiny_tokenizer(llm, special=("<pad>", "<s>", "</s>", *special))
    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(llm)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=vocabulary, hidden_size=D_LLM, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1 if name != "Phi" else 2, max_position_embeddings=512, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, f"{name}ForCausalLM")(config).save_pretrained(llm)

    released.assemble(tiny_vision, llm, tmp_path / "untrained")
    model = MiniGPT4.from_pretrained(tmp_path / "untrained", dtype="float32", device="cpu")
    assert same_weights(model, MiniGPT4.assemble(tiny_vision, llm, dtype="float32", device="cpu"))
    messages = [{"role": "user", "content": "What is it?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert model.template.prompt([Message("user", "What is it?")]) == rendered.removeprefix("<s>")
    if stop.startswith("<"):
        assert model.template.stop == stop
    recipe = Recipe.parse({
        "stage": 1, "init": str(tmp_path / "untrained"), "data": str(tiny_pairs), "steps": 1, "batch_size": 4,
        "learning_rate": 0.01, "feature_cache": tmp_path / "features", "output": tmp_path / "run", "device": "cpu",
        "dtype": "float32",
    })  # fmt: skip
    trained = MiniGPT4.from_pretrained(train(recipe, progress=False), dtype="float32", device="cpu")
    before, after = (m.blip2.language_projection.weight for m in (model, trained))
    assert not torch.equal(before, after)
    picture = Image.new("RGB", (40, 40), "red")
    [answer] = trained.generate([picture], ["What is it?"], do_sample=False, max_new_tokens=8)
    trained.export(tmp_path / "export")
    exported = MiniGPT4.from_pretrained(tmp_path / "export", dtype="float32", device="cpu")
    assert exported.generate([picture], ["What is it?"], do_sample=False, max_new_tokens=8) == [answer]
    assert exported.template == model.template
    # The chat format that the export's tokenizer says is the LLM's own still.
    again = MiniGPT4.assemble(tiny_vision, tmp_path / "export", dtype="float32", device="cpu")
    talk = [Message("user", "What is it?", images=1), Message("assistant", "A cup."), Message("user", "And that?")]
    assert again.template.prompt(talk) == model.template.prompt(talk)


def test_a_chat_template_that_cannot_be_taken_apart(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    tokenizer = AutoTokenizer.from_pretrained(llm)
    for template, reason in (
        ("{{ raise_exception('tools only') }}", "tools only"),
        ("{{ messages | length }}: {{ messages[-1].content }}", "unpack|otherwise|one like the other|range"),
    ):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(llm)
        with pytest.raises(UserError, match=rf"llm: the chat template .*({reason}).*; give one of vicuna_v0") as caught:
            released.assemble(tiny_vision, llm, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert released.assemble(tiny_vision, llm, tmp_path / "out", template="vicuna_v0").template.name == "vicuna_v0"


# -- without a Q-Former


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


def test_the_variant_is_assembled_from_any_blip2_and_trained(
    tiny_vision: Path, tiny_llm: Path, tiny_pairs: Path, tmp_path: Path
) -> None:
    result = run(
        "assemble", "--vision-qformer", tiny_vision, "--llm", tiny_llm, "--no-qformer", "--out", tmp_path / "m"
    )
    assert result.exit_code == 0, result.output
    model = MiniGPT4.from_pretrained(tmp_path / "m", device="cpu")
    assert model.num_query_tokens == 4  # 16 patches
    recipe = Recipe.parse({
        "stage": 1, "vision_qformer": str(tiny_vision), "llm": str(tiny_llm), "template": "vicuna_v0",
        "qformer": False, "data": str(tiny_pairs), "steps": 2, "batch_size": 4, "learning_rate": 0.01,
        "feature_cache": tmp_path / "features", "output": tmp_path / "run", "device": "cpu", "dtype": "float32",
    })  # fmt: skip
    trained = MiniGPT4.from_pretrained(train(recipe, progress=False), device="cpu")
    assert not trained.has_qformer
    before, after = (m.blip2.language_projection.weight for m in (model, trained))
    assert before.shape == after.shape == (D_LLM, 4 * 32)
    assert not torch.equal(before, after)


def test_patches_that_cannot_be_put_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an image of 30 px has 25, which cannot be divided"):
        convert(tmp_path / "out", qformer=None, without_qformer=True, image_size=30)


# -- bad input


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


def test_llms_that_are_none(tmp_path: Path, tiny_vision: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    llm = tmp_path / "bert"
    vocabulary = tiny_tokenizer(llm)
    config = BertConfig(vocab_size=vocabulary, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=1)  # fmt: skip
    BertForMaskedLM(config).save_pretrained(llm)
    for wrong, found in ((llm, "model_type 'bert', BertForMaskedLM"), (tiny_vision, "a BLIP-2 without")):
        for make in (lambda llm: convert(tmp_path / "out", llm=llm), lambda llm: parts.load_llm(llm, torch.float32)):
            with pytest.raises(UserError, match=f"is no decoder-only LLM with a tokenizer .{found}"):
                make(wrong)


def test_tokenizers_that_lack_something(tmp_path: Path) -> None:
    llm = Path(shutil.copytree(FILES / "llm", tmp_path / "llm"))
    (llm / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="is no decoder-only LLM with a tokenizer") as caught:
        convert(tmp_path / "out", llm=llm)
    assert "\n" not in str(caught.value)
    for number, ends in enumerate(({"eos_token": "[EOS]"}, {})):
        words = Tokenizer(models.BPE({"a": 0, "[EOS]": 1}, []))
        PreTrainedTokenizerFast(tokenizer_object=words, **ends).save_pretrained(tmp_path / str(number))
    with pytest.raises(UserError, match="has no token <s>, which the chat template 'llama2' needs"):
        check_template(parts.load_tokenizer(tmp_path / "0"), TEMPLATES["llama2"], "an LLM")
    with pytest.raises(UserError, match="its tokenizer has no EOS token"):
        parts.load_tokenizer(tmp_path / "1")


def test_llm_files_that_do_not_fit_their_config(tmp_path: Path) -> None:
    llm = Path(shutil.copytree(FILES / "llm", tmp_path / "llm"))
    tensors = load_file(llm / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    for wrong, reason in (
        ({**tensors, name: torch.zeros(2, 2)}, rf"{name} has shape \(2, 2\), its config\.json asks for \(40, 24\)"),
        ({n: t for n, t in tensors.items() if n != name}, rf"{name} \(40, 24\) .* is missing"),
    ):
        save_file(wrong, llm / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=reason):
            convert(tmp_path / "out", llm=llm)
    (llm / "model.safetensors").unlink()
    with pytest.raises(UserError, match="llm: holds no weights"):
        convert(tmp_path / "out", llm=llm)
    assert not (tmp_path / "out").exists()
