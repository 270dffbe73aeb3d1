"""How much memory a model needs, before it is loaded: the one estimator of `minigpt4 plan` and `train --dry-run`.

Parameters are counted on a network without weights; the memory of a job is computed by formula from the parts'
config.json. The formulas are those of transformers' own layers, and the margins are measured: on a model of 90 million
parameters they are within 15 % of a process's peak (`tests/test_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Blip2Config, LlamaConfig

from minigpt4.errors import UserError
from minigpt4.model import parts, sources
from minigpt4.model.graph import empty_graph
from minigpt4.model.quantization import LOAD_IN
from minigpt4.model.record import read_record
from minigpt4.model.vision import ENCODE_BATCH
from minigpt4.prompts.templates import IMAGE_TOKEN

#: Memory is reported for these; a quantized LLM computes in bfloat16.
PRECISIONS = ("float32", "bfloat16", "float16", *LOAD_IN)
#: Tokens of a job: text around the image and the longest answer in chat, the text of a sample in training.
PROMPT_TOKENS, NEW_TOKENS, TRAINED_TOKENS = 60, 300, 160
#: Bytes of Python and its libraries in a process without a model, measured with torch for CPUs.
PROCESS = 380_000_000
#: Numbers that a training step keeps for each token, by the bytes of one: so many times the LLM's width in each layer,
#: then so many times its width and its MLP's width outside of the layers. In 16 bits norms keep float32 copies.
KEPT = {4: (5, 7, 2), 2: (7, 19, 0)}
#: A step's memory on a CPU for each byte of its tensors: freed memory is kept for later ones and partly stays unused.
#: Measured at a width of 1,024 in both dtypes. (Returning memory at once would give 1.0, but takes half as long again.)
HOLES = 1.9
#: The paper's LLMs (Llama 7B and 13B): width, MLP width, layers, heads.
PAPER_LLMS = {"vicuna-7b": (4096, 11008, 32, 32), "vicuna-13b": (5120, 13824, 40, 40)}


@dataclass(frozen=True)
class Part:
    """One part: parameters, and bytes of its files (None if it is not on this machine)."""

    name: str
    parameters: int
    trained: bool
    on_disk: int | None


@dataclass(frozen=True)
class Plan:
    """What `name` needs. `memory` gives bytes by job ("weights", "chat", "batch of 8", "training on 8") and precision.

    The jobs' bytes are those of the whole process at its peak, on a CPU: `process` of them are Python's and the
    libraries', `weights` the model's. On a GPU the process does not count.
    """

    name: str
    parts: tuple[Part, ...]
    process: int
    memory: dict[str, dict[str, int | None]]

    def table(self) -> str:
        """Both tables as text, memory in GB (10^9 bytes)."""
        lines = [f"{self.name}", "", f"{'parameters':<24}{'frozen':>16}{'trained':>14}"]
        for part in self.parts:
            frozen, trained = ("", f"{part.parameters:,}") if part.trained else (f"{part.parameters:,}", "")
            lines.append(f"{part.name:<24}{frozen:>16}{trained:>14}")
        frozen, trained = (
            f"{sum(p.parameters for p in self.parts if p.trained is wanted):,}" for wanted in (False, True)
        )
        lines += [f"{'all':<24}{frozen:>16}{trained:>14}", ""]
        lines.append(f"{'memory in GB':<24}" + "".join(f"{precision:>10}" for precision in PRECISIONS))
        for job, row in self.memory.items():
            cells = (row[precision] for precision in PRECISIONS)
            lines.append(f"{job:<24}" + "".join("         -" if c is None else f"{c / 1e9:>10.2f}" for c in cells))
        lines += [
            "",
            f"Peaks of the whole process on a CPU; {self.process / 1e9:.2f} GB of them are Python and its libraries, "
            "which on a GPU do not count.",
            f"Chat and batch: one image, {PROMPT_TOKENS} tokens of text and an answer of up to {NEW_TOKENS} for each "
            f"prompt. Training: {TRAINED_TOKENS} tokens of text for each sample.",
            "8bit, 4bit, fp8, int8: the LLM's linear layers, all else in bfloat16.",
        ]
        return "\n".join(lines)


def plan(name: str | Path, *, batch: int = 8, train: bool = False, of: tuple[str, str, bool] | None = None) -> Plan:
    """The plan for `name`: `vicuna-7b`, `vicuna-13b`, or what `MiniGPT4.from_pretrained` takes.

    With `of`, the plan for these parts: vision side, LLM, and whether there is a Q-Former. Of a model on the hub only
    its configurations are downloaded. Raises UserError if it is not a model.
    """
    config, files = _describe_parts(*of) if of else _describe(name)
    skeleton = empty_graph(config)
    found = _parts(skeleton, files)
    memory: dict[str, dict[str, int | None]] = {}
    for precision in PRECISIONS:
        weights, size = _weights(skeleton, precision), 4 if precision == "float32" else 2
        jobs = {"chat": _chat(config, 1, size), f"batch of {batch}": _chat(config, batch, size)}
        if train:
            jobs[f"training on {batch}"] = _training(config, batch, size)
        memory.setdefault("weights", {})[precision] = sum(weights.values())
        for job, working in jobs.items():
            running = sum(weights.values()) + working + _unpacked(skeleton, precision)
            memory.setdefault(job, {})[precision] = PROCESS + max(running, _loading(found, weights, precision))
    if train:
        memory[f"training on {batch}"]["float16"] = None  # needs gradient scaling, which recipes do not offer
    return Plan(str(name), found, PROCESS, memory)


def paper_config(name: str = "vicuna-7b", layers: int | None = None) -> Blip2Config:
    """The paper's model: EVA ViT-g/14, 32 queries, Llama 7B or 13B with `<image>` added to its 32,000 words.

    `layers` overrides how many layers the LLM has.
    """
    width, mlp, depth, heads = PAPER_LLMS[name]
    llm = LlamaConfig(
        vocab_size=32001, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers or depth,
        num_attention_heads=heads, max_position_embeddings=2048, rms_norm_eps=1e-6,
    )  # fmt: skip
    return Blip2Config(text_config=llm, num_query_tokens=32, image_token_index=32000)  # whose defaults are the paper's


def _describe(name: str | Path) -> tuple[Blip2Config, dict[str, int | None]]:
    """The whole model's configuration, and the bytes of the files that hold "vision" and "llm" (or "all" of it)."""
    if str(name) in PAPER_LLMS:
        return paper_config(str(name)), {}
    source = sources.resolve(name)
    if sources.find_file(source, "config.json"):
        config = sources.read_json(source, "config.json")
        if config.get("model_type") != "blip-2":
            raise UserError(
                f"{name}: is a {config.get('model_type')!r} model; give an alignment, an export, or "
                f"{' or '.join(PAPER_LLMS)}"
            )
        return Blip2Config(**config), {"all": _bytes(source)}
    origin, _, _, qformer, _ = read_record(source)
    return _describe_parts(origin.vision_qformer, origin.llm, qformer)


def _describe_parts(vision_qformer: str, language: str, qformer: bool) -> tuple[Blip2Config, dict[str, int | None]]:
    """The same of a model that these parts make."""
    vision, llm = sources.resolve(vision_qformer), sources.resolve(language)
    vision_config, qformer_config, num_query_tokens = parts.read_vision_config(vision, qformer)
    text = parts.read_llm_config(llm)
    if text.model_type == "blip-2":  # an export, whose LLM it is
        text = text.text_config
    tokenizer = AutoTokenizer.from_pretrained(llm)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        text.vocab_size = max(text.vocab_size, len(tokenizer) + 1)
    config = Blip2Config(
        vision_config=vision_config,
        qformer_config=qformer_config,
        text_config=text,
        num_query_tokens=num_query_tokens,
        image_token_index=0,
    )
    return config, {"vision": _bytes(vision), "llm": _bytes(llm)}


def _bytes(source: str | Path) -> int | None:
    return sources.Checkpoint(source).size() if isinstance(source, Path) else None


def _parts(skeleton: Any, files: dict[str, int | None]) -> tuple[Part, ...]:
    def count(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    return (
        Part("vision tower", count(skeleton.vision_model), False, files.get("vision", files.get("all"))),
        Part("Q-Former and queries", _qformer_parameters(skeleton), False, None),
        Part("projection", count(skeleton.language_projection), True, None),
        Part("LLM", count(skeleton.language_model), False, files.get("llm")),
    )


def _qformer_parameters(skeleton: Any) -> int:
    """Of the Q-Former and its queries; none in the variant without, whose query tokens are a buffer that is unread."""
    queries = [skeleton.query_tokens] if isinstance(skeleton.query_tokens, torch.nn.Parameter) else []
    return sum(p.numel() for p in (*queries, *skeleton.qformer.parameters()))


def _weights(skeleton: Any, precision: str) -> dict[str, int]:
    """Bytes of the vision side (with the projection) and of the LLM."""
    dtype = 4 if precision == "float32" else 2
    qformer = 4 if precision == "float16" else dtype  # transformers keeps the Q-Former out of float16
    vision = dtype * sum(p.numel() for p in skeleton.vision_model.parameters())
    vision += qformer * _qformer_parameters(skeleton)
    vision += 4 * sum(p.numel() for p in skeleton.language_projection.parameters())
    llm = dtype * sum(p.numel() for p in skeleton.language_model.parameters())
    if precision in LOAD_IN:
        for layer in _quantised_layers(skeleton):
            size, rows = layer.weight.numel(), layer.out_features
            # 8 bits: a scale for each row. 4 bits: an 8-bit scale for each 64 weights, and theirs for each 256.
            held = size / 2 + size / 64 + size / 64 / 256 * 4 if precision == "4bit" else size + 4 * rows
            llm += int(held) - dtype * size
    return {"vision": vision, "llm": llm}


def _quantised_layers(skeleton: Any) -> list[Any]:
    llm = skeleton.language_model
    head = llm.get_output_embeddings()
    return [module for module in llm.modules() if isinstance(module, torch.nn.Linear) and module is not head]


def _unpacked(skeleton: Any, precision: str) -> int:
    """Bytes of one layer that is unpacked (4-bit ones, for the CPU's form or to compute) or turned round (fp8)."""
    return {"4bit": 7, "fp8": 1}.get(precision, 0) * max(x.weight.numel() for x in _quantised_layers(skeleton))


def _loading(found: tuple[Part, ...], weights: dict[str, int], precision: str) -> int:
    """Bytes at the peak of loading on a CPU: what is converted is there twice, as it was (mapped) and as it becomes.

    A file that needs no conversion stays mapped and is the weight itself.
    """
    vision, llm = found[0].on_disk or 0, found[3].on_disk
    if llm is None:  # one file, or none that is here
        same = abs(vision - sum(weights.values())) < 0.02 * vision
        return sum(weights.values()) + (0 if same else vision)
    if abs(llm - weights["llm"]) < 0.02 * llm:
        return vision + weights["vision"]  # of the mapped LLM nothing was read yet
    return weights["llm"] + max(llm, vision + weights["vision"])


def _encoding(config: Blip2Config, images: int, size: int) -> int:
    """Bytes at the peak of encoding: the pixels, and the MLP of a vision layer. A number takes `size` bytes."""
    vision = config.vision_config
    pixels = images * 3 * vision.image_size**2 * (4 if size == 4 else 6)  # float32, and a copy in 16 bits
    tokens = images * ((vision.image_size // vision.patch_size) ** 2 + 1)
    return pixels + tokens * size * (4 * vision.hidden_size + 2 * vision.intermediate_size)


def _chat(config: Blip2Config, images: int, size: int) -> int:
    """Bytes at the peak of so many answers: encoding, reading the prompts, or the KV cache at the last token."""
    llm = config.text_config
    read = images * (config.num_query_tokens + PROMPT_TOKENS)
    heads = getattr(llm, "num_key_value_heads", None) or llm.num_attention_heads
    head_size = getattr(llm, "head_dim", None) or llm.hidden_size // llm.num_attention_heads
    layer = 2 * size * heads * head_size  # keys and values of a token
    prefill = read * (llm.num_hidden_layers * layer + size * (4 * llm.hidden_size + 3 * _mlp(llm)))
    last = (read + images * NEW_TOKENS) * (llm.num_hidden_layers + 1) * layer  # a layer's cache is copied to grow
    return max(_encoding(config, images, size), prefill, last)


def _training(config: Blip2Config, samples: int, size: int) -> int:
    """Bytes at the peak of training: encoding a batch for the feature cache, or a step. Logits come in small chunks."""
    llm, longest = config.text_config, config.num_query_tokens + TRAINED_TOKENS
    in_layer, width, mlp = KEPT[size]
    kept = llm.num_hidden_layers * (
        in_layer * llm.hidden_size + 3 * _mlp(llm) + llm.num_attention_heads * longest  # the last: attention weights
    )
    step = samples * longest * size * (kept + width * llm.hidden_size + mlp * _mlp(llm))
    return max(_encoding(config, ENCODE_BATCH, size), int(HOLES * step))


def _mlp(llm: Any) -> int:
    """The width of the LLM's MLP, by the names in transformers' configurations."""
    named = (getattr(llm, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return next(filter(None, named), 4 * llm.hidden_size)
