"""A training run, from a recipe to an alignment on disk: data, features, the loop, and what keeps it safe.

Whatever ends a run early (a kill, Ctrl-C, a full disk), the same command goes on from its last checkpoint with the
losses that the undisturbed run would have had. Everything it leaves lies in the recipe's `output`: `recipe.yaml`,
`metrics.jsonl`, `checkpoints/`, `curves.png`, `summary.md` and, when it is done, `alignment/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.errors import UserError
from minigpt4.files import full_disk_is_a_user_error, only_process, write_atomically
from minigpt4.progress import progress_bar
from minigpt4.stopping import StopSignals
from minigpt4.training.recipe import Recipe

if TYPE_CHECKING:
    from minigpt4.data.batches import Samples
    from minigpt4.data.features import FeatureCache
    from minigpt4.data.mixture import Source
    from minigpt4.data.pairs import Pair
    from minigpt4.model.alignment import MiniGPT4
    from minigpt4.training.loader import CachedLoader, Loaded, StreamedLoader
    from minigpt4.training.loop import Step
    from minigpt4.training.processes import Processes

logger = logging.getLogger(__name__)

LEFTOVERS = ".*.tmp"  # what a run that is killed while it saves leaves behind


def train(recipe: Recipe, *, progress: bool = True) -> Path:
    """Carry out a recipe, or what is left of it; returns the directory of the resulting alignment.

    Under `torchrun` every process calls this. `progress` draws bars if stderr is a terminal.

    Raises:
        UserError: data or parts that are not there or do not fit, an `output` with another recipe's run or at which
            another process is at work, divergence, no space left.
        KeyboardInterrupt: Ctrl-C or SIGTERM, once all is saved; its message says how to go on.
    """
    from minigpt4.training.loader import rows_of_each
    from minigpt4.training.processes import Processes

    alignment = recipe.output / "alignment"
    processes = Processes(recipe.device, recipe.trackers, recipe.output)
    rows_of_each(recipe, processes.world)

    def prepare() -> bool:
        check_output(recipe)
        if (alignment / "alignment.json").is_file():
            logger.info("%s: already trained, nothing to do", alignment)
            return True
        check_data(recipe)
        _check_llm(recipe)
        _make_output(recipe.output)
        held.enter_context(only_process(recipe.output, "train"))
        return False

    with ExitStack() as held:
        if processes.on_main(prepare):
            return alignment
        with StopSignals() as stop:
            model = _load_model(recipe, processes)
            loader, data = _prepare_data(recipe, model, processes, stop, progress)
            _run_steps(recipe, model, loader, data, processes, stop, progress)
        if processes.is_main:
            model.save_pretrained(alignment, overwrite=True)
    return alignment


def check_output(recipe: Recipe) -> None:
    """Refuse an output that holds something else than this recipe's run."""
    output, saved = recipe.output, recipe.output / "recipe.yaml"
    if output.exists() and not output.is_dir():
        raise UserError(f"output {output}: is a file; give a directory")
    if not saved.is_file():
        if output.is_dir() and any(
            not path.match(LEFTOVERS) for path in output.iterdir() if path.name != ".train.lock"
        ):
            raise UserError(f"output {output}: exists, and holds something else than a training run; give another one")
        return
    if not any(output.glob("checkpoints/*.pt")) and not (output / "alignment").is_dir():
        return  # nothing was trained yet, so nothing can be lost
    differing = Recipe.load(saved).differing_keys(recipe)
    if differing:
        raise UserError(
            f"output {output}: holds a run with another {', '.join(differing)}; "
            "give another output, or delete that directory to start again"
        )


def _check_llm(recipe: Recipe) -> None:
    """Refuse to go on with another LLM than the checkpoints' before it is loaded."""
    from minigpt4.model.parts import llm_fingerprint
    from minigpt4.model.record import read_record
    from minigpt4.model.sources import resolve
    from minigpt4.training.checkpoint import check_checkpoints

    if any(recipe.output.glob("checkpoints/*.pt")):
        mark = read_record(resolve(recipe.init))[0].llm_fingerprint if recipe.init else llm_fingerprint(recipe.parts[1])
        check_checkpoints(recipe.output / "checkpoints", {"LLM": _digest(mark)})


def _digest(mark: str) -> str:
    return hashlib.sha256(mark.encode()).hexdigest()


def _make_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output {output}: cannot be made ({error.strerror}); give another directory") from error


def check_data(recipe: Recipe) -> None:
    """Raises UserError for data, or a projection to start from, that are not there; nothing heavy is loaded."""
    from minigpt4.data.mixture import check_sources

    check_sources(mixture(recipe), recipe.stage)
    if recipe.projection_from:
        from minigpt4.model.start import check_projection_from

        check_projection_from(recipe.projection_from)


def mixture(recipe: Recipe) -> list[Source]:
    """The recipe's data as the stream of pairs takes them."""
    from minigpt4.data.mixture import Source

    return [Source(source.path, source.weight, source.caption_key) for source in recipe.sources]


def compute_dtype(recipe: Recipe, device: Any) -> Any:
    """The dtype of the frozen weights: the recipe's, else bfloat16 on CUDA and on a CPU that multiplies it fast."""
    from minigpt4.model.precision import resolve_dtype, training_dtype

    return resolve_dtype(recipe.dtype or training_dtype(device), device)


def _load_model(recipe: Recipe, processes: Processes) -> MiniGPT4:
    from minigpt4.model.adapters import Trained
    from minigpt4.model.alignment import MiniGPT4, set_trainable
    from minigpt4.model.eight_bits import hold_in
    from minigpt4.model.precision import check_load_in, free_large_tensors_at_once
    from minigpt4.model.start import carry_projection, start_among_words
    from minigpt4.training.fast import make_fast

    device = processes.device
    check_load_in(recipe.vision_load_in, device, "vision_load_in")  # before anything is loaded
    if "int8" in (recipe.load_in, recipe.vision_load_in) and not recipe.compile and processes.is_main:
        logger.warning("int8 without compile=true is slower than bfloat16: add it, if the run is not a short one")
    if device.type == "cpu":
        free_large_tensors_at_once()
    where: dict[str, Any] = {
        "dtype": compute_dtype(recipe, device), "device": device, "load_in": recipe.load_in,
    }  # fmt: skip
    if recipe.init:
        model = MiniGPT4.from_pretrained(recipe.init, **where)
    else:
        vision_qformer, llm, template = recipe.parts
        trained = Trained(recipe.projection_layers, recipe.train_qformer, recipe.lora_rank)
        model = MiniGPT4.assemble(
            vision_qformer, llm, template=template, qformer=recipe.qformer, trained=trained, seed=recipe.seed, **where
        )
        if recipe.projection_from:
            carry_projection(model, recipe.projection_from)
        else:
            start_among_words(model)
    if model.trained.qformer and not recipe.stream:
        raise UserError(f"{recipe.init}: its Q-Former is trained too, so features cannot be cached; set stream=true")
    if recipe.vision_load_in:
        hold_in(recipe.vision_load_in, model.blip2.vision_model)
    set_trainable(model, recipe.stage)
    if recipe.shard_llm:
        processes.shard(model.blip2.language_model)
    make_fast(model, recipe.compile)
    return model.train()


def _prepare_data(
    recipe: Recipe, model: MiniGPT4, processes: Processes, stop: StopSignals, progress: bool
) -> tuple[CachedLoader | StreamedLoader, str]:
    """What gives each step's batch, and a fingerprint of the data."""
    from minigpt4.data.batches import Batches, tokenise
    from minigpt4.data.mixture import PairStream, judge, tell
    from minigpt4.data.sources import open_source
    from minigpt4.training.loader import CachedLoader, StreamedLoader

    open_stream = partial(
        PairStream, mixture(recipe), stage=recipe.stage, seed=recipe.seed, max_skipped_share=recipe.max_skipped
    )
    tokenised = partial(
        tokenise,
        model.tokenizer,
        instructions=recipe.instructions,
        max_text_tokens=recipe.max_text_tokens,
        num_query_tokens=model.num_query_tokens,
        image_token_id=model.image_token_id,
        template=model.template,
    )
    if recipe.stream:
        once_opened = partial(open_stream, readers=[open_source(source) for source in mixture(recipe)])
        streamed = StreamedLoader(
            once_opened, model.image_processor, tokenised, recipe, processes.rank, processes.world
        )
        return streamed, f"stream {recipe.sources}"
    pairs = open_stream(shuffle_buffer=0, repeat=False)
    usable, features = _features(recipe, model, pairs, processes, stop, progress)
    # Every process goes through all pairs, but tries to open its share of the pictures only.
    unreadable = sum(processes.gather(pairs.skipped["unreadable picture"]))
    skipped = +Counter({**pairs.skipped, "unreadable picture": unreadable})
    if skipped and processes.is_main:
        logger.warning("data: %d pairs used; left out: %s", len(usable), tell(skipped))
    samples: Samples = tokenised(usable)
    batches = Batches(samples, recipe.batch_size, recipe.seed)
    loader = CachedLoader(batches, features, processes.rank, processes.world)
    if processes.is_main:
        loader.skipped, loader.seen = dict(skipped), len(usable) + skipped.total()
    judge(recipe.data_named, len(usable) + skipped.total(), skipped, recipe.max_skipped)
    return loader, samples.fingerprint()


def _features(
    recipe: Recipe, model: MiniGPT4, pairs: Any, processes: Processes, stop: StopSignals, progress: bool
) -> tuple[list[tuple[bytes, Pair]], FeatureCache]:
    """(picture key, pair without its picture) of every usable pair, their features all in the cache.

    Of several processes each encodes its share, and then reads what the others have.
    """
    from minigpt4.data.features import FeatureCache, cache_features, features_fingerprint, picture_key

    fingerprint = features_fingerprint(model)
    seen: list[tuple[bytes, Pair]] = []

    def noted() -> Iterator[Pair]:
        for pair in pairs:
            seen.append((picture_key(pair.picture), replace(pair, picture=b"")))
            yield pair

    cache = FeatureCache(recipe.feature_cache, fingerprint)
    mine = islice(noted(), processes.rank, None, processes.world)
    cache_features(model, cache, mine, pairs.skipped, progress=progress and processes.is_main, check_stop=stop.check)
    if processes.world > 1:
        processes.gather(None)  # wait for the others
        cache = FeatureCache(recipe.feature_cache, fingerprint)
    return [(key, pair) for key, pair in seen if key in cache], cache


def _run_steps(
    recipe: Recipe,
    model: MiniGPT4,
    loader: CachedLoader | StreamedLoader,
    data: str,
    processes: Processes,
    stop: StopSignals,
    progress: bool,
) -> None:
    """The loop with its metrics, checkpoints and bar."""
    from minigpt4.data.mixture import judge
    from minigpt4.model.precision import keep_freed_memory
    from minigpt4.training.checkpoint import Checkpoints, Position
    from minigpt4.training.loader import joined, read_ahead
    from minigpt4.training.loop import make_optimizer, make_scaler, training_steps
    from minigpt4.training.metrics import draw_curves
    from minigpt4.training.summary import write_summary

    output = recipe.output
    optimizer, scaler = make_optimizer(model, recipe), make_scaler(model)
    marks = {"data": data, "vision side": model.vision_fingerprint, "LLM": model.llm_fingerprint}
    digests = {what: _digest(mark) for what, mark in marks.items()}
    checkpoints = Checkpoints(output / "checkpoints", recipe.keep_checkpoints, digests)
    position = checkpoints.load(model, optimizer, scaler)
    done = position.step
    state = joined(position.loaders) if recipe.stream and done else None
    metrics = _open_files(recipe, done) if processes.is_main else None
    if done and processes.is_main:
        logger.info("going on from step %d of %d", done, recipe.steps)
    processes.start_trackers("minigpt4", output, recipe.model_dump(mode="json"))
    if processes.device.type == "cpu":
        keep_freed_memory()
    ahead = read_ahead(loader.start(done, state))
    loaded: Iterator[Loaded] = ahead
    losses: list[float] = []
    try:
        if recipe.projection_from and not done:
            first = next(ahead)
            _fit_projection(recipe, model, first, processes)
            loaded = chain([first], ahead)
        with progress_bar(progress and processes.is_main) as bar:
            task = bar.add_task(f"stage {recipe.stage}", total=recipe.steps, completed=done, note="")
            steps = training_steps(
                model, optimizer, loaded, recipe, done, processes=processes, scaler=scaler, stop=stop
            )
            for step in steps:
                done = step.step
                losses.append(step.loss)
                if metrics:
                    metrics.add(step)
                processes.track({k: v for k, v in step.figures().items() if k != "step"}, done)
                note = f"loss {step.loss:.3f}, {step.samples_per_second:.0f} samples/s"
                bar.update(task, completed=done, note=note)
                if done % recipe.save_every == 0 or done == recipe.steps or step.stop:
                    position = Position(done, statistics.fmean(losses), tuple(processes.gather(step.loader)))
                    losses.clear()
                    if processes.is_main:
                        checkpoints.save(position, model, optimizer, scaler)
                        if bar.disable:
                            logger.info("step %d of %d: %s, %s", done, recipe.steps, note, _more(step, recipe))
                if recipe.sample_every and done % recipe.sample_every == 0:
                    _sample(recipe, model, done, processes)
                if step.stop and done < recipe.steps:
                    break
    finally:
        ahead.close()
        if metrics:
            metrics.close()
        processes.end_trackers()
    skipped: Counter[str] = Counter()
    for each in processes.gather(loader.skipped):
        skipped.update(each)
    if processes.is_main:
        draw_curves(output / "metrics.jsonl", output / "curves.png", f"stage {recipe.stage}: {recipe.data_named}")
        write_summary(recipe, processes, skipped)
    if done < recipe.steps:
        raise KeyboardInterrupt(f"stopped at step {done} of {recipe.steps}; the same command goes on from there")
    judge(recipe.data_named, sum(processes.gather(loader.seen)), skipped, recipe.max_skipped)


def _fit_projection(recipe: Recipe, model: MiniGPT4, first: Loaded, processes: Processes) -> None:
    """Let what a projection from elsewhere makes of the first batch have the mean and the spread of words."""
    import torch

    from minigpt4.model.start import fit_to_words
    from minigpt4.training.loop import features_of

    of_each = processes.gather(features_of(model, first, recipe.accumulate).cpu())
    fit_to_words(model, torch.cat(of_each).to(model.device))


def _open_files(recipe: Recipe, done: int) -> Any:
    """Leave in the output what belongs to this run up to step `done`, and open its metrics."""
    from minigpt4.training.metrics import Metrics

    for leftover in (*recipe.output.glob(LEFTOVERS), *recipe.output.glob(f"checkpoints/{LEFTOVERS}")):
        leftover.unlink()
    write_atomically(recipe.output / "recipe.yaml", recipe.to_yaml().encode())
    return Metrics(recipe.output / "metrics.jsonl", done)


def _more(step: Step, recipe: Recipe) -> str:
    """Further figures of a step, and the time that is left."""
    left = (recipe.steps - step.step) * recipe.batch_size / step.samples_per_second
    mfu = "" if step.mfu is None else f"MFU {step.mfu:.0%}, "
    return (
        f"{step.tokens_per_second:.0f} tokens/s, {mfu}waiting for data {step.data_wait:.0%}, "
        f"{step.memory_mb:.0f} MB, {left / 60:.0f} min left"
    )


def _sample(recipe: Recipe, model: MiniGPT4, step: int, processes: Processes) -> None:
    """Answers about the fixed pictures, added to `samples.jsonl`. With a shared-out LLM all processes take part."""
    if not (processes.is_main or recipe.shard_llm):
        return
    pictures = list(recipe.sample_pictures)
    answers = model.generate(pictures, [recipe.sample_prompt] * len(pictures), do_sample=False, max_new_tokens=80)
    model.train()
    if processes.is_main:
        path = recipe.output / "samples.jsonl"
        with full_disk_is_a_user_error(path), path.open("a", encoding="utf-8") as file:
            for picture, answer in zip(pictures, answers, strict=True):
                file.write(json.dumps({"step": step, "picture": picture, "answer": answer}) + "\n")
                logger.info("step %d, %s: %s", step, picture, answer)
