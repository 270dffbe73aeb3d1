"""What shortens stage 1 without harm: `python tools/steps.py [--llms ...] [--seeds 3] [--steps 128]`.

The paper's schedule (a quarter of the steps to warm up, then a cosine down to 80 % of the peak, equal batches, weight
decay 0.05, the projection at random) trains the pocket projection through each LLM, at the better of two peaks. Then
each lever is tried alone with half of the samples, and the best start with a quarter and an eighth too: other
schedules, growing batches, other starts of the projection, and an average of its weights. What counts is the loss on
held-out pairs, and after how many steps it is where the paper's schedule ended.

Every run is a line of `runs.jsonl`, so the same command goes on where it was stopped; `--table` only prints.
`qwen3` and `mistral` are LLMs that are first grown from the pocket's captioning LM (`_small_llms.py`).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from _small_llms import FAMILIES, small_llm
from rich.console import Console
from rich.table import Table
from torch import Tensor

from minigpt4.data.batches import Batch, Batches, Samples, tokenise
from minigpt4.data.mixture import PairStream, Source
from minigpt4.minigpt4 import MiniGPT4
from minigpt4.model.loading import read_projection
from minigpt4.model.lora import set_trainable
from minigpt4.model.parts import load_llm
from minigpt4.model.projection import start_among_words
from minigpt4.training.features import FeatureCache, Prepare, cache_features, features_fingerprint, image_key
from minigpt4.training.loss import next_token_loss
from minigpt4.training.speed import make_fast
from pocket.data.training_sets import write_stage1

LLMS = ("pocket/language", "pocket/captioner", *FAMILIES)
BATCH, HELD_OUT = 16, 128
PAIRS = 3000  # that are drawn; the last are held out
PEAKS = (3e-3, 1e-2)
AVERAGE = 0.9  # decay of the average of the weights, a step
POINTS = 16  # looks at the held-out loss in a run as long as the paper's


@dataclass(frozen=True)
class Way:
    """How a run differs from the paper's: its share of the samples, schedule, peak, start, batches, average."""

    name: str
    length: float = 0.5
    warmup: float = 0.25  # share of the steps
    floor: float = 0.8  # where the cosine ends, as a share of the peak
    faster: float = 1.0  # times the peak
    start: str = "default"
    growth: bool = False  # an eighth of the samples in batches of a quarter, one of a half, the rest whole

    def tells_of(self, llm: str) -> bool:
        """False where the start would be the answer: BLIP-2's projection is into the captioning LM, and two LLMs are
        grown from that."""
        return self.start not in ("carried over", "translated", "fitted") or llm not in LLMS[1:]

    def phases(self, steps: int) -> list[tuple[int, int]]:
        """(steps, batch size) of each phase; all see the samples of `steps` whole batches."""
        eighth = steps // 8
        return [(4 * eighth, BATCH // 4), (2 * eighth, BATCH // 2), (steps - 2 * eighth, BATCH)] if self.growth else [
            (steps, BATCH)
        ]  # fmt: skip

    def rate(self, progress: float, peak: float) -> float:
        """The learning rate at this share of the steps."""
        peak *= self.faster
        if progress < self.warmup:
            return peak * (0.01 + 0.99 * progress / self.warmup)
        fallen = (progress - self.warmup) / (1 - self.warmup)
        return peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * fallen)))


PAPER = Way("the paper's schedule", length=1.0)
QUICK = Way("both", warmup=0.04, floor=0.02)
#: Those that tell most come first: each is run with all seeds before the next one is.
WAYS = (
    PAPER,
    Way("the paper's, half as long"),
    Way("start carried over", start="carried over"),
    Way("start carried over, a quarter", length=0.25, start="carried over"),
    Way("start carried over, an eighth", length=0.125, start="carried over"),
    Way("start translated", start="translated"),
    Way("start translated, a quarter", length=0.25, start="translated"),
    Way("start fitted", start="fitted"),
    Way("start fitted, a quarter", length=0.25, start="fitted"),
    Way("start fitted, an eighth", length=0.125, start="fitted"),
    Way("start regressed", start="regressed"),
    Way("start among words", start="among words"),
    Way("start at random, fitted", start="random, fitted"),
    Way("warm-up 4 %", warmup=0.04),
    Way("cosine to 2 %", floor=0.02),
    Way("batches of 4, 8, then 16", growth=True),
    Way("start rescaled", start="rescaled"),
    QUICK,
    replace(QUICK, name="both, carried over, a quarter", length=0.25, start="carried over"),
    replace(QUICK, name="both, peak x 3", faster=3.0),
    Way("start matched", start="matched"),
)


@dataclass
class Study:
    """One LLM with its samples, and the features of their pictures."""

    name: str
    model: MiniGPT4
    samples: Samples
    held_out: list[Batch]
    cache: FeatureCache

    @classmethod
    def prepare(cls, name: str, out: Path, pairs: int, llm_steps: int) -> Study:
        llm = small_llm(name, out / "llms", llm_steps) if name in FAMILIES else name
        model = MiniGPT4.assemble("pocket/vision", llm, template="pocket", device="cpu", dtype="bfloat16")
        set_trainable(model, 1)
        make_fast(model)
        data = out / "pairs"
        if not data.is_dir():
            write_stage1(data, PAIRS)
        drawn = list(PairStream([Source(str(data))], stage=1, seed=0, shuffle_buffer=0, repeat=False))
        cache = FeatureCache(out / "features", features_fingerprint(model))
        used = [*drawn[:pairs], *drawn[-HELD_OUT:]]
        cache_features(model, cache, map(Prepare(model.image_processor, cache.index), used))
        usable = [(image_key(pair.image), pair.text) for pair in used]

        def tokenised(some: list[tuple[bytes, str]]) -> Samples:
            return tokenise(
                model.tokenizer, some, (), max_text_tokens=64, num_query_tokens=model.num_query_tokens,
                image_token_id=model.image_token_id,
            )  # fmt: skip

        held_out = Batches(tokenised(usable[pairs:]), 32, 0)
        return cls(name, model, tokenised(usable[:pairs]), [held_out[i] for i in range(HELD_OUT // 32)], cache)

    @property
    def projection(self) -> torch.nn.Linear:
        return self.model.blip2.language_projection

    @cached_property
    def words(self) -> Tensor:
        """The LLM's word embeddings (vocabulary, d_llm)."""
        return self.model.blip2.language_model.get_input_embeddings().weight.detach().float()

    def loss(self) -> float:
        """Mean loss on the held-out pairs."""
        with torch.inference_mode():
            each = [next_token_loss(self.model, b, self.cache[b.images]).item() for b in self.held_out]
        return statistics.fmean(each)

    # -- starts of the projection

    def put_start(self, start: str, seed: int) -> None:
        """Reset the projection: at random from `seed`, then as `start` says.

        Those that are fitted have the mean and the spread of word embeddings; "regressed", "matched", "translated" and
        "rescaled" are as long as these, on average.
        """
        torch.manual_seed(seed)
        self.projection.reset_parameters()
        features = self.cache[self.samples.images[:1024]].float()
        if start in ("regressed", "matched"):
            self._put(self._regressed(features, matched=start == "matched"))
        elif start in ("carried over", "translated", "fitted"):
            self._put(self._carried_over())
        elif start == "among words":
            start_among_words(self.model)
        if start in ("fitted", "random, fitted"):
            self._fit_to_words(features)
        elif start in ("regressed", "matched", "translated", "rescaled"):
            with torch.no_grad():
                lengths = self.projection(features).norm(dim=-1).mean() / self.words.norm(dim=-1).mean()
                self.projection.weight /= lengths
                self.projection.bias /= lengths

    def _put(self, solved: Tensor) -> None:
        """`solved` (d_qformer + 1, d_llm): weight, and bias below it."""
        with torch.no_grad():
            self.projection.weight.copy_(solved[:-1].T)
            self.projection.bias.copy_(solved[-1])

    def _carried_over(self) -> Tensor:
        """BLIP-2's projection, through a ridge regression between both LLMs' embeddings of the words that both know."""
        theirs = load_llm("pocket/captioner", torch.float32)
        words, row = theirs.model.get_input_embeddings().weight.detach(), self.model.tokenizer.get_vocab()
        their_row = {word: n for word, n in theirs.tokenizer.get_vocab().items() if n < len(words)}
        shared = sorted(row.keys() & their_row.keys())
        carry = ridge(words[[their_row[word] for word in shared]], self.words[[row[word] for word in shared]])
        blip2 = read_projection("pocket-blip2")
        solved = torch.cat([blip2["weight"].float().T, blip2["bias"].float()[None]]) @ carry[:-1]
        solved[-1] += carry[-1]
        return solved

    @torch.no_grad()
    def _fit_to_words(self, features: Tensor) -> None:
        """Shift and scale the projection, so that image tokens have the mean and the spread of word embeddings.

        The spread is the mean distance from the mean.
        """
        made = self.projection(features).flatten(0, 1)
        spread, wanted = (x.sub(x.mean(0)).norm(dim=-1).mean() for x in (made, self.words))
        self.projection.weight.mul_(wanted / spread)
        self.projection.bias.sub_(made.mean(0)).mul_(wanted / spread).add_(self.words.mean(0))

    def _regressed(self, features: Tensor, matched: bool) -> Tensor:
        """Ridge regression of the caption's word embeddings on features (n, q, d): their mean for every query.

        `matched`: each query stands for one word of the caption, at first by its order, then whichever it fits best.
        """
        captions = [self.words[ids[:-1]] for ids in self.samples.targets[: len(features)]]
        count, queries = features.shape[:2]
        if not matched:
            return ridge(features, torch.stack([c.mean(0).expand(queries, -1) for c in captions]))
        order = torch.arange(queries)
        solved = ridge(features, torch.stack([c[order * len(c) // queries] for c in captions]))
        for _ in range(6):
            guesses = features @ solved[:-1] + solved[-1]
            nearest = [torch.cdist(g, c).argmin(1) for g, c in zip(guesses, captions, strict=True)]
            solved = ridge(features, torch.stack([captions[i][nearest[i]] for i in range(count)]))
        return solved

    def scales(self) -> str:
        """How far words, and image tokens of the carried-over start, lie from their means; how far a step moves one."""
        features = self.cache[self.samples.images[:1024]].float()
        self.put_start("carried over", 0)
        with torch.no_grad():
            made = self.projection(features).flatten(0, 1)
        words, tokens = (float((x - x.mean(0)).norm(dim=-1).mean()) for x in (self.words, made))
        reach, each = float(features.abs().sum(-1).mean()), words / self.words.shape[1] ** 0.5
        return (
            f"{self.name}: words lie {words:.2f} from their mean ({each:.3f} in a dimension), image tokens carried "
            f"over {tokens:.2f}, {tokens / words:.1f} times as far; features' magnitudes add up to {reach:.1f}, so a "
            f"step at a rate of 0.01 moves a token by up to {0.01 * reach / each:.1f} times the words' spread"
        )

    # -- a run

    def run(self, way: Way, peak: float, steps: int, seed: int) -> dict[str, Any]:
        """Train once. `curve` has [samples / BATCH, held-out loss, that of the averaged weights] at each look."""
        self.put_start(way.start, seed)
        whole = max(8, round(way.length * steps))
        phases = way.phases(whole)
        in_all, every = sum(count for count, _ in phases), steps / POINTS
        matrix, bias = self.projection.weight, self.projection.bias
        groups = [{"params": [matrix], "weight_decay": 0.05}, {"params": [bias], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.999))
        average = [p.detach().clone() for p in (matrix, bias)]
        curve = [[0.0, self.loss(), math.nan]]
        began, seen, done = time.process_time(), 0, 0
        for phase, (count, size) in enumerate(phases):
            batches = Batches(self.samples, size, (seed, phase))
            for number in range(count):
                for group in optimizer.param_groups:
                    group["lr"] = way.rate(done / in_all, peak)
                batch = batches[number]
                optimizer.zero_grad()
                next_token_loss(self.model, batch, self.cache[batch.images]).backward()
                optimizer.step()
                done, seen = done + 1, seen + size
                decay = min(AVERAGE, done / (done + 9))
                for kept, now in zip(average, (matrix, bias), strict=True):
                    kept.lerp_(now.detach(), 1 - decay)
                if seen // BATCH >= len(curve) * every or done == in_all:
                    curve.append([seen / BATCH, self.loss(), self._averaged_loss(average)])
        return {
            "llm": self.name, "way": way.name, "peak": peak, "steps": steps, "seed": seed, "curve": curve,
            "cpu_seconds": round(time.process_time() - began, 1),
        }  # fmt: skip

    def _averaged_loss(self, average: list[Tensor]) -> float:
        own = [p.detach().clone() for p in (self.projection.weight, self.projection.bias)]
        self._put(torch.cat([average[0].T, average[1][None]]))
        loss = self.loss()
        self._put(torch.cat([own[0].T, own[1][None]]))
        return loss


def ridge(x: Tensor, y: Tensor) -> Tensor:
    """Ridge regression with bias from x (..., d) to y (..., e): (d + 1, e), the bias last."""
    x, y = x.flatten(0, -2), y.flatten(0, -2)
    a = torch.cat([x, torch.ones(len(x), 1)], 1)
    gram = a.T @ a
    penalty = 1e-2 * gram.diagonal().mean()  # the mean squared norm of the regressors
    return torch.linalg.solve(gram + penalty * torch.eye(len(gram)), a.T @ y)


def read_runs(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def study(name: str, arguments: argparse.Namespace) -> None:
    """Carry out what is missing of an LLM's runs."""
    path = arguments.out / "runs.jsonl"
    setting: Study | None = None

    def result(way: Way, peak: float, seed: int) -> dict[str, Any]:
        nonlocal setting
        wanted = (name, way.name, peak, arguments.steps, seed)
        for run in read_runs(path):
            if (run["llm"], run["way"], run["peak"], run["steps"], run["seed"]) == wanted:
                return run
        setting = setting or Study.prepare(name, arguments.out, BATCH * arguments.steps, arguments.llm_steps)
        run = setting.run(way, peak, arguments.steps, seed)
        with path.open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(f"{name}, {way.name}, peak {peak:g}, seed {seed}: {run['curve'][-1][1]:.4f}", flush=True)
        return run

    peak = arguments.peak or min(PEAKS, key=lambda peak: result(PAPER, peak, 0)["curve"][-1][1])
    for way in WAYS if not arguments.only else [PAPER, *(way for way in WAYS if arguments.only in way.name)]:
        for seed in range(arguments.seeds):
            if way.tells_of(name):
                result(way, peak, seed)


def reached(run: dict[str, Any], loss: float, column: int = 1) -> float:
    """After how many steps' worth of samples a run is at `loss`, between two looks by a straight line; else inf."""
    if run["curve"][0][1] <= loss:
        return 0.0
    for before, after in zip(run["curve"], run["curve"][1:], strict=False):
        if after[column] <= loss:
            start = before[column]
            share = 1.0 if not start > after[column] else min(1.0, (start - loss) / (start - after[column]))
            return before[0] + share * (after[0] - before[0])
    return math.inf


def tables(runs: list[dict[str, Any]]) -> Iterator[Table]:
    """For each LLM and peak every way's last held-out loss, and its steps to where the paper's schedule ends."""
    for name, peak in dict.fromkeys((run["llm"], run["peak"]) for run in runs if run["way"] != PAPER.name):
        mine = [run for run in runs if run["llm"] == name]
        base = {run["seed"]: run for run in mine if run["way"] == PAPER.name and run["peak"] == peak}
        table = Table(title=f"{name}: peak {peak:g}, {next(iter(base.values()))['steps']} steps of {BATCH}")
        for column in ("", "steps", "held-out loss", "averaged", "steps to the paper's end", "averaged"):
            table.add_column(column, justify="left" if not column else "right")
        for way in WAYS:
            of_way = [run for run in mine if run["way"] == way.name and run["peak"] == peak and run["seed"] in base]
            if not (of_way and way.tells_of(name)):
                continue
            cells = [way.name, f"{of_way[0]['curve'][-1][0]:.0f}"]
            cells += [_spread([run["curve"][-1][column] for run in of_way], "{:.4f}") for column in (1, 2)]
            for column in (1, 2):
                steps = [reached(run, base[run["seed"]]["curve"][-1][1], column) for run in of_way]
                cells.append(_spread(steps, "{:.0f}"))
            table.add_row(*cells)
        yield table


def _spread(values: list[float], form: str) -> str:
    """The median, and from where to where the seeds go; "-" for what is never reached."""
    if not any(map(math.isfinite, values)):
        return "-"
    middle, *ends = (statistics.median(values), min(values), max(values))
    shown = [form.format(value) if math.isfinite(value) else "-" for value in (middle, *ends)]
    return f"{shown[0]} ({shown[1]} to {shown[2]})" if len(values) > 1 else shown[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llms", nargs="+", default=LLMS, help=f"of {', '.join(LLMS)}, or directories of others")
    parser.add_argument("--peak", type=float, help="the learning rate; by default the better of two")
    parser.add_argument("--only", metavar="TEXT", help="the paper's schedule, and ways with this in their names")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=128, help="of the paper's schedule, in batches of 16")
    parser.add_argument("--llm-steps", type=int, default=60, help="batches of text for each small LLM")
    parser.add_argument("--out", type=Path, default=Path("runs/steps"))
    parser.add_argument("--scales", action="store_true", help="only print how long the carried-over start is")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.scales:
        for name in arguments.llms:
            print(Study.prepare(name, arguments.out, BATCH * arguments.steps, arguments.llm_steps).scales())
        return
    if not arguments.table:
        for name in arguments.llms:
            study(name, arguments)
    for table in tables(read_runs(arguments.out / "runs.jsonl")):
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
