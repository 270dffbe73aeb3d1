"""The plugin where vLLM is not installed; what it does where it is, is tested in `tests/serving`."""

import importlib.metadata
import importlib.util

import pytest

from minigpt4.errors import UserError
from minigpt4.vllm.plugin import register


def test_vllm_finds_the_plugin() -> None:
    [entry] = [e for e in importlib.metadata.entry_points(group="vllm.general_plugins") if e.name == "minigpt4"]
    assert entry.load() is register


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_one_line_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"vLLM is not installed .* pip install") as caught:
        register()
    assert "\n" not in str(caught.value)
