"""A training run, from a recipe to an alignment on disk. `train` lists its steps; the loop itself is in `loop.py`.

If a run ends early (a kill, Ctrl-C, a full disk), the same command continues from its last checkpoint, with the losses
that an undisturbed run would have had. Its files lie in the recipe's `output`: `recipe.yaml`, `metrics.jsonl`,
`checkpoints/`, `curves.png`, `summary.md` and, when it is done, `alignment/`.
"""

import logging
import math
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from minigpt4.data.mixture import check_skipped
from minigpt4.errors import UserError
from minigpt4.files import write_atomically
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.lora import Trained, set_trainable
from minigpt4.model.precision import free_large_tensors_at_once, keep_freed_memory, training_dtype
from minigpt4.model.projection import start_among_words
from minigpt4.model.quantization import check_load_in, quantize_linears
from minigpt4.progress import progress_bar
from minigpt4.stopping import StopSignals
from minigpt4.training import speed
from minigpt4.training.checkpoint import Checkpoints, Position
from minigpt4.training.checks import LEFTOVERS, check_all, compute_dtype, rows_per_process
from minigpt4.training.distributed import Processes
from minigpt4.training.loader import joined, make_loader, read_ahead
from minigpt4.training.loop import Step, make_optimizer, make_scaler, training_steps
from minigpt4.training.recipe import Recipe
from minigpt4.training.report import add_line, draw_curves, keep_lines, write_summary

logger = logging.getLogger(__name__)

#: Of a blind guess's loss. The pocket world's captions start at 0.5 of it, photographs' at 0.3 for the photo model, and
#: texts of which an LLM learnt nothing at 0.96 and more.
BLIND = 0.8
STOPPING = "stopping after this step, with a checkpoint; a second Ctrl-C or SIGTERM ends the run now, without one"


def train(recipe: Recipe, *, progress: bool = True) -> Path:
    """Carry out a recipe, or what is left of it; returns the directory of the resulting alignment.

    Under `torchrun` every process calls this. `progress` draws bars if stderr is a terminal. Raises UserError for parts
    or data that are missing or do not fit, another run in `output`, divergence, or a full disk; KeyboardInterrupt after
    Ctrl-C or SIGTERM, when all is saved: its message says how to continue.
    """
    alignment = recipe.output / "alignment"
    processes = Processes(recipe.device, recipe.trackers, recipe.output)
    rows_per_process(recipe, processes.world)
    with ExitStack() as lock:
        if processes.on_main(lambda: check_all(recipe, lock)):
            logger.info("%s: already trained, nothing to do", alignment)
            return alignment
        with StopSignals(STOPPING) as stop:
            run = Run(recipe, processes, stop, progress)
            run.resume()
            run.take_steps()
            run.report()
        if processes.is_main:
            run.model.save_pretrained(alignment, overwrite=True)
    return alignment


def load_to_train(recipe: Recipe, processes: Processes) -> MiniGPT4:
    """The recipe's model on this process's device: frozen, but for what its stage trains, and made fast."""
    device = processes.device
    check_load_in(recipe.vision_load_in, device, "vision_load_in")  # before anything is loaded
    if device.type == "cpu":
        speed.keep_little_code()
    placement: dict[str, Any] = {"dtype": compute_dtype(recipe, device), "device": device, "load_in": recipe.load_in}
    if recipe.init:
        model = MiniGPT4.from_pretrained(recipe.init, **placement)
    else:
        vision_qformer, llm, template = recipe.parts
        model = MiniGPT4.assemble(
            vision_qformer, llm, template=template, qformer=recipe.qformer, group=recipe.group, seed=recipe.seed,
            trained=Trained(recipe.projection_layers, recipe.train_qformer, recipe.lora_rank), **placement,
        )  # fmt: skip
        start_among_words(model)
    if model.trained.qformer and not recipe.stream:
        raise UserError(f"{recipe.init}: its Q-Former is trained too, so features cannot be cached; set stream=true")
    if device.type == "cpu":
        free_large_tensors_at_once()  # as while it was read: images are encoded next
    if recipe.vision_load_in:
        quantize_linears(recipe.vision_load_in, model.blip2.vision_model)
    set_trainable(model, recipe.stage)
    if recipe.shard_llm:
        processes.shard(model.blip2.language_model)
    speed.make_fast(model, _choose_compile(recipe, model, processes) if recipe.compile is None else recipe.compile)
    if "int8" in (recipe.load_in, recipe.vision_load_in) and not model.compiled and processes.is_main:
        logger.warning("int8 without compile=true is slower than bfloat16; add it, unless the run is a short one")
    return model.train()


def _choose_compile(recipe: Recipe, model: MiniGPT4, processes: Processes) -> bool:
    """As the run began, if it did; else whether compiling saves more than it takes. Says what was chosen and why."""
    begun = any(recipe.output.glob("checkpoints/*.pt"))
    tokens = recipe.num_samples / processes.world * (model.num_query_tokens + recipe.max_text_tokens / 2)
    untried = recipe.shard_llm or recipe.load_in in ("8bit", "4bit") or model.lora or model.device.type != "cpu"
    saved = 0.0 if untried else speed.saved_by_compiling(model, tokens)
    compiled = bool(Recipe.load(recipe.output / "recipe.yaml").compile) if begun else saved > speed.COMPILING
    why = f"that takes some {speed.COMPILING} s, and saves some {saved:,.0f} s" if saved else "not tried here"
    if processes.is_main:
        fast = "" if recipe.dtype or not training_dtype(model.device) else ", which this CPU multiplies fast"
        dtype, how = str(model.dtype).removeprefix("torch."), "compiled" if compiled else "not compiled"
        logger.info("computing in %s%s; layers %s: %s", dtype, fast, how, "as the run began" if begun else why)
    return compiled


class Run:
    """A run: its model, data, optimizer and files. `done` counts the steps that are finished."""

    def __init__(self, recipe: Recipe, processes: Processes, stop: StopSignals, progress: bool) -> None:
        """Loads the model, and brings the images' features into the cache unless the recipe streams them."""
        self.model = load_to_train(recipe, processes)
        self.recipe = recipe.model_copy(update={"compile": self.model.compiled})  # a run that goes on does the same
        self.processes, self.stop, self.progress = processes, stop, progress
        self.loader, data = make_loader(recipe, self.model, processes, stop, progress)
        self.optimizer, self.scaler = make_optimizer(self.model, recipe), make_scaler(self.model)
        marks = {"data": data, "vision side": self.model.vision_fingerprint, "LLM": self.model.llm_fingerprint}
        self.checkpoints = Checkpoints(recipe.output / "checkpoints", recipe.save_total_limit, marks)
        self.done = 0
        self._losses: list[float] = []  # since the last checkpoint
        self._data_state: dict[str, Any] | None = None

    def resume(self) -> None:
        """Continue from the last checkpoint, if there is one: weights, optimizer, place in the data."""
        position = self.checkpoints.load(self.model, self.optimizer, self.scaler)
        self.done = position.step
        if self.done and self.recipe.stream:
            self._data_state = joined(position.loaders)
        if self.done and self.processes.is_main:
            logger.info("continuing from step %d of %d", self.done, self.recipe.steps)

    def take_steps(self) -> None:
        """Train up to the last step, or until a signal asks to stop; log, save and sample on the way."""
        recipe, is_main = self.recipe, self.processes.is_main
        if self.processes.device.type == "cpu":
            keep_freed_memory()
        loaded = read_ahead(self.loader.start(self.done, self._data_state))
        with closing(loaded), self._logs(), progress_bar(self.progress and is_main) as bar:
            task = bar.add_task(f"stage {recipe.stage}", total=recipe.steps, completed=self.done, note="")
            for step in training_steps(
                self.model, self.optimizer, self.scaler, loaded, recipe, self.processes, self.stop, self.done
            ):
                self.done = step.step
                self._log(step)
                bar.update(task, completed=self.done, note=_note(step))
                if self.done % recipe.save_every == 0 or self.done == recipe.steps or step.stop:
                    self._save(step)
                    if is_main and bar.disable:
                        logger.info("step %d of %d: %s, %s", self.done, recipe.steps, _note(step), _more(step, recipe))
                if recipe.sample_every and self.done % recipe.sample_every == 0:
                    self._sample()
                if step.stop and self.done < recipe.steps:
                    break

    def report(self) -> None:
        """Write curves and summary. Raises KeyboardInterrupt if steps are left, UserError if the data were too bad."""
        recipe = self.recipe
        skipped = sum(map(Counter, self.processes.gather(self.loader.skipped)), Counter[str]())
        if self.processes.is_main:
            title = f"stage {recipe.stage}: {recipe.data_named}"
            draw_curves(recipe.output / "metrics.jsonl", recipe.output / "curves.png", title)
            write_summary(recipe, self.processes, skipped)
        if self.done < recipe.steps:
            raise KeyboardInterrupt(f"stopped at step {self.done} of {recipe.steps}; the same command continues there")
        check_skipped(recipe.data_named, sum(self.processes.gather(self.loader.seen)), skipped, recipe.max_skipped)

    @contextmanager
    def _logs(self) -> Iterator[None]:
        """The metrics file (in the main process) and the trackers, which are ended whatever happens."""
        output = self.recipe.output
        if self.processes.is_main:
            for leftover in (*output.glob(LEFTOVERS), *output.glob(f"checkpoints/{LEFTOVERS}")):
                leftover.unlink()
            write_atomically(output / "recipe.yaml", self.recipe.to_yaml().encode())
            for lines in filter(Path.is_file, (output / "metrics.jsonl", output / "samples.jsonl")):
                keep_lines(lines, self.done)
        self.processes.start_trackers(output, self.recipe.model_dump(mode="json"))
        try:
            yield
        finally:
            self.processes.end_trackers()

    def _log(self, step: Step) -> None:
        self._losses.append(step.loss)
        recipe, guess = self.recipe, math.log(self.model.blip2.config.text_config.vocab_size)
        if step.step == 1 and step.loss > BLIND * guess and self.processes.is_main:
            told = "data %s: the first loss, %.1f, is near a blind guess's, %.1f: choose an LLM that learnt such texts"
            logger.warning(f"{told} (minigpt4 data inspect --model)", recipe.data_named, step.loss, guess)
        figures = step.figures()
        if self.processes.is_main:
            add_line(recipe.output / "metrics.jsonl", {"step": step.step, **figures})
        self.processes.track(figures, step.step)

    def _save(self, step: Step) -> None:
        loaders = tuple(self.processes.gather(step.loader))
        position = Position(step.step, statistics.fmean(self._losses), loaders)
        self._losses.clear()
        if self.processes.is_main:
            self.checkpoints.save(position, self.model, self.optimizer, self.scaler)

    def _sample(self) -> None:
        """Add answers about the recipe's images to `samples.jsonl`. If the LLM is sharded, all processes take part."""
        recipe = self.recipe
        if not (self.processes.is_main or recipe.shard_llm):
            return
        images = list(recipe.sample_images)
        answers = self.model.generate(images, [recipe.sample_prompt] * len(images), do_sample=False, max_new_tokens=80)
        self.model.train()
        if self.processes.is_main:
            for image, answer in zip(images, answers, strict=True):
                add_line(recipe.output / "samples.jsonl", {"step": self.done, "picture": image, "answer": answer})
                logger.info("step %d, %s: %s", self.done, image, answer)


def _note(step: Step) -> str:
    return f"loss {step.loss:.3f}, {step.samples_per_second:.0f} samples/s"


def _more(step: Step, recipe: Recipe) -> str:
    left = (recipe.steps - step.step) * recipe.batch_size / step.samples_per_second
    mfu = "" if step.mfu is None else f"MFU {step.mfu:.0%}, "
    return (
        f"{step.tokens_per_second:.0f} tokens/s, {mfu}waiting for data {step.data_wait:.0%}, "
        f"{step.memory_mb:.0f} MB, {left / 60:.0f} min left"
    )
