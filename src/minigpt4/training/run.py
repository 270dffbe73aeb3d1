"""A training run, from a recipe to an alignment on disk: data, features, the loop, and what keeps it safe.

Whatever ends a run early (a kill, Ctrl-C, a full disk), the same command goes on from its last checkpoint with the
losses that the undisturbed run would have had. Everything it leaves lies in the recipe's `output`:
`recipe.yaml`, `metrics.jsonl`, `checkpoint.pt`, `curves.png` and, when it is done, `alignment/`.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.data.descriptions import read_annotations, read_descriptions
from minigpt4.data.pairs import find_shards, read_pairs
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.progress import progress_bar
from minigpt4.training.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from minigpt4.data.batches import Samples
    from minigpt4.data.features import FeatureCache
    from minigpt4.model.alignment import MiniGPT4

logger = logging.getLogger(__name__)

LEFTOVERS = ".*.tmp"  # what a run that is killed while it saves leaves behind


def train(recipe: Recipe, *, progress: bool = True) -> Path:
    """Carry out a recipe, or what is left of it; returns the directory of the resulting alignment.

    `progress` draws bars if stderr is a terminal.

    Raises:
        UserError: data or parts that are not there or do not fit, an `output` with another recipe's run, divergence,
            no space left.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once all is saved; its message says how to go on.
    """
    alignment = recipe.output / "alignment"
    _check_output(recipe)
    if (alignment / "alignment.json").is_file():
        logger.info("%s: already trained, nothing to do", alignment)
        return alignment
    _check_data(recipe)
    _make_output(recipe.output)
    with StopSignals() as stop:
        model = _load_model(recipe)
        samples, features = _prepare_data(recipe, model, stop, progress)
        _run_steps(recipe, model, samples, features, stop, progress)
    model.save_pretrained(alignment, overwrite=True)
    return alignment


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop at the next safe place; a second one acts at once."""

    def __init__(self) -> None:
        self.received = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, *_: object) -> None:
        self.received = True
        self.__exit__()

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came."""
        if self.received:
            raise KeyboardInterrupt(
                "stopped; the pictures encoded so far are kept, and the same command goes on from there"
            )


def _check_output(recipe: Recipe) -> None:
    """Refuse an output that holds something else than this recipe's run."""
    output, saved = recipe.output, recipe.output / "recipe.yaml"
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output}: is a file; give a directory")
    if not saved.is_file():
        if output.is_dir() and any(not path.match(LEFTOVERS) for path in output.iterdir()):
            raise UserError(f"output {output}: exists, and holds something else than a training run; give another one")
        return
    if not (output / "checkpoint.pt").is_file() and not (output / "alignment").is_dir():
        return  # nothing was trained yet, so nothing can be lost
    differing = Recipe.load(saved).differing_keys(recipe)
    if differing:
        raise UserError(
            f"output {output}: holds a run with another {', '.join(differing)}; "
            "give another output, or delete that directory to start again"
        )


def _make_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {output}: cannot be made ({error.strerror}); give another directory") from error


def _check_data(recipe: Recipe) -> None:
    """Raises UserError for data that are not there, before anything heavy is loaded."""
    if recipe.stage == 1:
        find_shards(recipe.data)
    else:
        read_annotations(recipe.data)


def _load_model(recipe: Recipe) -> MiniGPT4:
    from minigpt4.model.alignment import MiniGPT4, set_trainable
    from minigpt4.model.precision import resolve_device, resolve_dtype

    if recipe.device == "auto":
        raise UserError(
            "device=auto is for talking: what is offloaded cannot be trained through; give cpu, cuda or mps"
        )
    device = resolve_device(recipe.device)
    dtype = resolve_dtype(recipe.dtype or _fast_dtype(device), device)
    if recipe.init:
        model = MiniGPT4.from_pretrained(recipe.init, dtype=dtype, device=device, load_in=recipe.load_in)
    else:
        vision_qformer, llm, template = recipe.parts
        model = MiniGPT4.assemble(
            vision_qformer,
            llm,
            template=template,
            qformer=recipe.qformer,
            dtype=dtype,
            device=device,
            load_in=recipe.load_in,
            seed=recipe.seed,
        )
    if device.type == "cpu":
        # PyTorch's fused attention is slow backwards on a CPU at these lengths: it takes a third of a step in bfloat16.
        model.blip2.language_model.set_attn_implementation("eager")
    set_trainable(model, recipe.stage)
    return model.train()


def _fast_dtype(device: torch.device) -> str | None:
    """bfloat16 on a CPU that multiplies it in hardware; None leaves the choice to the device."""
    import torch

    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return "bfloat16" if device.type == "cpu" and fast else None


def _prepare_data(recipe: Recipe, model: MiniGPT4, stop: StopSignals, progress: bool) -> tuple[Samples, FeatureCache]:
    """The recipe's samples, their pictures' features all in the cache."""
    from minigpt4.data.batches import tokenise
    from minigpt4.data.features import FeatureCache, cache_features, features_fingerprint

    skipped: Counter[str] = Counter()
    pairs = read_pairs(recipe.data, skipped) if recipe.stage == 1 else read_descriptions(recipe.data, skipped)
    features = FeatureCache(recipe.feature_cache, features_fingerprint(model))
    usable = cache_features(model, features, pairs, skipped, progress=progress, check_stop=stop.check)
    if skipped:
        causes = ", ".join(f"{cause} {count}" for cause, count in skipped.most_common())
        logger.warning("data %s: %d pairs used; left out: %s", recipe.data, len(usable), causes)
    samples = tokenise(
        model.tokenizer,
        usable,
        recipe.instructions,
        max_text_tokens=recipe.max_text_tokens,
        num_query_tokens=model.num_query_tokens,
        image_token_id=model.image_token_id,
    )
    return samples, features


def _run_steps(
    recipe: Recipe, model: MiniGPT4, samples: Samples, features: FeatureCache, stop: StopSignals, progress: bool
) -> None:
    """The loop with its metrics, checkpoints and bar."""
    from minigpt4.data.batches import Batches
    from minigpt4.training.checkpoint import load_checkpoint, save_checkpoint
    from minigpt4.training.loop import make_optimizer, training_steps
    from minigpt4.training.metrics import Metrics, draw_curves

    output = recipe.output
    batches = Batches(samples, recipe.batch_size, recipe.seed)
    optimizer = make_optimizer(model, recipe)
    fingerprint = hashlib.sha256(
        f"{samples.fingerprint()} {model.vision_fingerprint} {model.llm_fingerprint}".encode()
    ).hexdigest()
    checkpoint = output / "checkpoint.pt"
    done = load_checkpoint(checkpoint, model, optimizer, fingerprint)
    for leftover in output.glob(LEFTOVERS):
        leftover.unlink()
    write_atomically(output / "recipe.yaml", recipe.to_yaml().encode())
    metrics = Metrics(output / "metrics.jsonl", done)
    if done:
        logger.info("going on from step %d of %d", done, recipe.steps)
    try:
        with progress_bar(progress) as bar:
            task = bar.add_task(f"stage {recipe.stage}", total=recipe.steps, completed=done, note="")
            for step in training_steps(model, optimizer, batches, features, recipe, done):
                metrics.add(step)
                done = step.step
                note = f"loss {step.loss:.3f}, {step.samples_per_second:.0f} samples/s"
                bar.update(task, completed=done, note=note)
                if done % recipe.save_every == 0 or done == recipe.steps or stop.received:
                    save_checkpoint(checkpoint, model, optimizer, done, fingerprint)
                    if bar.disable:
                        logger.info("step %d of %d: %s", done, recipe.steps, note)
                if stop.received and done < recipe.steps:
                    break
    finally:
        metrics.close()
    draw_curves(output / "metrics.jsonl", output / "curves.png", f"stage {recipe.stage}: {recipe.data}")
    if done < recipe.steps:
        raise KeyboardInterrupt(f"stopped at step {done} of {recipe.steps}; the same command goes on from there")
