"""What a model will need, before anything of it is loaded: parameters of each part, and memory for each job.

The sizes come from the parts' config.json alone. The memory that a job needs beside the weights is not computed by
formulas: the model's own code runs on fake tensors, which have shapes but no data, and what is alive is counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    Blip2Config,
    DynamicCache,
    LlamaConfig,
)

from minigpt4.errors import UserError
from minigpt4.model import parts, sources
from minigpt4.model.graph import empty_graph
from minigpt4.model.packed import NOT_PACKED, Packer, Packing
from minigpt4.model.precision import LOAD_IN
from minigpt4.model.record import read_record
from minigpt4.training.features import ENCODE_BATCH

#: Memory is reported for these; the LLM in fewer bits computes in bfloat16.
PRECISIONS = ("float32", "bfloat16", "float16", *LOAD_IN)
#: What a job is taken to be: text around the image and the answer's limit in chat, the text of a sample in training.
PROMPT_TOKENS, NEW_TOKENS, TRAINED_TOKENS = 60, 300, 160
#: What a step takes on a CPU for each byte of its tensors: freed memory is kept for the next ones, which do not fit in
#: everywhere. Measured at widths of 1,024 in both dtypes; giving memory back at once (1.0) takes half as long again.
HOLES = 1.9
#: The paper's LLMs: width, MLP width, layers, heads. (Llama 7B and 13B.)
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

    With `of`, the plan for these parts: vision side, LLM, and whether there is a Q-Former.
    Of a model on the hub only its configurations are downloaded. Raises UserError for what is no model.
    """
    process = psutil.Process().memory_info().rss  # before the tools of this file are at work
    config, files = _describe_parts(*of) if of else _describe(name)
    skeleton = empty_graph(config)
    found = _parts(skeleton, files)
    jobs: dict[str, Callable[[_Fake], int]] = {
        "chat": lambda fake: fake.chat(1),
        f"batch of {batch}": lambda fake: fake.chat(batch),
    }
    if train:
        jobs[f"training on {batch}"] = lambda fake: fake.training(batch)
    weights = {precision: _weights(skeleton, precision) for precision in PRECISIONS}
    memory: dict[str, dict[str, int | None]] = {"weights": {p: sum(w.values()) for p, w in weights.items()}}
    fakes = {dtype: _Fake(config, dtype) for dtype in (torch.float32, torch.bfloat16)}
    for job, run in jobs.items():
        extra = {dtype: run(fake) for dtype, fake in fakes.items()}
        memory[job] = {}
        for precision in PRECISIONS:
            if precision == "float16" and job.startswith("training"):
                memory[job][precision] = None  # its gradients vanish without scaling; recipes know no float16
                continue
            working = extra[torch.float32 if precision == "float32" else torch.bfloat16]
            working += _unpacked(skeleton, precision)
            running = sum(weights[precision].values()) + working
            memory[job][precision] = process + max(running, _loading(found, weights[precision], precision))
    return Plan(str(name), found, process, memory)


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
        with parts.readable(name, "BLIP-2"):
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
    tokenizer = parts.load_tokenizer(llm)
    if parts.IMAGE_TOKEN not in tokenizer.get_vocab():
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


class _Fake:
    """The model without data, in one dtype, and what its jobs need beside the weights."""

    def __init__(self, config: Blip2Config, dtype: torch.dtype) -> None:
        self.dtype = dtype
        blip2 = empty_graph(config)
        with (mode := FakeTensorMode(allow_non_fake_inputs=True)):
            for module in blip2.modules():
                for name, p in module._parameters.items():
                    if p is not None:
                        weight = torch.empty(p.shape, dtype=dtype)
                        module._parameters[name] = torch.nn.Parameter(weight, requires_grad=False)
                for name, b in module._buffers.items():
                    if b is not None:
                        module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
        self.mode, self.blip2 = mode, blip2.eval()

    def chat(self, count: int) -> int:
        """Peak bytes while `count` pictures are encoded and as many answers generated, to the last token."""
        blip2, llm = self.blip2, self.blip2.language_model
        with self.mode, torch.no_grad(), _Alive(blip2) as alive:
            features = self._encode(count)
            length = features.shape[1] + PROMPT_TOKENS
            cache = DynamicCache()
            embeddings = torch.empty(count, length, llm.config.hidden_size, dtype=self.dtype)
            llm(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1)
            for i, layer in enumerate(cache.layers):  # the tokens up to the last, at once
                keys = torch.empty_like(layer.keys[:, :, :1]).repeat(1, 1, NEW_TOKENS - 2, 1)
                cache.update(keys, keys.clone(), i)
            llm(inputs_embeds=embeddings[:, :1], past_key_values=cache, use_cache=True)
        return alive.peak

    def training(self, count: int) -> int:
        """Peak bytes while features are made in the cache's batches, then over a step on `count` samples."""
        with self.mode, torch.no_grad(), _Alive(self.blip2) as encoding:
            self._encode(ENCODE_BATCH)
        llm = self.blip2.language_model
        projection = self.blip2.language_projection.requires_grad_()
        with self.mode, _Alive(self.blip2) as alive:
            queries = self.blip2.config.num_query_tokens
            length = queries + TRAINED_TOKENS
            features = torch.empty(count, queries, projection.in_features, dtype=self.dtype)
            text = torch.empty(count, TRAINED_TOKENS, llm.config.hidden_size, dtype=self.dtype)
            embeddings = torch.cat([projection(features).to(self.dtype), text], dim=1)
            places = torch.arange(count * length)
            asked = places.view(count, length)[:, queries:].flatten()
            try:
                hidden = Packer(llm).hidden_states(embeddings.flatten(0, 1), Packing(count, length, places), asked)
            except NOT_PACKED:
                llm.set_attn_implementation("eager")
                hidden = llm.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            hidden.backward(torch.empty_like(hidden))  # logits come in pieces, which are small
            trained = sum(p.numel() for p in projection.parameters())
        step = alive.peak + 2 * 4 * trained  # AdamW's two moments, in float32
        return max(encoding.peak, int(HOLES * step))

    def _encode(self, count: int) -> Tensor:
        size = self.blip2.config.vision_config.image_size
        pixels = torch.empty(count, 3, size, size, dtype=torch.float32)
        # The steps of `MiniGPT4.encode_pixels`, whose device this model does not have.
        patches = self.blip2.vision_model(pixels.to(self.dtype)).last_hidden_state
        queries = self.blip2.query_tokens.expand(len(patches), -1, -1)
        return self.blip2.qformer(query_embeds=queries, encoder_hidden_states=patches).last_hidden_state


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is on, at their peak; the model's own do not count."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        own = (*model.parameters(), *model.buffers())
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._drop, storage._cdata)
        self.peak = max(self.peak, self.now)
        return out

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)
