"""Random weights in the files that the paper's authors released, at full size: `python bench/released_files.py DIR`.

Writes eva_vit_g.pth, blip2_pretrained_flant5xxl.pth, pretrained_minigpt4_7b.pth and a Llama 7B in bfloat16 with the
tokenizer of the tests (16 GB in all; `--layers` leaves out layers of the LLM). `minigpt4 convert` takes them; what
that, a chat and training take in time and memory is in docs/laptop.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "golden"))

import make

TILE = 0.02 * torch.randn(2**22)


def random(_: torch.Generator, *shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    """Weights of the usual scale: a few million numbers again and again."""
    return TILE.to(dtype).repeat(-(-prod(shape) // len(TILE)))[: prod(shape)].view(shape).clone()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    arguments = parser.parse_args()
    out: Path = arguments.out
    llm = out / "llm"
    llm.mkdir(parents=True, exist_ok=True)
    make.random = random
    make.SIZES |= {
        "image_size": 224, "patch": 14, "vision": 1408, "vision_inner": 6144, "blocks": 39, "queries": 32,
        "qformer": 768, "qformer_inner": 3072, "qformer_layers": 12,
    }  # fmt: skip
    generator = torch.Generator()
    torch.save(make.vision_file(generator), out / "eva_vit_g.pth")
    torch.save({"model": make.qformer_file(generator)}, out / "blip2_pretrained_flant5xxl.pth")
    projection = make.linear(generator, "llama_proj", 4096, 768)
    torch.save({"model": projection}, out / "pretrained_minigpt4_7b.pth")
    config = json.loads((make.HERE / "llm" / "config.json").read_text())
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "vocab_size": 32000}
    config |= sizes | {"num_hidden_layers": arguments.layers, "max_position_embeddings": 2048, "dtype": "bfloat16"}
    (llm / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(make.HERE / "llm" / name, llm / name)
    shapes = {"model.embed_tokens": (32000, 4096), "model.norm": (4096,), "lm_head": (32000, 4096)}
    places: dict[str, str] = {}
    for layer in range(-1, arguments.layers):
        if layer >= 0:
            attention = {f"self_attn.{each}_proj": (4096, 4096) for each in "qkvo"}
            mlp = {"mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008)}
            norms = {"input_layernorm": (4096,), "post_attention_layernorm": (4096,)}
            shapes = {f"model.layers.{layer}.{name}": shape for name, shape in (attention | mlp | norms).items()}
        weights = {
            f"{name}.weight": random(generator, *shape, dtype=torch.bfloat16) + (len(shape) == 1)
            for name, shape in shapes.items()
        }
        shard = f"model-{layer + 2:05}-of-{arguments.layers + 1:05}.safetensors"
        save_file(weights, llm / shard, metadata={"format": "pt"})
        places |= dict.fromkeys(weights, shard)
    (llm / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


if __name__ == "__main__":
    main()
