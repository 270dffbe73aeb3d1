"""Frozen layers in 8 bits: what they compute, forwards and backwards, and where they can be had."""

import pytest
import torch

from minigpt4.errors import UserError
from minigpt4.model.quantization import (
    FORMATS,
    EightBitLinear,
    check_float8,
    check_load_in,
    quantize,
    quantize_linears,
)
from minigpt4.model.vision import load_vision_side
from pocket.world.draw import draw
from pocket.world.world import SEEDS, sample


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.detach().float() - expected.detach()).norm() / expected.detach().norm())


#: The error of rounding numbers that are normally distributed, and of a product of two such, per format.
ROUNDING = {"fp8": 0.03, "int8": 0.015}
both = pytest.mark.parametrize("form", list(FORMATS))


@both
def test_rounding_keeps_rows_of_any_size(form: str) -> None:
    """Rows from 1e-6 to 1e4 keep their bits; zeros stay zeros, and what is no number makes its row's product none."""
    torch.manual_seed(0)
    x = torch.randn(6, 256) * torch.tensor([1e-6, 1e-3, 1.0, 1e3, 1e4, 0.0])[:, None]
    for dtype in (torch.float32, torch.bfloat16):
        rounded, scale = quantize(x.to(dtype), FORMATS[form])
        assert (rounded.dtype, scale.dtype) == (FORMATS[form], torch.float32)
        assert all(relative(rounded[i].float() * scale[i], x[i]) < ROUNDING[form] for i in range(5))
        assert not rounded[5].float().any()
    for wrong in (float("nan"), float("inf")):
        x[0, 3] = wrong
        layer = EightBitLinear(torch.nn.Linear(256, 16), FORMATS[form])
        assert layer(x).isfinite().all(-1).tolist() == [False, *[True] * 5]


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_and_its_gradient(dtype: torch.dtype, form: str) -> None:
    """Against the same weights dequantised: what is left is the rounding of what comes in."""
    torch.manual_seed(0)
    plain = torch.nn.Linear(192, 320)
    plain.weight.data *= torch.logspace(-3, 3, 320)[:, None]  # scales of outputs matter backwards
    layer = EightBitLinear(plain, FORMATS[form])
    layer.bias = torch.nn.Parameter(plain.bias.data.to(dtype), requires_grad=False)
    assert layer.weight.element_size() == 1
    assert relative(layer.weight.float() * layer.scale, plain.weight) < ROUNDING[form]
    plain.weight.data = layer.weight.float() * layer.scale
    x = torch.randn(2, 7, 192).to(dtype).requires_grad_()
    y = layer(x)
    assert y.dtype is dtype
    assert relative(y, plain(x.float())) < ROUNDING[form] + 0.005
    seed = torch.randn_like(y) * torch.logspace(3, -3, 320).to(dtype)
    (found,) = torch.autograd.grad(y, x, seed)
    (expected,) = torch.autograd.grad(plain(x.float()), x, seed.float())
    assert found.dtype is dtype
    assert relative(found, expected.float()) < ROUNDING[form] + 0.005
    assert layer.weight.grad is None


def test_the_head_and_layers_that_hardware_does_not_take_stay() -> None:
    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.Linear(48, 40), torch.nn.Linear(40, 32))
            self.head = torch.nn.Linear(32, 64)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    tiny = Tiny()
    quantize_linears("fp8", tiny)
    kinds = [type(layer).__name__ for layer in (*tiny.body, tiny.head)]
    assert kinds == ["EightBitLinear", "Linear", "Linear", "Linear"]


@both
def test_a_vision_tower_in_8_bits_gives_nearly_the_same_features(form: str) -> None:
    """The pocket's tower, on pictures of the world: within the rounding, and nearest to its own picture's features."""
    pictures = [draw(sample(SEEDS["evaluation"][0] + 910_000 + i), 96) for i in range(6)]
    exact = load_vision_side("pocket", device="cpu")
    expected = exact.encode_images(pictures)
    quantize_linears(form, exact.blip2.vision_model)
    layers = [module for module in exact.blip2.vision_model.modules() if isinstance(module, torch.nn.Linear)]
    assert {type(layer) for layer in layers} == {EightBitLinear}
    found = exact.encode_images(pictures)
    assert 0.001 < relative(found, expected) < 0.15
    nearest = torch.cdist(found.flatten(1), expected.flatten(1)).argmin(1)
    assert nearest.tolist() == list(range(6))


@both
def test_compiled_it_computes_the_same(form: str) -> None:
    """Two layers: with what one takes for a variable, the second cannot be compiled."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(*(EightBitLinear(torch.nn.Linear(64, 64, bias=False), FORMATS[form]) for _ in range(2)))
    x = torch.randn(5, 64, requires_grad=True)
    results = [layer(x)]
    results.append(torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)(x))
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in results]
    assert torch.equal(*results)
    assert torch.equal(*gradients)


def test_devices_without_8_bits() -> None:
    check_load_in("fp8", torch.device("cpu"))
    for capability in ((8, 9), (9, 0), (12, 0)):
        check_float8(capability)
    with pytest.raises(UserError, match=r"of compute capability 8\.9 or higher .*, and this one has 8\.0; use"):
        check_float8((8, 0))
    with pytest.raises(UserError, match="works on cuda and cpu, not on mps; use load_in='8bit'"):
        check_load_in("fp8", torch.device("mps"))
    with pytest.raises(UserError, match=r"vision_load_in='fp8' needs .* this one has 8\.0; leave it out"):
        check_float8((8, 0), "vision_load_in")
    check_load_in("int8", torch.device("cpu"))
    with pytest.raises(UserError, match="load_in='int8' works on cpu, not on cuda; use load_in='8bit'"):
        check_load_in("int8", torch.device("cuda"))
    with pytest.raises(UserError, match="vision_load_in='int8' works on cpu, not on mps; leave it out"):
        check_load_in("int8", torch.device("mps"), "vision_load_in")
