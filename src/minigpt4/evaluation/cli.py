"""`minigpt4 eval ...`: parsing and printing only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4.errors import UserError

if TYPE_CHECKING:
    from minigpt4.evaluation.judges import Judge
    from minigpt4.evaluation.suite import Suite

eval_ = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure models side by side: abilities, reliability, and more, on your data or on pocket pictures.\n\n"
    "Every MODEL is pocket, pocket-stage1, pocket-blip2, the directory or hub id of an alignment, an export or any "
    "BLIP-2, or openai:URL#NAME; LABEL=MODEL gives it a name in the table. A run that was stopped goes on.\n\n"
    "\b\n"  # keeps the lines as they are
    "Examples:\n"
    "  minigpt4 eval abilities pocket pocket-stage1 pocket-blip2\n"
    "  minigpt4 eval reliability before=runs/stage1/alignment after=runs/stage2/alignment --data photos\n"
    "  minigpt4 eval coverage pocket other=openai:http://127.0.0.1:8000/v1#my-llm\n"
    "  minigpt4 eval abilities pocket pocket-blip2 --judge people",
)

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models to compare, as LABEL=MODEL if you like.")]
Out = Annotated[Path, typer.Option(help="Where the results go, in a directory named by the suite.")]
Samples = Annotated[int, typer.Option(min=1, help="Answers to every question; needs a temperature.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the likeliest word.")]
Seed = Annotated[int, typer.Option(help="Makes answers at a temperature above 0 repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each task.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions that a local model answers together.")]
Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Questions under way at an endpoint.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for one answer of an endpoint.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on CUDA, else float32.")]
LoadIn = Annotated[str | None, typer.Option(help="Hold the LLM's linear layers in 8bit or 4bit (bitsandbytes).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, or auto to share the LLM out.")]
JudgeName = Annotated[str, typer.Option("--judge", help="truth, people, or openai:URL#MODEL.")]
JudgePromptName = Annotated[str, typer.Option("--judge-prompt", help="A prompt that ships, or a .yaml file.")]


def run_suite(
    suite: Suite, models: list[str], out: Path, *, samples: int = 1, limit: int | None = None, **how: Any
) -> None:
    """Carry a suite out and print its table; `how` are the fields of `Answering`."""
    from minigpt4.evaluation.answerers import Answering
    from minigpt4.evaluation.run import evaluate
    from minigpt4.evaluation.table import RESULTS, TABLE

    logging.getLogger("minigpt4").setLevel(logging.WARNING)
    outcome = evaluate(suite, models, out, how=Answering(**how), samples=samples, limit=limit)
    typer.echo((outcome.directory / TABLE).read_text(encoding="utf-8"))
    typer.echo(f"every prompt, answer and verdict: {outcome.directory / RESULTS}")


def judge_from(name: str, prompt: str, directory: Path, concurrency: int, timeout: float) -> Judge | None:
    """The judge that --judge names; None is the truth."""
    from minigpt4.evaluation.answerers import ENDPOINT_PREFIX

    if name == "truth":
        return None
    if name == "people":
        from minigpt4.evaluation.people import PeopleJudge

        return PeopleJudge(directory)
    if name.startswith(ENDPOINT_PREFIX):
        from minigpt4.evaluation.judges import JudgePrompt, LLMJudge

        return LLMJudge(name, JudgePrompt.load(prompt), concurrency=concurrency, timeout=timeout)
    raise UserError(f"there is no judge {name!r}; choose truth, people or openai:URL#MODEL")


@eval_.command()
def abilities(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="YAML of tasks; pocket pictures by default.")] = None,
    out: Out = Path("runs/eval"),
    judge: JudgeName = "truth",
    judge_prompt: JudgePromptName = "success",
    count: Annotated[int, typer.Option(min=1, max=5000, help="Pocket pictures of each task.")] = 25,
    samples: Samples = 1,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    dtype: Dtype = None,
    load_in: LoadIn = None,
    device: Device = None,
) -> None:
    """Memes, recipes, advertisements, poems, websites, stories, facts, problems: how many answers succeed, of 25.

    Example: minigpt4 eval abilities pocket pocket-stage1 pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.suites.abilities import Abilities

    who = judge_from(judge, judge_prompt, out / Abilities.name, concurrency, timeout)
    run_suite(
        Abilities(data, judge=who, count=count), models, out, samples=samples, limit=limit, temperature=temperature,
        seed=seed, batch_size=batch_size, concurrency=concurrency, timeout=timeout, dtype=dtype, load_in=load_in,
        device=device,
    )  # fmt: skip


@eval_.command()
def reliability(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="A folder of pictures; pocket pictures by default.")] = None,
    out: Out = Path("runs/eval"),
    count: Annotated[int, typer.Option(min=1, max=50_000, help="Pictures to ask about.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Who has not ended by then has no end.")] = 300,
    samples: Samples = 1,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    batch_size: BatchSize = 16,
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
    dtype: Dtype = None,
    load_in: LoadIn = None,
    device: Device = None,
) -> None:
    """Descriptions and poems that fail as language: repetition, fragment, nothing, no end, another language.

    Example: minigpt4 eval reliability pocket-stage1 pocket --out runs/eval
    """
    from minigpt4.evaluation.suites.reliability import Reliability

    run_suite(
        Reliability(data, count=count, max_new_tokens=max_new_tokens), models, out, samples=samples,
        temperature=temperature, seed=seed, batch_size=batch_size, concurrency=concurrency, timeout=timeout,
        dtype=dtype, load_in=load_in, device=device,
    )  # fmt: skip


@eval_.command()
def rate(
    directory: Annotated[Path, typer.Argument(help="Where the answers are: OUT/abilities of an earlier run.")],
    host: Annotated[str, typer.Option(help="The address to listen on; others can reach you only if you change it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8430,
) -> None:
    """Serve a web page on which people judge the answers blindly. Then run the suite again with --judge people.

    Example: minigpt4 eval rate runs/eval/abilities
    """
    from minigpt4.evaluation.rating import serve

    serve(directory, host, port, ready=lambda url: typer.echo(f"rating at {url} (Ctrl-C ends it)"))


@eval_.command()
def judge(
    endpoint: Annotated[str, typer.Argument(metavar="JUDGE", help="The judge to measure: openai:URL#MODEL.")],
    prompt: JudgePromptName = "success",
    labelled: Annotated[
        Path | None, typer.Option(help="A YAML file of labelled cases; those that ship for the prompt by default.")
    ] = None,
    out: Out = Path("runs/eval"),
    concurrency: Concurrency = 8,
    timeout: Timeout = 120.0,
) -> None:
    """Measure the judge itself: on a few labelled cases, how often it is right, and how often it agrees with itself.

    Example: minigpt4 eval judge openai:http://127.0.0.1:8000/v1#my-llm --judge-prompt success
    """
    from minigpt4.evaluation.judges import JudgePrompt, LLMJudge
    from minigpt4.evaluation.judging import measure_judge

    who = LLMJudge(endpoint, JudgePrompt.load(prompt), concurrency=concurrency, timeout=timeout)
    for line in measure_judge(who, out / "judge", labelled):
        typer.echo(line)
