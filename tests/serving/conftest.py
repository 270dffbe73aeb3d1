"""Tests that need vLLM are not collected where it is not installed: `make test-vllm` runs them where it is."""

import importlib.util

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["*.py"]
