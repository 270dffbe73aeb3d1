"""Real parts of toy size with random weights, made once per session and shared by all tests; real servers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from endpoint import Server
from pages import CHROMIUM
from tiny import COLOURS, D_LLM, D_QFORMER, IMAGE_SIZE, QUERY_TOKENS, picture_file, tiny_tokenizer, write_shard

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach the network


def pytest_sessionstart(session: pytest.Session) -> None:
    """Says before the minutes that the tests take what will be skipped (`pytest_report_header` is silent with -q)."""
    if CHROMIUM is None and not hasattr(session.config, "workerinput"):
        print("no Chromium here: the tests of the pages in a browser will be skipped; apt-get install chromium")


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a vision tower and Q-Former: 32 px pictures in, 4 query tokens of width 24 out."""
    import torch
    from safetensors.torch import save_file
    from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    directory = tmp_path_factory.mktemp("vision")
    vision_config = Blip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        image_size=IMAGE_SIZE, patch_size=8, initializer_range=0.2,
    )  # fmt: skip
    qformer_config = Blip2QFormerConfig(
        hidden_size=D_QFORMER, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        encoder_hidden_size=32, vocab_size=8, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    tensors = {f"vision_model.{name}": t for name, t in Blip2VisionModel(vision_config).state_dict().items()}
    tensors |= {f"qformer.{name}": t for name, t in Blip2QFormerModel(qformer_config).state_dict().items()}
    tensors["query_tokens"] = torch.randn(1, QUERY_TOKENS, D_QFORMER)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, directory / "model.safetensors")
    config = {
        "model_type": "blip-2",
        "num_query_tokens": QUERY_TOKENS,
        "vision_config": vision_config.to_dict(),
        "qformer_config": qformer_config.to_dict(),
    }
    (directory / "config.json").write_text(json.dumps(config))
    BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Llama of two layers and width 32, and its tokenizer, which knows `<image>`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("llm")
    vocab_size = tiny_tokenizer(directory)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=D_LLM, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1's data: 2 img2dataset shards of 20 pairs, captions of different lengths."""
    directory = tmp_path_factory.mktemp("pairs")
    for shard in range(2):
        members = {}
        for i in range(20 * shard, 20 * shard + 20):
            caption = f"a {COLOURS[i % 5]} picture" + " with a dot" * (i % 4)
            members |= {f"{i:09d}.png": picture_file(i), f"{i:09d}.json": json.dumps({"caption": caption}).encode()}
        write_shard(directory / f"{shard:05d}.tar", members)
    return directory


@pytest.fixture(scope="session")
def tiny_descriptions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 2's data: 12 descriptions in cc_sbu_align's layout; the pictures are the first of `tiny_pairs`."""
    directory = tmp_path_factory.mktemp("descriptions")
    (directory / "image").mkdir()
    annotations = []
    for i in range(12):
        (directory / "image" / f"{i}.png").write_bytes(picture_file(i))
        annotations.append(
            {"image_id": str(i), "caption": f"The image is {COLOURS[i % 5]}. " + "It has a dot. " * (i % 3)}
        )
    (directory / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return directory


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve("status:429,1", "ok")`: a server that meets its requests with these behaviours in turn."""
    running = []

    def start(*behaviours: str) -> Server:
        log = tmp_path / f"requests{len(running)}.jsonl"
        command = [sys.executable, str(Path(__file__).with_name("endpoint_server.py")), str(log), *behaviours]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return Server(process.stdout.readline().strip(), log)

    yield start
    for process in running:
        process.kill()
        process.communicate()
