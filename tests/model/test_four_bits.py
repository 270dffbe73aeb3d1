"""Layers in 4 bits on a CPU: what they hold and compute, forwards and backwards, on every kind of processor."""

import os
import subprocess
import sys

import pytest
import torch

from minigpt4.model import four_bits
from minigpt4.model.four_bits import FourBitLinear, pack, quantize, unpack, unpacked


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().float() - expected.detach()).norm() / expected.detach().norm())


def arranged(plain: torch.nn.Linear) -> FourBitLinear:
    layer = FourBitLinear(plain)
    layer.arrange()
    return layer


def test_rounding_is_better_than_that_to_the_range() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(4096, 256, bias=False)
    torch.nn.init.normal_(plain.weight)
    groups = plain.weight.unflatten(1, (-1, 32))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 15
    to_range = (((groups - low) / scale).round() * scale + low).flatten(1)
    error = relative(unpacked(FourBitLinear(plain)), plain.weight)
    assert error < 0.95 * relative(to_range, plain.weight)
    assert error < 0.074


def test_groups_of_any_size_and_of_one_number() -> None:
    plain = torch.nn.Linear(64, 64, bias=False)
    plain.weight.data = torch.randn(64, 64) * torch.logspace(-6, 4, 64)[:, None]
    plain.weight.data[3], plain.weight.data[5] = 0.5, 0
    layer = FourBitLinear(plain)
    assert layer.scale.isfinite().all()
    found = unpacked(layer)
    assert torch.equal(found[[3, 5]], plain.weight[[3, 5]])
    assert all(relative(found[i], plain.weight[i]) < 0.12 for i in range(64) if i not in (3, 5))


@pytest.mark.parametrize("block", [64, 32])
def test_packing_is_undone(block: int) -> None:
    codes = torch.randint(16, (128, 96), dtype=torch.uint8)
    packed = pack(codes, block)
    assert packed.shape == (128, 48)
    assert torch.equal(unpack(packed, block), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, four_bits.ROWS + 1])
def test_a_layer_and_its_gradient(rows: int, dtype: torch.dtype) -> None:
    """Few rows and many, with outputs that fill no block: against the same weights in float32."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(192, 330)
    layer = arranged(plain)
    layer.bias = torch.nn.Parameter(plain.bias.data.to(dtype), requires_grad=False)
    plain.weight.data = unpacked(layer)
    x = torch.randn(1, rows, 192).to(dtype).requires_grad_()
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


def test_a_layer_takes_five_bits_for_each_weight() -> None:
    packed, scale = quantize(torch.randn(128, 256, dtype=torch.bfloat16))
    assert (packed.dtype, scale.dtype) == (torch.uint8, torch.bfloat16)
    assert packed.nbytes + scale.nbytes == 128 * 256 * 5 // 8
