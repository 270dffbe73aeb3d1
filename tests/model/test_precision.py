"""Device, dtype and quantisation: what is asked for, what is chosen, what is refused, what comes out."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.errors import UserError
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.four_bits import FourBitLinear, unpacked
from minigpt4.model.lora import set_trainable
from minigpt4.model.precision import Placement, resolve_device, resolve_dtype
from minigpt4.model.quantization import check_load_in
from tiny import tiny_tokenizer


def test_float32_on_the_cpu_and_bfloat16_on_cuda() -> None:
    assert resolve_dtype(None, torch.device("cpu")) is torch.float32
    assert resolve_dtype(None, torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("float16", torch.float16)])
def test_dtypes_go_by_name_or_as_they_are(name: str, dtype: torch.dtype) -> None:
    assert resolve_dtype(name, torch.device("cpu")) is dtype
    assert resolve_dtype(dtype, torch.device("cuda")) is dtype


def test_unknown_dtype_and_device() -> None:
    with pytest.raises(UserError, match="'int3' is not known; use one of float32"):
        resolve_dtype("int3", torch.device("cpu"))
    with pytest.raises(UserError, match="'gpu' is not known"):
        resolve_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_on_a_machine_without() -> None:
    assert resolve_device(None) == torch.device("cpu")
    with pytest.raises(UserError, match="cuda:1 is not available"):
        resolve_device("cuda:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"load_in": "3bit"}, "load_in '3bit' is not known; use 8bit, 4bit, fp8, int8, or leave it out"),
        ({"load_in": "4bit", "device": "auto"}, "needs one device; give device='cuda' or 'cpu'"),
        ({"max_memory": {"cpu": "1GB"}}, "max_memory is for device='auto'"),
    ],
)
def test_placements_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Placement.resolve(**arguments)


def test_fewer_bits_on_the_devices_that_bitsandbytes_serves() -> None:
    for device in ("cpu", "cuda", "mps"):
        assert device in bitsandbytes.supported_torch_devices
        check_load_in("4bit", torch.device(device))
    with pytest.raises(UserError, match="works on cuda and cpu and mps, not on xpu"):
        check_load_in("4bit", torch.device("xpu"))


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    """In a process whose Python finds no bitsandbytes, as in an installation without the extra."""
    code = (
        "import importlib.util as u, sys; find = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'bitsandbytes' else find(name, *rest)\n"
        "sys.argv = ['minigpt4', 'chat', 'pocket', '--load-in', '8bit']\n"
        "from minigpt4.cli import main; main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 2
    assert run.stderr == (
        "minigpt4: load_in='8bit' needs bitsandbytes; install it with: pip install 'minigpt4-vlm[quantized]'\n"
    )


#: An alignment, an export, and an alignment whose parts lie inside an export.
FORMS = ("alignment", "export", "inside")
PICTURE = Image.radial_gradient("L").resize((50, 40)).convert("RGB")


def logits(model: MiniGPT4) -> torch.Tensor:
    ids = model.tokenizer("What is it?", return_tensors="pt")["input_ids"]
    prompt = torch.cat([torch.full((1, model.num_query_tokens), model.image_token_id), ids], dim=1)
    with torch.no_grad():
        return model.logits(model.hidden_states(prompt, model.encode_images([PICTURE])))[..., : model.image_token_id]


def make_llm(directory: Path, width: int) -> Path:
    """A Llama of two layers, `width` wide."""
    vocabulary = tiny_tokenizer(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model(tiny_vision: Path, tiny_llm: Path) -> MiniGPT4:
    return MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")


@pytest.fixture(scope="module")
def saved(model: MiniGPT4, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save(model, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def wide(tiny_vision: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model whose LLM is as wide as a block of 4-bit weights is long."""
    directory = tmp_path_factory.mktemp("wide")
    llm = make_llm(directory / "llm", width=64)
    return save(MiniGPT4.assemble(tiny_vision, llm, template="pocket", device="cpu"), directory)


def save(model: MiniGPT4, directory: Path) -> dict[str, Path]:
    model.save_pretrained(directory / "alignment")
    model.export(directory / "export")
    again = MiniGPT4.assemble(directory / "export", directory / "export", template="pocket", device="cpu")
    again.save_pretrained(directory / "inside")
    return {form: directory / form for form in FORMS}


@pytest.mark.parametrize(
    ("load_in", "kind", "weights", "outputs"),
    [
        ("8bit", "Linear8bitLt", 0.01, 0.03),
        ("4bit", "FourBitLinear", 0.1, 0.02),
        ("fp8", "EightBitLinear", 0.03, 0.06),
        ("int8", "EightBitLinear", 0.01, 0.03),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_the_llm_in_fewer_bits(
    wide: dict[str, Path], form: str, load_in: str, kind: str, weights: float, outputs: float, tmp_path: Path
) -> None:
    """Which layers are held so, how far their weights are from the plain ones, and that they compute with those."""
    quantised = MiniGPT4.from_pretrained(wide[form], device="cpu", dtype="float32", load_in=load_in)
    plain = MiniGPT4.from_pretrained(wide[form], device="cpu")
    assert quantised.llm_fingerprint == plain.llm_fingerprint
    for part in (quantised.blip2.vision_model, quantised.blip2.qformer, quantised.blip2.language_projection):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    count = 0
    for name, layer in quantised.blip2.language_model.named_modules():
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        assert type(layer).__name__ == kind
        original = plain.blip2.language_model.get_submodule(name).weight
        read = dequantised(layer)
        assert 0 < (read - original).norm() / original.norm() < weights
        original.copy_(read)
        count += 1
    assert count == 2 * 7
    expected = logits(plain)
    assert (logits(quantised) - expected).norm() / expected.norm() < outputs
    with pytest.raises(UserError, match=f"load_in='{load_in}' cannot be exported"):
        quantised.export(tmp_path / "export")


def dequantised(layer: Any) -> torch.Tensor:
    if type(layer).__name__ == "EightBitLinear":
        return layer.weight.float() * layer.scale
    if isinstance(layer, FourBitLinear):
        return unpacked(layer)
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data * scale[:, None] / 127


@pytest.mark.parametrize("load_in", ["8bit", "4bit", "fp8", "int8"])
def test_gradients_pass_through_a_quantised_llm(tiny_vision: Path, tmp_path: Path, load_in: str) -> None:
    """After it has talked too."""
    llm = make_llm(tmp_path / "llm", width=64)
    model = MiniGPT4.assemble(tiny_vision, llm, template="pocket", device="cpu", dtype="float32", load_in=load_in)
    plain = MiniGPT4.assemble(tiny_vision, llm, template="pocket", device="cpu")
    gradients = []
    for each in (model, plain):
        each.generate(PICTURE, "What is it?", max_new_tokens=2)
        assert set_trainable(each, 1) == ["blip2.language_projection.weight", "blip2.language_projection.bias"]
        each.train()
        ids = torch.tensor([[each.image_token_id] * each.num_query_tokens + [5, 6, 7]])
        hidden = each.hidden_states(ids, each.encode_images([PICTURE]))
        torch.nn.functional.cross_entropy(each.logits(hidden)[0], ids[0].clamp(max=7)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
        assert all(p.grad is None for p in each.blip2.language_model.parameters())
    similarity = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert similarity > {"8bit": 0.99, "4bit": 0.7, "fp8": 0.98, "int8": 0.99}[load_in]


def test_bfloat16_and_float16(model: MiniGPT4, saved: dict[str, Path]) -> None:
    for dtype in ("bf16", "fp16"):
        half = MiniGPT4.from_pretrained(saved["export"], device="cpu", dtype=dtype)
        assert half.dtype is resolve_dtype(dtype, torch.device("cpu"))
        plain, found = logits(model), logits(half).float()
        assert 0 < (found - plain).norm() / plain.norm() < 0.05
        assert half.generate(PICTURE, "What is it?", max_new_tokens=3, seed=0)


@pytest.mark.parametrize("form", FORMS)
def test_what_finds_no_place_in_memory_is_read_from_the_disk(
    model: MiniGPT4, saved: dict[str, Path], form: str, tmp_path: Path
) -> None:
    spread = MiniGPT4.from_pretrained(saved[form], device="auto", max_memory={"cpu": "150KB"})
    assert {parameter.device.type for parameter in spread.blip2.language_model.parameters()} == {"cpu", "meta"}
    settings = {"do_sample": False, "max_new_tokens": 12}
    assert spread.generate(PICTURE, "What is it?", **settings) == model.generate(PICTURE, "What is it?", **settings)
    chat, plain = spread.start_chat(), model.start_chat()
    for question in ("What?", "Where?"):
        assert chat.ask(question, image=PICTURE, **settings) == plain.ask(question, image=PICTURE, **settings)
    with pytest.raises(UserError, match="device='auto' cannot be exported"):
        spread.export(tmp_path / "export")


def test_auto_without_need_is_the_plain_model(model: MiniGPT4, saved: dict[str, Path]) -> None:
    auto = MiniGPT4.from_pretrained(saved["alignment"], device="auto")
    assert {parameter.device.type for parameter in auto.parameters()} == {auto.device.type}
    if auto.device.type == "cpu":
        assert torch.equal(logits(auto), logits(model))
