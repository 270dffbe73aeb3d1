"""The plan: parameters as they are, and memory as a real process measures it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, MambaConfig

from minigpt4 import MiniGPT4, UserError
from minigpt4.memory import paper_config, plan, rows_at_a_time
from tiny import tiny_tokenizer, write_shard


@pytest.mark.parametrize(("name", "projection"), [("vicuna-7b", 3_149_824), ("vicuna-13b", 3_937_280)])
def test_the_papers_projections(name: str, projection: int) -> None:
    found = {part.name: part for part in plan(name).parts}
    assert found["projection"].parameters == projection
    assert [part.trained for part in found.values()] == [False, False, True, False]
    assert found["vision tower"].parameters == pytest.approx(0.986e9, rel=1e-2)
    assert found["LLM"].parameters == pytest.approx({"vicuna-7b": 6.738e9, "vicuna-13b": 13.016e9}[name], rel=1e-3)


def test_parameters_are_those_of_the_loaded_model(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    model = MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu")
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "export")
    expected = sum(parameter.numel() for parameter in model.parameters())
    for form in ("alignment", "export"):
        found = plan(tmp_path / form, train=True, batch=2)
        assert sum(part.parameters for part in found.parts) == expected
        assert found.memory["weights"]["float32"] == 4 * expected
        assert list(found.memory) == ["weights", "chat", "batch of 2", "training on 2"]
        assert found.memory["training on 2"]["float16"] >= found.memory["training on 2"]["bfloat16"]
        assert f"{model.blip2.language_projection.weight.numel() + 32:,}" in found.table()


def test_a_model_without_a_qformer_on_the_llm_of_an_export(tiny_vision: Path, tiny_llm: Path, tmp_path: Path) -> None:
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", device="cpu").export(tmp_path / "whole")
    model = MiniGPT4.assemble(tiny_vision, tmp_path / "whole", qformer=False, template="pocket", device="cpu")
    model.save_pretrained(tmp_path / "alignment")
    model.export(tmp_path / "export")
    expected = sum(parameter.numel() for parameter in model.parameters())
    for form in ("alignment", "export"):
        found = plan(tmp_path / form, train=True, batch=2)
        assert sum(part.parameters for part in found.parts) == expected
        assert {part.name: part for part in found.parts}["Q-Former and queries"].parameters == 0


def test_more_takes_more() -> None:
    found = plan("vicuna-7b", batch=16, train=True).memory
    for precision in ("float32", "bfloat16", "4bit"):
        jobs = [found[job][precision] for job in ("weights", "chat", "batch of 16", "training on 16")]
        assert jobs == sorted(jobs)
    weights = found["weights"]
    assert (
        weights["4bit"]
        < weights["8bit"]
        == weights["fp8"]
        == weights["int8"]
        < 0.6 * weights["bfloat16"]
        < weights["float32"]
    )
    assert weights["4bit"] < 7e9, "with which it chats in 8 GB"


def test_rows_are_computed_at_once_unless_they_keep_more_than_the_weights_take() -> None:
    small = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9)
    assert rows_at_a_time(small, 8, 60, 2, 135_000_000) == 8
    assert rows_at_a_time(small, 32, 60, 2, 135_000_000) == 11, "1.06 GB in three parts"
    assert rows_at_a_time(small, 32, 2000, 2, 135_000_000) == 1
    large = paper_config().text_config
    assert rows_at_a_time(large, 32, 60, 2, 6_738_000_000) == 32
    mamba = MambaConfig(hidden_size=768, num_hidden_layers=24)  # has no heads of attention
    assert rows_at_a_time(mamba, 8, 60, 2, 130_000_000) == 8
    assert rows_at_a_time(mamba, 32, 2000, 2, 130_000_000) < 8


def test_no_model(tiny_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a 'llama' model; give an alignment, an export, or vicuna-7b or vicuna-13b"):
        plan(tiny_llm)
    with pytest.raises(UserError, match="no such directory"):
        plan(tmp_path / "nowhere")


#: Does one of the jobs that the plan speaks of; prints the process's peak in bytes.
JOB = """
import sys
job, dtype, directory, data = sys.argv[1:]
if job == "chat":
    from PIL import Image
    from minigpt4 import MiniGPT4
    model = MiniGPT4.from_pretrained(directory, device="cpu", dtype=dtype)
    model.generate(Image.radial_gradient("L").convert("RGB"), "word " * 12, do_sample=False, max_new_tokens=24)
else:
    from minigpt4.training.recipe import Recipe
    from minigpt4.training.train import train
    settings = {"stage": 1, "init": directory, "data": data, "device": "cpu", "dtype": dtype}
    settings |= {"feature_cache": f"{data}/features", "output": f"{data}/{dtype}"}
    settings |= {"steps": 2, "warmup_steps": 1, "batch_size": 8, "max_text_tokens": 160, "learning_rate": 0.001}
    train(Recipe.parse(settings), progress=False)
# Not getrusage's, which begins at that of the process which started this one.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(int(peak.split()[1]) * 1024)
"""


@pytest.fixture(scope="module")
def middling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 90 million parameters with random weights, as an export in float32."""
    from safetensors.torch import save_file
    from transformers import (
        Blip2QFormerConfig,
        Blip2QFormerModel,
        Blip2VisionConfig,
        Blip2VisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )  # fmt: skip
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    directory = tmp_path_factory.mktemp("middling")
    vision, llm = directory / "vision", directory / "llm"
    vision.mkdir()
    eyes = Blip2VisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
    )
    queries = Blip2QFormerConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, encoder_hidden_size=256,
        vocab_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    tensors = {f"vision_model.{name}": t for name, t in Blip2VisionModel(eyes).state_dict().items()}
    tensors |= {f"qformer.{name}": t for name, t in Blip2QFormerModel(queries).state_dict().items()}
    tensors["query_tokens"] = torch.randn(1, 32, 256)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, vision / "model.safetensors")
    config = {
        "model_type": "blip-2", "num_query_tokens": 32, "vision_config": eyes.to_dict(),
        "qformer_config": queries.to_dict(),
    }  # fmt: skip
    (vision / "config.json").write_text(json.dumps(config))
    BlipImageProcessorPil(size={"height": 112, "width": 112}).save_pretrained(vision)
    tiny_tokenizer(llm)
    text = LlamaConfig(
        vocab_size=4000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16,
        max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(llm)
    MiniGPT4.assemble(vision, llm, template="pocket", device="cpu").save_pretrained(directory / "alignment")
    return directory / "alignment"


@pytest.fixture(scope="module")
def planned(middling: Path) -> dict[str, dict[str, int]]:
    """The plan's memory, made in a process of its own as the command does."""
    made = f"plan({str(middling)!r}, train=True).memory"
    code = f"import json; from minigpt4.memory import plan; print(json.dumps({made}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=900)
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def long_captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1's data: eight pairs, each caption longer than what is trained of it."""
    directory = tmp_path_factory.mktemp("captions")
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(buffer, "PNG")
    caption = json.dumps({"caption": " ".join(f"word{k}" for k in range(150))}).encode()
    members = {}
    for i in range(8):
        members |= {f"{i}.png": buffer.getvalue(), f"{i}.json": caption}
    write_shard(directory / "00000.tar", members)
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("job", ["chat", "training on 8"])
def test_the_estimate_is_within_15_per_cent_of_what_a_process_takes(
    middling: Path, long_captions: Path, planned: dict[str, dict[str, int]], job: str, dtype: str
) -> None:
    if job != "chat" and dtype == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU multiplies no bfloat16, and takes minutes for a step")
    command = [sys.executable, "-c", JOB, job, dtype, str(middling), str(long_captions)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    assert planned[job][dtype] == pytest.approx(int(run.stdout), rel=0.15)
