"""The paper's model at full size, with random weights: `python bench/full_size.py [--model vicuna-7b] [--layers N]`.

Builds the model in bfloat16 (7B: about 16 GB), encodes pictures, trains the projection for one step, and generates.
Prints time, samples/s or tokens/s, and which share of the machine's matrix-product ceiling each part reaches; the
ceiling is measured first, on the LLM's own shapes. Runs on CUDA if there is one, else on the CPU. To try it out in
little memory, `--layers` and `--vision-layers` leave out layers, and `--scale 8` makes all of them 8 times narrower.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
from _timing import seconds
from rich.console import Console
from rich.table import Table
from transformers import Blip2Config, Blip2ForConditionalGeneration, DynamicCache

from minigpt4.memory import PAPER_LLMS, paper_config

TEXT_TOKENS = 32  # stage 1's captions


def fastest(action: Callable[[], object], device: torch.device, runs: int) -> float:
    return min(seconds(action, device) for _ in range(runs))


def shrink(config: Blip2Config, scale: int, vision_layers: int | None) -> None:
    """Make vision tower and LLM `scale` times narrower, with heads of the same size."""
    vision, llm = config.vision_config, config.text_config
    vision.num_hidden_layers = vision_layers or vision.num_hidden_layers
    for part in (vision, llm):
        for key in ("hidden_size", "intermediate_size", "num_attention_heads"):
            setattr(part, key, getattr(part, key) // scale)
    llm.num_key_value_heads = llm.num_attention_heads
    config.qformer_config.encoder_hidden_size = vision.hidden_size


def build(config: Blip2Config, device: torch.device) -> Blip2ForConditionalGeneration:
    """The model with random weights of the usual scale, made in place: it is never there twice."""
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                dtype = torch.float32 if module is model.language_projection else torch.bfloat16
                weight = torch.empty(parameter.shape, dtype=dtype, device=device)
                if parameter.dim() > 1:
                    weight.normal_(std=0.02)
                else:
                    weight.fill_(0.0 if name == "bias" else 1.0)
                module._parameters[name] = torch.nn.Parameter(weight, requires_grad=False)
    rotary = model.language_model.base_model.rotary_emb
    model.language_model.base_model.rotary_emb = type(rotary)(config.text_config).to(device)
    return model.eval()


def matrix_ceiling(device: torch.device, rows: int, width: int, mlp: int) -> float:
    """Measured bfloat16 operations per second of the LLM's largest product, `rows` tokens at once."""
    a = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    b = torch.randn(mlp, width, device=device, dtype=torch.bfloat16)
    return 2 * rows * width * mlp / fastest(lambda: torch.nn.functional.linear(a, b), device, 5)


def peak_memory(device: torch.device) -> float:
    """GB at the peak: the process's on a CPU, the device's on CUDA."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vicuna-7b", choices=list(PAPER_LLMS))
    parser.add_argument("--layers", type=int, help="layers of the LLM; the paper's by default")
    parser.add_argument("--vision-layers", type=int, help="layers of the vision tower; the paper's by default")
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2, 4, 8), help="by what the widths are divided")
    parser.add_argument("--batch", type=int, default=4, help="pictures encoded, trained on and answered together")
    parser.add_argument("--tokens", type=int, default=16, help="tokens to generate")
    parser.add_argument("--runs", type=int, default=1, help="the fastest of so many runs counts")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = paper_config(arguments.model, layers=arguments.layers)
    shrink(config, arguments.scale, arguments.vision_layers)
    text, batch = config.text_config, arguments.batch

    start = time.perf_counter()
    model = build(config, device)
    building = time.perf_counter() - start
    llm, projection = model.language_model, model.language_projection
    queries = config.num_query_tokens
    length = queries + TEXT_TOKENS
    ceilings = {
        rows: matrix_ceiling(device, rows, text.hidden_size, text.intermediate_size) for rows in (batch, batch * length)
    }
    size = config.vision_config.image_size
    pixels = torch.randn(batch, 3, size, size, device=device, dtype=torch.bfloat16)
    patches = (size // config.vision_config.patch_size) ** 2 + 1

    @torch.no_grad()
    def encode() -> torch.Tensor:
        seen = model.vision_model(pixels).last_hidden_state
        asked = model.query_tokens.expand(batch, -1, -1)
        return model.qformer(query_embeds=asked, encoder_hidden_states=seen).last_hidden_state

    features = encode()
    words = torch.randint(5, text.vocab_size - 1, (batch, TEXT_TOKENS), device=device)

    def train() -> None:
        soft = projection(features.float()).to(torch.bfloat16)
        inputs = torch.cat([soft, llm.get_input_embeddings()(words)], dim=1)
        hidden = llm.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        logits = llm.lm_head(hidden[:, queries - 1 : -1].flatten(0, 1))
        torch.nn.functional.cross_entropy(logits.float(), words.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def read() -> tuple[DynamicCache, torch.Tensor]:
        cache = DynamicCache()
        inputs = torch.cat([projection(features.float()).to(torch.bfloat16), llm.get_input_embeddings()(words)], dim=1)
        logits = llm(inputs_embeds=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return cache, logits.argmax(-1)

    @torch.no_grad()
    def write() -> None:
        cache, token = state
        for _ in range(arguments.tokens):
            token = llm(input_ids=token, past_key_values=cache, use_cache=True).logits.argmax(-1)

    llm_operations = 2 * count(llm.base_model) - 2 * llm.get_input_embeddings().weight.numel()
    head_operations = 2 * llm.lm_head.weight.numel()
    table = Table(
        title=f"{arguments.model}, {text.num_hidden_layers} layers, bfloat16, batch {batch}, on {device.type}"
    )
    for heading in ("", "seconds", "rate", "share of ceiling"):
        table.add_column(heading, justify="right" if heading else "left")

    def row(name: str, took: float, rate: str, operations: float, ceiling: float) -> None:
        table.add_row(name, f"{took:.2f}", rate, f"{100 * operations / took / ceiling:.0f} %")

    table.add_row("build", f"{building:.2f}", f"{count(model) / 1e9:.2f} G parameters", "")
    took = fastest(encode, device, arguments.runs)
    # Of the Q-Former's products only those of its queries are many; with 32 of them they are 2 % of the tower's.
    row(
        "encode",
        took,
        f"{batch / took:.2f} pictures/s",
        2 * count(model.vision_model) * batch * patches,
        ceilings[batch * length],
    )
    projection.requires_grad_()
    optimizer = torch.optim.AdamW(projection.parameters(), lr=1e-4)
    took = fastest(train, device, arguments.runs)
    # Forwards, and backwards to the inputs only: the frozen weights get no gradient.
    operations = 2 * batch * (llm_operations * length + head_operations * TEXT_TOKENS)
    row("training step", took, f"{batch / took:.2f} samples/s", operations, ceilings[batch * length])
    assert all(bool(p.isfinite().all()) for p in projection.parameters())
    projection.requires_grad_(False)
    took = fastest(read, device, arguments.runs)
    operations = batch * (llm_operations * length + head_operations)
    row("read the prompt", took, f"{batch * length / took:.0f} tokens/s", operations, ceilings[batch * length])
    state = read()
    took = fastest(write, device, 1)
    operations = batch * arguments.tokens * (llm_operations + head_operations)
    row("generate", took, f"{batch * arguments.tokens / took:.2f} tokens/s", operations, ceilings[batch])
    console = Console()
    console.print(table)
    console.print(
        f"ceiling: {ceilings[batch * length] / 1e9:.0f} GFLOP/s with {batch * length} tokens, "
        f"{ceilings[batch] / 1e9:.0f} GFLOP/s with {batch}; {torch.get_num_threads()} threads"
    )
    console.print(f"peak memory: {peak_memory(device):.2f} GB")


if __name__ == "__main__":
    main()
