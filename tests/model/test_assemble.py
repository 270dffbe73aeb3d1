"""Exports made from files: the same as from memory, in the memory of a shard, of any family of LLMs."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from minigpt4.training.run import train
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from converting import FILES, SIZES, VISION_SIDE, convert, options, run, same_weights
from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model import convert as from_files
from minigpt4.model import parts, sources
from minigpt4.prompts.encode import CUT, check_template
from minigpt4.prompts.templates import TEMPLATES, Message
from minigpt4.training.loss import head_loss
from minigpt4.training.recipe import Recipe
from tiny import D_LLM, tiny_tokenizer


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
        from_files.export(tmp_path / source, out := tmp_path / f"{source} streamed")
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
        from_files.export(tmp_path / "alignment", tmp_path / "wrong")


def test_a_full_disk_while_shards_are_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest shard, which comes after others, finds no room."""
    monkeypatch.setattr(from_files, "SMALLEST_SHARD", 2000)
    monkeypatch.setattr(from_files.exporting, "SHARD_SIZE", 2000)
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


PEAK = """
import sys
from minigpt4.model.convert import convert, export
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

    from_files.assemble(tiny_vision, llm, tmp_path / "untrained")
    model = MiniGPT4.from_pretrained(tmp_path / "untrained", dtype="float32", device="cpu")
    assert same_weights(model, MiniGPT4.assemble(tiny_vision, llm, dtype="float32", device="cpu"))
    messages = [{"role": "user", "content": "What is it?"}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert model.template.prompt([Message("user", "What is it?")]) == rendered.removeprefix("<s>")
    told = [{"role": "system", "content": "Be brief."}, *messages]
    with_system = tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    said = [Message("system", "Be brief."), Message("user", "What is it?")]
    assert model.template.prompt(said) == with_system.removeprefix("<s>")
    chat = model.start_chat()
    chat.set_system("Be brief.")
    assert chat.template.prompt(said[1:]).replace(CUT, "") == with_system.removeprefix("<s>")
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
    rendered = exported.tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=True)
    assert rendered.replace(CUT, "").removeprefix("<s>") == with_system.removeprefix("<s>")
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
            from_files.assemble(tiny_vision, llm, tmp_path / "out")
        assert "\n" not in str(caught.value)
    assert from_files.assemble(tiny_vision, llm, tmp_path / "out", template="vicuna_v0").name == "vicuna_v0"


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


def test_llms_that_are_none(tmp_path: Path, tiny_vision: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    llm = tmp_path / "bert"
    vocabulary = tiny_tokenizer(llm)
    config = BertConfig(vocab_size=vocabulary, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                        num_attention_heads=1)  # fmt: skip
    BertForMaskedLM(config).save_pretrained(llm)
    for wrong, found in ((llm, r"model_type 'bert', \['BertForMaskedLM'\]"), (tiny_vision, "a BLIP-2 without")):
        for make in (lambda llm: convert(tmp_path / "out", llm=llm), lambda llm: parts.load_llm(llm, torch.float32)):
            with pytest.raises(UserError, match=f"is no decoder-only LLM with a tokenizer .{found}"):
                make(wrong)


def test_an_llm_with_an_encoder_of_its_own_is_refused(tiny_llm: Path, tmp_path: Path) -> None:
    """As the larger Gemma 3 are published: the sizes of the LLM are not at the top of their config.json."""
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    config = {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]}
    (llm / "config.json").write_text(json.dumps(config | {"text_config": {"hidden_size": D_LLM}}))
    for make in (lambda: convert(tmp_path / "out", llm=llm), lambda: parts.load_llm(llm, torch.float32)):
        with pytest.raises(UserError, match=r"llm: is no decoder-only LLM .*model_type 'gemma3', \['Gemma3ForCond"):
            make()


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


SIZES_OF_ALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "moe_intermediate_size": 32, "max_position_embeddings": 512, "head_dim": 16,
    "num_experts": 4, "num_experts_per_tok": 2, "num_local_experts": 4,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gpt_neox", "olmoe", "phimoe", "apertus", "granite"])
def test_families_whose_tensors_are_renamed_or_joined(tiny_vision: Path, tmp_path: Path, kind: str) -> None:
    """By the command as in memory; and the logits of training are the LLM's own."""
    words = tiny_tokenizer(tmp_path / "llm", special=("<pad>", "<s>", "</s>"))
    blank = AutoConfig.for_model(kind)
    sizes = {key: value for key, value in SIZES_OF_ALL.items() if hasattr(blank, key)}
    more = {"logits_scaling": 4.0} if kind == "granite" else {}
    config = AutoConfig.for_model(
        kind, vocab_size=words, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes, **more
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    model = MiniGPT4.assemble(tiny_vision, tmp_path / "llm", device="cpu", dtype="float32")
    from_files.assemble(tiny_vision, tmp_path / "llm", tmp_path / "export")
    again = MiniGPT4.from_pretrained(tmp_path / "export", device="cpu", dtype="float32")
    question = ([Image.new("RGB", (40, 40), "red")], ["What is it?"])
    settings = {"do_sample": False, "max_new_tokens": 5}
    assert again.generate(*question, **settings) == model.generate(*question, **settings)
    ids = torch.tensor([[5, 6, 7, 8]])
    logits = model.blip2.language_model(inputs_embeds=model.embed(ids, None)).logits
    torch.testing.assert_close(model.logits(model.hidden_states(ids, None)), logits)
    hidden = model.hidden_states(ids, None)[0].requires_grad_()
    loss = head_loss(model, hidden, ids[0])
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[0], ids[0]))
    (gradient,) = torch.autograd.grad(loss, hidden)
    (expected,) = torch.autograd.grad(torch.nn.functional.cross_entropy(model.logits(hidden), ids[0]), hidden)
    torch.testing.assert_close(gradient, expected)


def test_what_cannot_be_used_is_refused_at_assembly(tiny_vision: Path, tmp_path: Path) -> None:
    words = tiny_tokenizer(tmp_path / "llm", special=("<pad>", "<s>", "</s>"))
    sizes = {
        "hidden_size": 32,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 8,
    }
    config = AutoConfig.for_model("opt", vocab_size=words, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    for assemble in (MiniGPT4.assemble, partial(from_files.assemble, out=tmp_path / "out")):
        with pytest.raises(UserError, match="word embeddings as wide as its layers"):
            assemble(tiny_vision, tmp_path / "llm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "more"), [("mamba", {}), ("lfm2", {"layer_types": ["conv", "full_attention"]})])
def test_llms_with_a_recurrent_state_are_refused_at_assembly(
    tiny_vision: Path, tmp_path: Path, kind: str, more: dict[str, Any]
) -> None:
    words = tiny_tokenizer(tmp_path / "llm", special=("<pad>", "<s>", "</s>"))
    blank = AutoConfig.for_model(kind)
    sizes = {key: value for key, value in SIZES_OF_ALL.items() if hasattr(blank, key)}
    config = AutoConfig.for_model(
        kind, vocab_size=words, bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes, **more
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llm")
    for assemble in (MiniGPT4.assemble, partial(from_files.assemble, out=tmp_path / "out")):
        with pytest.raises(UserError, match=f"'{kind}' LLM cannot be used: it keeps a state in place of keys"):
            assemble(tiny_vision, tmp_path / "llm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["convert", "assemble", "export", "export in 4 bits"])
def test_a_quantized_llm_is_not_written_again(tiny_vision: Path, tiny_llm: Path, tmp_path: Path, command: str) -> None:
    """As many lie on the hub: their config.json says how to read the weights, and an export would hold others."""
    llm, alignment, out = Path(shutil.copytree(tiny_llm, tmp_path / "llm")), tmp_path / "alignment", tmp_path / "out"
    MiniGPT4.assemble(tiny_vision, llm, template="pocket", device="cpu").save_pretrained(alignment)
    config = json.loads((llm / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (llm / "config.json").write_text(json.dumps(config))
    write = {
        "convert": lambda: convert(out, llm=llm),
        "assemble": lambda: from_files.assemble(tiny_vision, llm, out, template="pocket"),
        "export": lambda: from_files.export(alignment, out),
        "export in 4 bits": lambda: from_files.export(alignment, out, quantize="4bit"),
    }[command]
    with pytest.raises(UserError, match="llm: its LLM is quantized and cannot be written again; give its original"):
        write()
    assert not out.exists()


@pytest.mark.parametrize("way", ["from files", "from memory"])
def test_parts_keep_sampling_settings_that_need_do_sample(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, way: str
) -> None:
    """Vicuna's generation_config.json has a temperature without do_sample, which transformers reads but won't write."""
    llm = Path(shutil.copytree(tiny_llm, tmp_path / "llm"))
    sampling = {"temperature": 0.9, "top_p": 0.6}
    settings = json.loads((llm / "generation_config.json").read_text())
    assert "do_sample" not in settings
    (llm / "generation_config.json").write_text(json.dumps(settings | sampling))
    if way == "from files":
        from_files.assemble(tiny_vision, llm, tmp_path / "export", template="pocket", qformer=False)
    else:
        model = MiniGPT4.assemble(tiny_vision, llm, template="pocket", device="cpu", qformer=False)
        model.export(tmp_path / "export")
    written = json.loads((tmp_path / "export" / "llm" / "generation_config.json").read_text())
    assert {key: written.get(key) for key in (*sampling, "do_sample")} == {**sampling, "do_sample": None}
    assert written["suppress_tokens"] == [3]  # `<image>`
    assert not MiniGPT4.from_pretrained(tmp_path / "export", device="cpu").has_qformer


@pytest.mark.parametrize("qformer", [True, False])
def test_an_alignment_does_not_replace_the_frozen_parts_that_it_needs(
    tiny_vision: Path, tiny_llm: Path, tmp_path: Path, qformer: bool
) -> None:
    """Neither if the export is the vision side itself, nor if that lies in it, in `vision`."""
    place = tmp_path / "export"
    from_files.assemble(tiny_vision, tiny_llm, place, template="pocket", qformer=qformer)
    model = MiniGPT4.from_pretrained(place, device="cpu")
    with pytest.raises(UserError, match="export: holds this model's own frozen parts; give another directory"):
        model.save_pretrained(place, overwrite=True)
    assert same_weights(MiniGPT4.from_pretrained(place, device="cpu"), model)
