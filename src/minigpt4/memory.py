"""How much memory a model needs, before it is loaded: the one estimator of `minigpt4 plan` and `train --dry-run`.

Parameters are counted on a network without weights, a job's memory follows from the parts' config.json: by formulas of
transformers' layers and measured margins, within 15 % of a process's peak (`tests/test_memory.py`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2Config, Blip2VisionModel, LlamaConfig

from minigpt4.errors import UserError
from minigpt4.model import encoders, parts, sources
from minigpt4.model.efficientnet_lite import EfficientNetLiteConfig
from minigpt4.model.four_bits import group_size
from minigpt4.model.gguf import open_tensors
from minigpt4.model.graph import empty_graph
from minigpt4.model.loading import read_record
from minigpt4.model.quantization import LOAD_IN, is_in_files, layers_in
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
#: A step's memory on a CPU for each byte that it keeps: freed memory is kept for later steps and partly stays unused.
#: (Returning memory at once would give 1.0, but takes half as long again.)
HOLES = 1.5
#: Bytes that training takes besides, by those of a number: data, what optimizers import, products' own. Measured.
BESIDES = {4: 300_000_000, 2: 200_000_000}
#: Logits in memory at a time, in float32: so many that the head's products are long, so few that they do not count.
CHUNK = {"cpu": 2**22, "cuda": 2**28}
#: Bytes for each of the logits that are there at a time.
AT_LOGITS = 20
#: Bytes that the rows of a step may keep together on a CPU, or as many as the LLM's weights take; of a step that would
#: keep more, fewer rows are computed at a time.
AT_A_TIME = 400_000_000
#: Bytes of code that oneDNN keeps for the shapes of a run's 16-bit products on a CPU, at most (`keep_little_code`).
CODE = 100_000_000
#: The paper's LLMs (Llama 7B and 13B): width, MLP width, layers, heads.
PAPER_LLMS = {"vicuna-7b": (4096, 11008, 32, 32), "vicuna-13b": (5120, 13824, 40, 40)}


@dataclass(frozen=True)
class Part:
    """A part of a model, and its number of parameters."""

    name: str
    parameters: int
    trained: bool = False


@dataclass(frozen=True)
class Plan:
    """What the model called `name` needs."""

    name: str
    parts: tuple[Part, ...]
    #: Bytes by job ("weights", "chat", "batch of 8", "training on 8") and precision, at the peak of a process on a CPU.
    memory: dict[str, dict[str, int]]

    def table(self) -> str:
        """Parameters and memory as text, memory in GB (10^9 bytes)."""
        lines = [f"{self.name}", "", f"{'parameters':<24}{'frozen':>16}{'trained':>14}"]
        for part in self.parts:
            frozen, trained = ("", f"{part.parameters:,}") if part.trained else (f"{part.parameters:,}", "")
            lines.append(f"{part.name:<24}{frozen:>16}{trained:>14}")
        frozen, trained = (f"{sum(p.parameters for p in self.parts if p.trained is t):,}" for t in (False, True))
        lines += [f"{'all':<24}{frozen:>16}{trained:>14}", ""]
        lines.append(f"{'memory in GB':<24}" + "".join(f"{precision:>10}" for precision in PRECISIONS))
        for job, row in self.memory.items():
            lines.append(f"{job:<24}" + "".join(f"{row[precision] / 1e9:>10.2f}" for precision in PRECISIONS))
        return "\n".join([*lines, "", _NOTES])


_NOTES = (
    f"Peaks of the whole process on a CPU; {PROCESS / 1e9:.2f} GB of them are Python and its libraries, which on a GPU "
    f"do not count.\nChat and batch: one image, {PROMPT_TOKENS} tokens of text and an answer of up to {NEW_TOKENS} for "
    f"each prompt. Training: {TRAINED_TOKENS} tokens of text for each sample.\n"
    "8bit, 4bit, fp8, int8: the LLM's linear layers, all else in bfloat16."
)


def plan(
    name: str | Path,
    *,
    batch: int = 8,
    train: bool = False,
    of: tuple[str, str, bool, int] | None = None,
    text_tokens: int = TRAINED_TOKENS,
    at_once: bool = False,
    wide: bool = False,
) -> Plan:
    """The plan for `name`, one of the paper's LLMs or a model, or `of` parts that are apart. Raises UserError.

    A CPU computes a large batch in parts (`rows_at_a_time`), unless `at_once`. `wide`: quantized LLMs in float32.
    """
    config, files = _describe_parts(*of) if of else _describe(name)
    skeleton = empty_graph(config)
    if is_in_files("", config.text_config):  # which are never there twice: only small tensors are converted
        files = {}
    memory: dict[str, dict[str, int]] = {"weights": {}}
    for precision in PRECISIONS:
        size = 4 if wide or precision == "float32" else 2
        jobs = {"chat": _chat(config, 1, size), f"batch of {batch}": _chat(config, batch, size)}
        if train:
            parameters = None if at_once else _count(skeleton.language_model.parameters())
            jobs[f"training on {batch}"] = _training(config, batch, size, text_tokens, parameters)
        vision, llm, unpacked = _weights(skeleton, precision, size)
        memory["weights"][precision] = vision + llm
        for job, working in jobs.items():
            peak = PROCESS + max(vision + llm + working + unpacked, _loading(files, vision, llm))
            memory.setdefault(job, {})[precision] = peak
    return Plan(str(name), _parts(skeleton), memory)


def paper_config(name: str = "vicuna-7b", layers: int | None = None) -> Blip2Config:
    """The paper's model: EVA ViT-g/14, 32 queries, Llama 7B or 13B (of so many `layers`) that knows `<image>`."""
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
            expected = f"an alignment, an export, or {' or '.join(PAPER_LLMS)}"
            raise UserError(f"{name}: is a {config.get('model_type')!r} model; give {expected}")
        with sources.readable(name):
            return Blip2Config(**config), {"all": _bytes(source)}
    record = read_record(source)
    return _describe_parts(record.origin.vision_qformer, record.origin.llm, record.qformer, record.group)


def _describe_parts(
    vision_qformer: str, language: str, qformer: bool, group: int
) -> tuple[Blip2Config, dict[str, int | None]]:
    vision, llm = sources.resolve(vision_qformer), sources.resolve(language)
    vision_config, qformer_config, num_query_tokens = parts.read_vision_config(vision, qformer, group)
    text = parts.read_llm_config(llm)
    tokenizer = parts.load_tokenizer(llm)
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        text.vocab_size = max(text.vocab_size, len(tokenizer) + 1)
    config = Blip2Config(
        vision_config=vision_config, qformer_config=qformer_config, text_config=text, image_token_index=0,
        num_query_tokens=num_query_tokens,
    )  # fmt: skip
    return config, {"vision": _bytes(vision), "llm": _bytes(llm)}


def _bytes(source: str | Path) -> int | None:
    return sum(open_tensors(source).file_sizes()) if isinstance(source, Path) else None


def _parts(skeleton: Any) -> tuple[Part, ...]:
    # Without a Q-Former, `query_tokens` is a buffer.
    queries = [skeleton.query_tokens] if isinstance(skeleton.query_tokens, torch.nn.Parameter) else []
    return (
        Part("vision tower", _count(skeleton.vision_model.parameters())),
        Part("Q-Former and queries", _count([*queries, *skeleton.qformer.parameters()])),
        Part("projection", _count(skeleton.language_projection.parameters()), trained=True),
        Part("LLM", _count(skeleton.language_model.parameters())),
    )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _weights(skeleton: Any, precision: str, size: int) -> tuple[int, int, int]:
    """Bytes of the vision side with the projection, of the LLM, and of one layer if layers are unpacked to compute."""
    vision, qformer, projection, llm = (part.parameters for part in _parts(skeleton))
    side = size * vision + (4 if precision == "float16" else size) * qformer + 4 * projection  # as transformers does
    if is_in_files("", skeleton.language_model.config):
        precision = "4bit"
        if isinstance(skeleton.vision_model, Blip2VisionModel):  # which those files hold in 8 bits
            side -= (size - 1) * _count(m.weight for m in layers_in("int8", skeleton.vision_model).values())
    if precision not in LOAD_IN:
        return side, size * llm, 0
    model = skeleton.language_model
    linears = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()]
    weights = _count(layer.weight for layer in linears)
    # 4 bits: 4 bytes for each group, besides them. 8 bits: a scale for each row.
    four = precision == "4bit"
    scales = sum(m.weight.numel() // group_size(m.in_features) if four else m.out_features for m in linears)
    unpacked = max(layer.weight.numel() for layer in linears) if precision == "fp8" else 0
    return side, weights // (1 + four) + 4 * scales + size * (llm - weights), unpacked


def _loading(files: dict[str, int | None], vision: int, llm: int) -> int:
    """Bytes at the peak of loading on a CPU: a converted file is there twice, another stays mapped as the weight."""
    of_vision, of_llm = files.get("vision", files.get("all")) or 0, files.get("llm")
    if of_llm is None:  # one file, or none on this machine
        return vision + llm + (0 if abs(of_vision - vision - llm) < 0.02 * of_vision else of_vision)
    if abs(of_llm - llm) < 0.02 * of_llm:
        return of_vision + vision  # nothing of the mapped LLM was read yet
    return llm + max(of_llm, of_vision + vision)


def _encoding(config: Blip2Config, images: int, size: int) -> int:
    """Bytes at the peak of encoding: the pixels, and the widest of a vision layer. A number takes `size` bytes."""
    vision = config.vision_config
    side, tokens = encoders.image_tokens(vision)
    pixels = 3 * side**2 * (4 if size == 4 else 6)  # float32, and a copy in 16 bits
    layer = tokens * (4 * vision.hidden_size + 2 * _mlp(vision))
    if isinstance(vision, EfficientNetLiteConfig):
        layer = 3 * 96 * (side // 2) ** 2  # copies of the first block's channels at half the size
    return images * (pixels + size * layer)


def _chat(config: Blip2Config, images: int, size: int) -> int:
    """Bytes at the peak of so many answers: encoding, reading the prompts, or the KV cache at the last token."""
    llm = config.text_config
    read = images * (config.num_query_tokens + PROMPT_TOKENS)
    heads = getattr(llm, "num_key_value_heads", 0) or getattr(llm, "num_attention_heads", 0)
    head_size = getattr(llm, "head_dim", 0) or llm.hidden_size // getattr(llm, "num_attention_heads", 1)
    layer = 2 * size * heads * head_size  # keys and values of a token
    prefill = read * (llm.num_hidden_layers * layer + size * (4 * llm.hidden_size + 3 * _mlp(llm)))
    last = (read + images * NEW_TOKENS) * (llm.num_hidden_layers + 1) * layer  # a layer's cache is copied to grow
    return max(_encoding(config, images, size), prefill, last)


def rows_at_a_time(llm: Any, rows: int, longest: int, size: int, parameters: int) -> int:
    """How many of a training step's rows of `longest` tokens are computed at a time on a CPU, see `AT_A_TIME`.

    `llm` is the configuration of a language model of so many `parameters`, whose numbers take `size` bytes.
    """
    pieces = math.ceil(rows * longest * _kept(llm, longest, size) / max(AT_A_TIME, size * parameters))
    return math.ceil(rows / min(rows, pieces))


def _training(config: Blip2Config, samples: int, size: int, text_tokens: int, parameters: int | None) -> int:
    """Bytes at the peak of training: encoding a batch for the feature cache, or a step. Logits come in small chunks.

    With the LLM's number of `parameters` rows count that are computed at a time, without all of a step's.
    """
    llm, longest = config.text_config, config.num_query_tokens + text_tokens
    rows = samples if parameters is None else rows_at_a_time(llm, samples, longest, size, parameters)
    step = int(HOLES * rows * longest * _kept(llm, longest, size))
    logits = min(CHUNK["cpu"], rows * longest * llm.vocab_size)
    return max(_encoding(config, ENCODE_BATCH, size), step + AT_LOGITS * logits) + BESIDES[size] + CODE * (size == 2)


def _kept(llm: Any, longest: int, size: int) -> int:
    """Bytes that a training step keeps for each token of rows of `longest`, until it has gone backwards."""
    in_layer, width, mlp = KEPT[size]
    attention = getattr(llm, "num_attention_heads", 0) * longest  # its weights; Mamba has none
    kept = llm.num_hidden_layers * (in_layer * llm.hidden_size + 3 * _mlp(llm) + attention)
    return size * (kept + width * llm.hidden_size + mlp * _mlp(llm))


def _mlp(llm: Any) -> int:
    """The width of a network's MLP, by the names in transformers' configurations."""
    named = (getattr(llm, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner"))
    return next(filter(None, named), 4 * llm.hidden_size)
