"""`minigpt4 eval ...`: parsing and printing only."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4 import cli_options as options
from minigpt4.errors import UserError
from minigpt4.telling import say

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
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each task.")]
JudgeName = Annotated[str, typer.Option("--judge", help="truth, people, or openai:URL#MODEL.")]
JudgePromptName = Annotated[str, typer.Option("--judge-prompt", help="A prompt that ships, or a .yaml file.")]
#: How models answer: the options that every suite has, with their defaults (the fields of `Answering`).
_ANSWERING: dict[str, tuple[Any, Any]] = {
    "temperature": (options.Temperature, 0.0),
    "seed": (options.Seed, 0),
    "batch_size": (options.BatchSize, options.BATCH_SIZE),
    "concurrency": (options.Concurrency, options.CONCURRENCY),
    "timeout": (options.Timeout, options.TIMEOUT),
    "dtype": (options.Dtype, None),
    "load_in": (options.LoadIn, None),
    "device": (options.Device, None),
}


def answering(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that all suites share, which it gets as one mapping, `how`."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        how = {name: given.pop(name) for name in _ANSWERING}
        command(**given, how=how)

    own = inspect.signature(command, eval_str=True)
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _ANSWERING.items()
    ]
    parameters = [parameter for parameter in own.parameters.values() if parameter.name != "how"] + shared
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # typer reads it
    wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapped


def run_suite(
    suite: Suite, models: list[str], out: Path, how: dict[str, Any], *, samples: int = 1, limit: int | None = None
) -> None:
    """Carry a suite out and print its table; `how` holds the fields of `Answering`."""
    from minigpt4.evaluation.models import Answering
    from minigpt4.evaluation.results import RESULTS, TABLE
    from minigpt4.evaluation.run import evaluate

    logging.getLogger("minigpt4").setLevel(logging.WARNING)
    outcome = evaluate(suite, models, out, how=Answering(**how), samples=samples, limit=limit)
    say((outcome.directory / TABLE).read_text(encoding="utf-8"))
    say(f"every prompt, answer and verdict: {outcome.directory / RESULTS}")


def judge_from(name: str, prompt: str, directory: Path, how: dict[str, Any]) -> Judge | None:
    """The judge that --judge names; None is the truth."""
    from minigpt4.evaluation.models import ENDPOINT_PREFIX

    if name == "truth":
        return None
    if name == "people":
        from minigpt4.evaluation.judges import PeopleJudge

        return PeopleJudge(directory)
    if name.startswith(ENDPOINT_PREFIX):
        from minigpt4.evaluation.judges import JudgePrompt, LLMJudge

        return LLMJudge(name, JudgePrompt.load(prompt), concurrency=how["concurrency"], timeout=how["timeout"])
    raise UserError(f"there is no judge {name!r}; choose truth, people or openai:URL#MODEL")


@eval_.command()
@answering
def abilities(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="YAML of tasks; pocket pictures by default.")] = None,
    out: Out = Path("runs/eval"),
    judge: JudgeName = "truth",
    judge_prompt: JudgePromptName = "success",
    count: Annotated[int, typer.Option(min=1, max=5000, help="Pocket pictures of each task.")] = 25,
    samples: Samples = 1,
    limit: Limit = None,
    *,
    how: dict[str, Any],
) -> None:
    """Memes, recipes, advertisements, poems, websites, stories, facts, problems: how many answers succeed, of 25.

    Example: minigpt4 eval abilities pocket pocket-stage1 pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.abilities import Abilities

    chosen = judge_from(judge, judge_prompt, out / Abilities.name, how)
    run_suite(Abilities(data, judge=chosen, count=count), models, out, how, samples=samples, limit=limit)


@eval_.command()
@answering
def reliability(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="A folder of pictures; pocket pictures by default.")] = None,
    out: Out = Path("runs/eval"),
    count: Annotated[int, typer.Option(min=1, max=50_000, help="Pictures to ask about.")] = 100,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    samples: Samples = 1,
    *,
    how: dict[str, Any],
) -> None:
    """Descriptions and poems that fail as language: repetition, fragment, nothing, no end, another language.

    Example: minigpt4 eval reliability pocket-stage1 pocket --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.reliability import Reliability

    suite = Reliability(data, count=count, max_new_tokens=max_new_tokens)
    run_suite(suite, models, out, how, samples=samples)


@eval_.command()
def rate(
    directory: Annotated[Path, typer.Argument(help="Where the answers are: OUT/abilities of an earlier run.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder of the images; files outside it are not shown. Default: DIRECTORY.")
    ] = None,
    host: options.Host = options.HOST,
    port: options.Port = 8430,
) -> None:
    """Serve a web page on which people judge the answers blindly. Then run the suite again with --judge people.

    Example: minigpt4 eval rate runs/eval/abilities
    """
    from minigpt4.evaluation.rating import serve_rating

    serve_rating(directory, images, host, port, ready=lambda url: say(f"rating at {url} (Ctrl-C ends it)"))


@eval_.command("judge")
def check_judge(
    endpoint: Annotated[str, typer.Argument(metavar="JUDGE", help="The judge to measure: openai:URL#MODEL.")],
    prompt: JudgePromptName = "success",
    labelled: Annotated[
        Path | None, typer.Option(help="A YAML file of labelled cases; those that ship for the prompt by default.")
    ] = None,
    out: Out = Path("runs/eval"),
    concurrency: options.Concurrency = options.CONCURRENCY,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Measure the judge itself: on a few labelled cases, how often it is right, and how often it agrees with itself.

    Example: minigpt4 eval judge openai:http://127.0.0.1:8000/v1#my-llm --judge-prompt success
    """
    from minigpt4.evaluation.judge_check import measure_judge
    from minigpt4.evaluation.judges import JudgePrompt, LLMJudge

    chosen = LLMJudge(endpoint, JudgePrompt.load(prompt), concurrency=concurrency, timeout=timeout)
    for line in measure_judge(chosen, out / "judge", labelled):
        say(line)


Images = Annotated[Path | None, typer.Option(help="The directory of the pictures that the files name.")]
Count = Annotated[int, typer.Option(min=1, max=100_000, help="Pictures to ask about: the first so many.")]


@eval_.command()
@answering
def coverage(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="captions_val2017.json; pocket pictures by default.")] = None,
    images: Images = None,
    out: Out = Path("runs/eval"),
    judge: JudgeName = "truth",
    judge_prompt: JudgePromptName = "coverage",
    count: Count = 200,
    prompt: Annotated[str, typer.Option(help="What the model is asked.")] = "Describe this image in detail.",
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    caption_metrics: Annotated[
        bool, typer.Option(help="Ask for short captions too, and score them by CIDEr, BLEU, METEOR, ROUGE.")
    ] = True,
    *,
    how: dict[str, Any],
) -> None:
    """How many of the captions that people wrote a description covers; CIDEr and its kin of short captions.

    Example: minigpt4 eval coverage pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.coverage import Coverage

    chosen = judge_from(judge, judge_prompt, out / Coverage.name, how)
    suite = Coverage(
        data, images, judge=chosen, count=count, prompt=prompt, max_new_tokens=max_new_tokens,
        caption_metrics=caption_metrics,
    )  # fmt: skip
    run_suite(suite, models, out, how)


@eval_.command()
@answering
def hallucination(
    models: Models,
    data: Annotated[Path | None, typer.Option(help="instances_val2017.json; pocket pictures by default.")] = None,
    images: Images = None,
    captions: Annotated[
        Path | None, typer.Option(help="captions_val2017.json: what people name there is there too.")
    ] = None,
    out: Out = Path("runs/eval"),
    count: Count = 200,
    probes: Annotated[int, typer.Option(min=0, help="Objects that are there to ask about, of each picture.")] = 3,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    *,
    how: dict[str, Any],
) -> None:
    """Objects that answers name and that are not there (CHAIR), against length; yes-or-no questions (POPE).

    Example: minigpt4 eval hallucination pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.hallucination import Hallucination

    suite = Hallucination(
        data, images, captions, count=count, probes=probes, seed=how["seed"], max_new_tokens=max_new_tokens
    )
    run_suite(suite, models, out, how)


@eval_.command()
@answering
def vqa(
    models: Models,
    data: Annotated[
        list[Path] | None, typer.Option(help="A question file of A-OKVQA, GQA or VQA v2; may be given several times.")
    ] = None,
    images: Images = None,
    out: Out = Path("runs/eval"),
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Pocket pictures, without --data.")] = 200,
    limit: Limit = None,
    prompt: Annotated[str | None, typer.Option(help="How a question is put, with {} in its place.")] = None,
    choice: Annotated[str | None, typer.Option(help="How a choice is put as an answer, with {} in its place.")] = None,
    max_new_tokens: options.MaxNewTokens = 40,
    *,
    how: dict[str, Any],
) -> None:
    """Short answers: A-OKVQA (multiple choice by likelihood, and direct), GQA, VQA v2's accuracy.

    Example: minigpt4 eval vqa pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.vqa import Vqa

    suite = Vqa(data or [], images, count=count, prompt=prompt, choice=choice, max_new_tokens=max_new_tokens)
    run_suite(suite, models, out, how, limit=limit)
