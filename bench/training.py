"""Training steps and whole runs, the plain way and ours: `python bench/training.py [--quick] [--sizes pocket 100M]`.

Four ways (more with `--compile`, `--load-in`), from the same weights, on the same batch of the same pairs, in one run,
in turns, each after a step of its own that does not count; medians of the repeats:
  (1) plain: float32 Blip2ForConditionalGeneration with labels, padded rows, the vision tower in every step
  (2) plain, with autocast to bfloat16
  (3) ours from pictures: frozen weights in bfloat16, no padding, logits at targets only
  (4) ours from cached features
  and (3) and (4) with the LLM's linear layers in 8 bits, (3) with the vision tower's as well: as `--load-in` says, and
  in float8 on a GPU that multiplies it;
  and each of them with the LLM's layers compiled (`--compile`)
"Of the ceiling" is the share of the rate of a bfloat16 matrix product of the LLM's largest shape, measured between the
repeats; operations are counted as in `minigpt4.training.speed`. Memory is the peak of a process of its own for
each way, above what Python and the libraries hold before there is a model (on CUDA, the peak of what tensors take).

Whole runs (`--steps`, 200 of them; 0 leaves them out, as `--repeats 0` does the single steps) go over captions of the
pocket world, whose rows change in length from step to step, each way in a process of its own; ours by the loop of
`minigpt4 train`: features read from a cache on disk, figures written for every step, compiling included. "Keeps" is the
speed of the last tenth of steps against that of the tenth after the first; memory is the whole process's, at half of
the run, at its end and at its peak. Ratios are of the whole runs.

`--processor-time` is for a machine that others use too: every way runs in a process of its own with one thread, all at
once, and only the time counts in which that thread has the processor.

With `--model vicuna-7b` (or 13b) it runs ours at full size with random weights and says what the paper's 5.12 million
samples would take; this is for a GPU. `--layers N` leaves layers out to try it elsewhere.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from _timing import seconds
from rich.console import Console
from rich.table import Table
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from minigpt4.data.batches import Batch, Batches, Samples
from minigpt4.errors import UserError
from minigpt4.memory import PAPER_LLMS, paper_config
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.loading import Origin
from minigpt4.model.lora import set_trainable
from minigpt4.model.parts import load_tokenizer
from minigpt4.model.precision import free_large_tensors_at_once, keep_freed_memory
from minigpt4.model.quantization import FORMATS, check_load_in, multiply, quantize, quantize_linears
from minigpt4.prompts.templates import TEMPLATES
from minigpt4.stopping import StopSignals
from minigpt4.training.distributed import Processes
from minigpt4.training.features import FeatureCache
from minigpt4.training.loader import CachedLoader, read_ahead
from minigpt4.training.loop import make_optimizer, make_scaler, training_steps
from minigpt4.training.loss import next_token_loss
from minigpt4.training.recipe import Recipe
from minigpt4.training.report import add_line
from minigpt4.training.speed import keep_little_code, make_fast, memory_mb, operations
from pocket.shipped import models
from pocket.text.phrases import caption
from pocket.world.world import sample

WAYS = ("plain", "plain, autocast", "ours, pictures", "ours, features")
EIGHT_BITS = ("ours, pictures, {}", "ours, pictures, {}, tower too", "ours, features, {}")
COMPILED = ("ours, pictures, compiled", "ours, features, compiled")
#: Ours without one of the things that make it fast.
WITHOUT = ("ours, pictures, fused attention", "ours, features, padded")
PAPER_SAMPLES = 5_120_000
VECTORS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
#: Width, MLP width, layers, heads of the LLM; width, MLP width, layers, heads of the tower; image and patch size.
SHAPES = {
    "pocket": ((256, 768, 6, 4), (192, 768, 6, 6), (96, 8)),
    "100M": ((640, 1728, 12, 10), (384, 1536, 8, 6), (224, 16)),
    "400M": ((1024, 2816, 24, 16), (512, 2048, 12, 8), (224, 16)),
    "SmolLM2": ((576, 1536, 30, 9), (384, 1536, 8, 6), (224, 16)),  # that of SmolLM2-135M
    "1B": ((2048, 8192, 16, 32), (384, 1536, 8, 6), (224, 16)),  # that of Llama-3.2-1B, with another vocabulary
}
VOCABULARY, QUERIES, D_QFORMER = 8000, 32, 256
#: Vocabulary, and heads for keys and values, where they are others.
OF_ITS_OWN = {"SmolLM2": (49153, 3), "1B": (49153, 8)}


def configuration(size: str) -> Blip2Config:
    (width, mlp, layers, heads), (v_width, v_mlp, v_layers, v_heads), (image, patch) = SHAPES[size]
    vocabulary, kv_heads = OF_ITS_OWN.get(size, (VOCABULARY, heads))
    llm = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, max_position_embeddings=512,
    )  # fmt: skip
    vision = Blip2VisionConfig(
        hidden_size=v_width, intermediate_size=v_mlp, num_hidden_layers=v_layers, num_attention_heads=v_heads,
        image_size=image, patch_size=patch,
    )  # fmt: skip
    qformer = Blip2QFormerConfig(
        hidden_size=D_QFORMER, intermediate_size=4 * D_QFORMER, num_hidden_layers=6, num_attention_heads=4,
        encoder_hidden_size=v_width, vocab_size=8,
    )  # fmt: skip
    return Blip2Config(
        vision_config=vision, qformer_config=qformer, text_config=llm, num_query_tokens=QUERIES,
        image_token_index=vocabulary - 1,
    )  # fmt: skip


def build(config: Blip2Config, dtype: torch.dtype, device: torch.device) -> Any:
    """The network with random weights that follow from a seed, made in place; the projection stays in float32."""
    with torch.device("meta"):
        blip2 = Blip2ForConditionalGeneration(config)
    generator = torch.Generator(device).manual_seed(0)
    for module in blip2.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                weight = torch.empty(parameter.shape, dtype=torch.float32, device=device)
                weight = (
                    weight.normal_(std=0.02, generator=generator) if weight.dim() > 1 else weight.fill_(name != "bias")
                )
                kept = weight if module is blip2.language_projection else weight.to(dtype)
                module._parameters[name] = torch.nn.Parameter(kept, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.arange(buffer.numel(), device=device).view(buffer.shape)
    rotary = blip2.language_model.base_model.rotary_emb
    blip2.language_model.base_model.rotary_emb = type(rotary)(config.text_config).to(device)
    return blip2.eval()


def pairs(config: Blip2Config, batch: int) -> tuple[torch.Tensor, Batch]:
    """Random pictures, and captions of 8 to 30 tokens as stage 1 reads them."""
    generator = torch.Generator().manual_seed(0)
    size = config.vision_config.image_size
    pixels = torch.randn(batch, 3, size, size, generator=generator)
    lengths = torch.randint(8, 31, (batch,), generator=generator).tolist()
    targets = [torch.randint(10, 7000, (length,), generator=generator).tolist() for length in lengths]
    prompt = [1, *[config.image_token_id] * config.num_query_tokens]
    return pixels, Batch.of([bytes([i % 256]) for i in range(batch)], [prompt] * batch, targets)


class Way:
    """One of the ways to make a step; `step` makes it, `gradient` is the projection's after it."""

    def __init__(
        self,
        way: str,
        config: Blip2Config,
        batch: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        plain = way.startswith("plain")
        self.device, self.way = device, way
        self.model: MiniGPT4 | None = None
        self.blip2 = build(config, torch.float32 if plain else dtype, device)
        pixels, self.batch = pairs(config, batch)
        self.pixels = pixels.to(device)
        self.batch = Batch(
            self.batch.images, self.batch.input_ids.to(device), self.batch.is_target.to(device), self.batch.num_tokens
        )
        if plain:
            self.blip2.language_projection.requires_grad_()
            self.loss: Callable[[], torch.Tensor] = self._autocast if "autocast" in way else self._plain
        else:
            for form in set(FORMATS) & set(way.split(", ")):
                quantize_linears(form, self.blip2.language_model)
                if "tower too" in way:
                    quantize_linears(form, self.blip2.vision_model)
            origin = Origin("", "", "", "")
            model = self.model = MiniGPT4(self.blip2, None, None, TEMPLATES["pocket"], origin)
            set_trainable(model, 1)
            make_fast(model, "compiled" in way)
            if "padded" in way:
                model.packer = None
            if "fused attention" in way:
                self.blip2.vision_model.set_attn_implementation("sdpa")
            if "features" in way:
                features = model.encode_pixels(self.pixels).clone()
                self.loss = lambda: next_token_loss(model, self.batch, features)
            else:
                self.loss = lambda: next_token_loss(model, self.batch, model.encode_pixels(self.pixels))
        self.optimizer = torch.optim.AdamW(self.blip2.language_projection.parameters(), lr=0.0)

    def _plain(self) -> torch.Tensor:
        ids, is_target = self.batch.input_ids, self.batch.is_target
        ends = ids.shape[1] - is_target.flip(1).int().argmax(1)
        mask = torch.arange(ids.shape[1], device=self.device) < ends[:, None]
        labels = ids.masked_fill(~is_target, -100)
        return self.blip2(pixel_values=self.pixels, input_ids=ids, attention_mask=mask.long(), labels=labels).loss

    def _autocast(self) -> torch.Tensor:
        with torch.autocast(self.device.type, torch.bfloat16):
            return self._plain()

    def step(self) -> float:
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def operations(self) -> float:
        """What a step needs, however it is made: the plain way spends more."""
        return self.operations_of(self.batch)

    def operations_of(self, batch: Batch) -> float:
        """The same of another batch."""
        model = self.model or MiniGPT4(self.blip2, None, None, TEMPLATES["pocket"], Origin("", "", "", ""))
        rows = len(batch.images)
        targets = int(batch.is_target.sum())
        return operations(model, batch.num_tokens - rows, targets, 0 if "features" in self.way else rows)


def product(config: Any, rows: int, device: torch.device) -> tuple[Callable[[], object], float]:
    """A bfloat16 product of the LLM's largest shape, several times, and its operations."""
    width, mlp = config.hidden_size, config.intermediate_size
    a = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    b = torch.randn(mlp, width, device=device, dtype=torch.bfloat16)
    times = max(1, int(2e10 / (2 * rows * width * mlp)))
    return lambda: [torch.nn.functional.linear(a, b) for _ in range(times)], 2.0 * times * rows * width * mlp


def eight_bit_product(config: Any, rows: int, device: torch.device, form: str) -> tuple[Callable[[], object], float]:
    """The same in 8 bits, what comes in already rounded."""
    width, mlp = config.hidden_size, config.intermediate_size
    a, a_scale = quantize(torch.randn(rows, width, device=device), FORMATS[form])
    b, b_scale = quantize(torch.randn(mlp, width, device=device), FORMATS[form])
    return lambda: multiply(a, a_scale, b, b_scale), 2.0 * rows * width * mlp


def multiplies_float8(device: torch.device) -> bool:
    """Whether this is a GPU that does."""
    try:
        check_load_in("fp8", device)
    except UserError:
        return False
    return device.type == "cuda"


def asked_for(of: argparse.Namespace, device: torch.device) -> tuple[str, ...]:
    """All that are asked for."""
    form = of.load_in or ("fp8" if multiplies_float8(device) else None)
    eight_bits = tuple(way.format(form) for way in EIGHT_BITS) if form else ()
    names = WAYS + eight_bits
    if of.compile:
        names += (*COMPILED, *(f"{way}, compiled" for way in eight_bits))
    names += WITHOUT if of.without else ()
    if unknown := set(of.ways or ()) - set(names):
        raise SystemExit(f"--ways: {unknown.pop()!r} is none of those asked for: {'; '.join(names)}")
    return tuple(way for way in names if way == WAYS[0] or not of.ways or way in of.ways)


def peak_memory(device: torch.device) -> float:
    """The most bytes held so far: by tensors on CUDA, by the process elsewhere."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage's begins at that of the process which started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


@dataclass
class Figures:
    """What was measured of one way: seconds and ceilings by repeat, bytes at the peak, the operations of a step."""

    loss: float
    memory: float
    needed: float = 0.0
    times: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)


def measure(size: str, way: str, batch: int, repeats: int, device: torch.device, clock: Callable[[], float]) -> Figures:
    """One way by itself; its memory counts from before there is a model."""
    ours = way.startswith("ours") and device.type == "cpu"
    if ours:  # as `minigpt4 train` does
        keep_little_code()
        free_large_tensors_at_once()
    before = 0.0 if device.type == "cuda" else peak_memory(device)
    made = Way(way, configuration(size), batch, device, torch.bfloat16)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # 8-bit layers are made from whole ones here, and read so in a run
    if ours:
        keep_freed_memory()
    loss = made.step()
    made.step()
    figures = Figures(loss, peak_memory(device) - before)
    if repeats:
        reference, work = product(configuration(size).text_config, made.batch.input_ids.numel(), device)
        reference()
    for _ in range(repeats):
        figures.times.append(seconds(made.step, device, clock))
        figures.ceilings.append(work / seconds(reference, device, clock))
    figures.needed = made.operations()
    return figures


@dataclass
class Whole:
    """A whole run: its seconds, those of each step, the process's MB after each, bytes at the peak, operations."""

    seconds: float
    steps: list[float]
    memory: list[float]
    peak: float
    needed: float
    ceiling: float
    losses: list[float]


def rows_of_captions(config: Blip2Config, count: int) -> Samples:
    """Rows as stage 1 reads them, with captions of the pocket world; 64 images share them."""
    tokenizer = load_tokenizer(models()["pocket/language"])
    captions = [caption(sample(seed), random.Random(seed)) + "\n" for seed in range(count)]
    targets = [ids[:64] for ids in tokenizer(captions, add_special_tokens=False)["input_ids"]]
    prompt = [1, *[config.image_token_id] * config.num_query_tokens]
    return Samples([bytes([i % 64]) * 32 for i in range(count)], targets, [prompt])


def whole_run(size: str, way: str, batch: int, steps: int, device: torch.device, folder: Path) -> Whole:
    """One way's run of so many steps, with a cache and figures in `folder`."""
    ours, config = way.startswith("ours"), configuration(size)
    if device.type == "cpu" and ours:
        keep_little_code()
        free_large_tensors_at_once()
    made = Way(way, config, batch, device, torch.bfloat16)
    batches = Batches(rows_of_captions(config, min(6400, steps * batch)), batch, seed=0)
    reference, work = product(config.text_config, 56 * batch, device)
    reference()
    ceiling = work / min(seconds(reference, device) for _ in range(3))
    found = Whole(0.0, [], [], 0.0, 0.0, ceiling, [])
    started = before = time.perf_counter()

    def note(loss: float, figures: Mapping[str, Any]) -> None:
        nonlocal before
        add_line(folder / "metrics.jsonl", figures)
        now = time.perf_counter()
        found.steps.append(now - before)
        before = now
        found.losses.append(loss)
        found.memory.append(memory_mb(device))

    if ours:
        keep_freed_memory() if device.type == "cpu" else None
        cache = FeatureCache(folder, "bench")
        cache.add([bytes([i]) * 32 for i in range(64)], torch.randn(64, QUERIES, D_QFORMER).to(torch.bfloat16))
        recipe = Recipe.parse({
            "stage": 1, "vision_qformer": "-", "llm": "-", "data": "-", "output": folder / "run", "steps": steps,
            "batch_size": batch, "learning_rate": 1e-3,
        })  # fmt: skip
        loaded = read_ahead(CachedLoader(batches, cache).start(0))
        optimizer, scaler = make_optimizer(made.model, recipe), make_scaler(made.model)
        with StopSignals() as stop:
            processes = Processes(device.type)
            for step in training_steps(made.model, optimizer, scaler, loaded, recipe, processes, stop):
                note(step.loss, step.figures())
                stop.check()
        loaded.close()
    else:
        for number in range(steps):
            rows = batches[number]
            made.batch = Batch(rows.images, rows.input_ids.to(device), rows.is_target.to(device), rows.num_tokens)
            loss = made.step()
            note(loss, {"step": number + 1, "loss": loss})
    found.seconds = time.perf_counter() - started
    found.peak = peak_memory(device)
    found.needed = sum(made.operations_of(batches[number]) for number in range(steps))
    return found


def show_whole_runs(size: str, batch: int, steps: int, names: tuple[str, ...], console: Console) -> None:
    """Every way's whole run, each in a process of its own."""
    title = f"{size}: whole runs of {steps} steps, batch {batch}, {torch.get_num_threads()} threads, {processor()}"
    table = Table(title=title)
    memory = "MB at half, end, peak"
    for heading in ("", "seconds", "samples/s", "faster", "keeps", "of the ceiling", memory, "first loss"):
        table.add_column(heading, justify="right" if heading else "left")
    first = None
    for way in names:
        command = [sys.executable, __file__, "--sizes", size, "--batch", str(batch), "--steps", str(steps)]
        found = Whole(**json.loads(subprocess.run([*command, "--one-run", way], stdout=-1, check=True).stdout))
        first, tenth = first or found.seconds, max(1, steps // 10)
        early, late = (statistics.median(part) for part in (found.steps[tenth : 2 * tenth], found.steps[-tenth:]))
        table.add_row(
            way, f"{found.seconds:.0f}", f"{steps * batch / found.seconds:.1f}", f"{first / found.seconds:.2f}x",
            f"{early / late:.0%}", f"{found.needed / found.seconds / found.ceiling:.0%}",
            f"{found.memory[steps // 2]:,.0f}, {found.memory[-1]:,.0f}, {found.peak / 1e6:,.0f}",
            f"{found.losses[0]:.4f}",
        )  # fmt: skip
    console.print(table)


def processor() -> str:
    """The machine's name and what its vector units multiply."""
    able = [name for name, has in torch.cpu.get_capabilities().items() if has is True and name in VECTORS]
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else [platform.processor()]
    return ", ".join([*names[:1], *able])


def measure_apart(size: str, names: tuple[str, ...], batch: int, repeats: int, at_once: bool) -> dict[str, Figures]:
    """Every way in a process of its own, one after the other or all at once."""
    found, running = {}, {}
    for way in names:
        command = [sys.executable, __file__, "--sizes", size, "--batch", str(batch), "--repeats", str(repeats)]
        command += ["--one-way", way, *(["--processor-time"] if at_once else [])]
        running[way] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if not at_once:
            running[way].wait()
    for way, process in running.items():
        output = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"{way}: its process ended with {process.returncode}")
        found[way] = Figures(**json.loads(output))
    return found


def measure_in_turns(
    size: str, names: tuple[str, ...], batch: int, repeats: int, device: torch.device
) -> dict[str, Figures]:
    """All ways in this process, but for their memory."""
    config = configuration(size)
    figures = measure_apart(size, names, batch, 0, at_once=False)
    ways = {way: Way(way, config, batch, device, torch.bfloat16) for way in names}
    reference, work = product(config.text_config, ways[names[0]].batch.input_ids.numel(), device)
    for action in (reference, *(made.step for made in ways.values())):
        action()
    for _ in range(repeats):
        for way, made in ways.items():
            made.step()  # in training a step follows its like, and finds its weights in the caches
            figures[way].times.append(seconds(made.step, device))
            figures[way].ceilings.append(work / seconds(reference, device))
    return figures


def show(size: str, batch: int, figures: dict[str, Figures], console: Console) -> None:
    """The table of one size."""
    with torch.device("meta"):
        millions = sum(p.numel() for p in Blip2ForConditionalGeneration(configuration(size)).parameters()) / 1e6
    plain = figures["plain"]
    ceiling = statistics.median(rate for found in figures.values() for rate in found.ceilings)
    table = Table(title=f"{size}: {millions:.0f} M parameters, batch {batch}, {torch.get_num_threads()} threads")
    for heading in ("", "ms a step", "samples/s", "faster", "of the ceiling", "memory, MB", "loss"):
        table.add_column(heading, justify="right" if heading else "left")
    for i, (way, found) in enumerate(figures.items(), 1):
        took = statistics.median(found.times)
        table.add_row(
            f"({i}) {way}", f"{1000 * took:.0f}", f"{batch / took:.1f}",
            f"{statistics.median(plain.times) / took:.2f}x", f"{found.needed / took / ceiling:.0%}",
            f"{found.memory / 1e6:.0f}", f"{found.loss:.4f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"ceiling {ceiling / 1e9:.0f} GFLOP/s in bfloat16; median of {len(plain.times)}; slowest and fastest of (1): "
        f"{1000 * max(plain.times):.0f} and {1000 * min(plain.times):.0f} ms\n"
    )


def show_eight_bits(
    names: tuple[str, ...], config: Blip2Config, rows: int, repeats: int, device: torch.device, console: Console
) -> None:
    """The rate of a product in the 8-bit format that was measured, if one was."""
    for form in (form for form in FORMATS if any(form in way.split(", ") for way in names)):
        reference, work = eight_bit_product(config.text_config, rows, device, form)
        reference()
        took = statistics.median(seconds(reference, device) for _ in range(repeats))
        console.print(f"a product in {form}, its scales included: {work / took / 1e12:.3f} TFLOP/s")


def full_size(
    name: str, names: tuple[str, ...], layers: int | None, batch: int, repeats: int, device: torch.device
) -> None:
    """Ours with the paper's parts at full size, random weights."""
    console = Console()
    config = paper_config(name, layers)
    reference, work = product(config.text_config, batch * 64, device)
    reference()
    ceiling = work / statistics.median(seconds(reference, device) for _ in range(repeats))
    table = Table(title=f"{name}, {config.text_config.num_hidden_layers} layers, batch {batch}, {device.type}")
    for heading in ("", "samples/s", "of the ceiling", "memory, GB", "5.12 M samples, hours"):
        table.add_column(heading, justify="right" if heading else "left")
    for way in names:
        made = Way(way, config, batch, device, torch.bfloat16)
        made.step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        took = statistics.median(seconds(made.step, device) for _ in range(repeats))
        needed = made.operations()
        table.add_row(
            way, f"{batch / took:.2f}", f"{needed / took / ceiling:.0%}", f"{peak_memory(device) / 1e9:.1f}",
            f"{PAPER_SAMPLES * took / batch / 3600:.1f}",
        )  # fmt: skip
        del made
        gc.collect()
    console.print(table)
    console.print(f"ceiling {ceiling / 1e12:.3f} TFLOP/s in bfloat16")
    show_eight_bits(names, config, batch * 64, repeats, device, console)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SHAPES)[:3], choices=list(SHAPES))
    parser.add_argument("--batch", type=int, help="pairs in a batch; 16 by default, 64 at full size")
    parser.add_argument("--repeats", type=int, default=5, help="of single steps")
    parser.add_argument("--steps", type=int, default=200, help="of whole runs")
    parser.add_argument("--quick", action="store_true", help="the pocket size only, three repeats")
    parser.add_argument("--compile", action="store_true", help="ours also with the LLM's layers compiled")
    parser.add_argument("--load-in", choices=list(FORMATS), help="ours also with frozen layers in 8 bits of this kind")
    parser.add_argument(
        "--ways",
        nargs="+",
        metavar="WAY",
        help="of those that are asked for, plain and these, by their names in the table",
    )
    parser.add_argument("--processor-time", action="store_true", help="one thread, while it has the processor")
    parser.add_argument("--model", choices=list(PAPER_LLMS), help="ours at full size, for a GPU")
    parser.add_argument("--layers", type=int, help="layers of the LLM with --model")
    parser.add_argument("--without", action="store_true", help="ours also without what makes it fast, one by one")
    parser.add_argument("--one-way", help=argparse.SUPPRESS)  # of a process that this script starts
    parser.add_argument("--one-run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() and not arguments.processor_time else "cpu")
    clock = time.thread_time if arguments.processor_time else time.perf_counter
    if arguments.processor_time:
        torch.set_num_threads(1)
    repeats = min(3, arguments.repeats) if arguments.quick else arguments.repeats
    if arguments.one_way:
        found = measure(arguments.sizes[0], arguments.one_way, arguments.batch, repeats, device, clock)
        print(json.dumps(asdict(found)))
        return
    if arguments.one_run:
        with tempfile.TemporaryDirectory() as folder:
            run = whole_run(
                arguments.sizes[0], arguments.one_run, arguments.batch, arguments.steps, device, Path(folder)
            )
        print(json.dumps(asdict(run)))
        return
    console = Console()
    models = [arguments.model] if arguments.model else []
    if device.type == "cuda" and not arguments.quick and not models:
        models = list(PAPER_LLMS)
    if not arguments.model:
        for size in arguments.sizes[:1] if arguments.quick else arguments.sizes:
            names = asked_for(arguments, device)
            batch = arguments.batch or 16
            steps = min(40, arguments.steps) if arguments.quick else arguments.steps
            if steps and not arguments.processor_time:
                whole = tuple(way for way in names if not way.startswith("ours, pictures") and way not in WITHOUT)
                show_whole_runs(size, batch, steps, whole, console)
            if not repeats:
                continue
            if arguments.processor_time:
                figures = measure_apart(size, names, batch, repeats, at_once=True)
            else:
                figures = measure_in_turns(size, names, batch, repeats, device)
            show(size, batch, figures, console)
            show_eight_bits(names, configuration(size), batch * 64, repeats, device, console)
    for name in models:
        names = tuple(way for way in asked_for(arguments, device) if way not in ("plain", "plain, autocast"))
        full_size(name, names, arguments.layers, arguments.batch or 64, arguments.repeats, device)


if __name__ == "__main__":
    main()
