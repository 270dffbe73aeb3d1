"""Device and dtype: what is asked for, what is chosen, what is refused."""

import pytest
import torch

from minigpt4.errors import UserError
from minigpt4.model.precision import resolve_device, resolve_dtype


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
