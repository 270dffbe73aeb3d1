"""Memory of a run whose rows are of ever-changing length, in a process of its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minigpt4.training.recipe import Recipe
from tiny import picture_file, tiny_tokenizer, write_shard

STEPS, SETTLED = 160, 100  # steps, and those after which memory may grow by 5 % at most


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported() or not Path("/proc/self").exists(),
    reason="what grew were oneDNN's bfloat16 products in glibc's heap",
)
def test_memory_stays_flat(tiny_vision: Path, tmp_path: Path) -> None:
    vocabulary = tiny_tokenizer(tmp_path / "llm")
    small = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4
    )
    LlamaForCausalLM(small).save_pretrained(tmp_path / "llm")
    draw, members = random.Random(0), {}
    for i in range(2000):
        caption = "".join(draw.choices("abcdefgh", k=draw.randrange(1, 120)))
        members |= {f"{i}.png": picture_file(i % 8), f"{i}.json": json.dumps({"caption": caption}).encode()}
    (tmp_path / "data").mkdir()
    write_shard(tmp_path / "data" / "00000.tar", members)
    recipe = Recipe.parse({
        "stage": 1, "vision_qformer": str(tiny_vision), "llm": str(tmp_path / "llm"), "template": "pocket",
        "device": "cpu", "data": str(tmp_path / "data"), "feature_cache": tmp_path / "features", "steps": STEPS,
        "output": tmp_path / "run", "batch_size": 16, "learning_rate": 0.001, "max_text_tokens": 120,
        "dtype": "bfloat16",
    })  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    code = "import sys; from minigpt4.training import recipe, train; train.train(recipe.Recipe.load(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, tmp_path / "recipe.yaml"], check=True, timeout=900)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    memory = [json.loads(line)["memory_mb"] for line in lines]
    assert len(memory) == STEPS
    assert memory[-1] < 1.05 * memory[SETTLED], memory
