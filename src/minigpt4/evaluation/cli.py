"""`minigpt4 eval ...`: parsing and printing only."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt4 import cli_options as options
from minigpt4.errors import UserError
from minigpt4.telling import say

if TYPE_CHECKING:
    from minigpt4.evaluation.judges import Judge
    from minigpt4.evaluation.suite import Suite

_HELP = Path(__file__).with_name("help.txt").read_text(encoding="utf-8").replace("Ex", "\b\nEx")  # keeps those lines
eval_ = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=_HELP)

Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models to compare, as LABEL=MODEL if you like.")]
Out = Annotated[Path, typer.Option(help="Where the results go, in a directory named by the suite.")]
Samples = Annotated[int, typer.Option(min=1, help="Answers to every question; needs a temperature.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each task.")]
JudgeName = Annotated[str, typer.Option("--judge", help="truth, people, or openai:URL#MODEL.")]
JudgePromptName = Annotated[str, typer.Option("--judge-prompt", help="A prompt that ships, or a .yaml file.")]


def measure(
    suite: "Suite", models: Models, out: Out = Path("runs/eval"), temperature: options.Temperature = 0.0,
    seed: options.Seed = 0, batch_size: options.BatchSize = options.BATCH_SIZE,
    concurrency: options.Concurrency = options.CONCURRENCY, timeout: options.Timeout = options.TIMEOUT,
    dtype: options.Dtype = None, load_in: options.LoadIn = None, device: options.Device = None,
    samples: Samples = 1, limit: Limit = None,
) -> None:  # fmt: skip
    """Put `suite` to the models and print its table."""
    from minigpt4.evaluation.models import Answering
    from minigpt4.evaluation.results import RESULTS, TABLE
    from minigpt4.evaluation.run import evaluate

    logging.getLogger("minigpt4").setLevel(logging.WARNING)
    settings = Answering(temperature, seed, batch_size, concurrency, timeout, dtype, load_in, device)
    evaluate(suite, models, out, settings=settings, samples=samples, limit=limit)
    say((out / suite.name / TABLE).read_text(encoding="utf-8"))
    say(f"every prompt, answer and verdict: {out / suite.name / RESULTS}")


def suite_command(*optional: str) -> Callable[[Callable[..., "Suite"]], None]:
    """Make a command of a function that returns a suite. `shared` are the options of `measure`; some are `optional`."""

    def register(make: Callable[..., "Suite"]) -> None:
        own, shared = (dict(inspect.signature(f).parameters) for f in (make, measure))
        for name in {"suite", "samples", "limit"} - {*optional}:
            del shared[name]
        del own["shared"]

        @functools.wraps(make)
        def command(**given: Any) -> None:
            measure(make(**given), **{name: given[name] for name in shared})

        every = [p.replace(kind=p.KEYWORD_ONLY) for p in {**own, **shared}.values()]
        command.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # typer reads it
        command.__annotations__ = {p.name: p.annotation for p in every}
        eval_.command()(command)

    return register


def judge_from(name: str, prompt: str, suite: "type[Suite]", shared: Mapping[str, Any]) -> "Judge":
    """The judge that --judge names; `truth` is the suite's own. `shared` holds the options that all suites share."""
    from minigpt4.evaluation.judges import JudgePrompt, LLMJudge
    from minigpt4.evaluation.models import ENDPOINT_PREFIX
    from minigpt4.evaluation.rating import PeopleJudge

    if name == "truth":
        return suite.judge
    if name == "people":
        return PeopleJudge(shared["out"] / suite.name)
    if name.startswith(ENDPOINT_PREFIX):
        return LLMJudge(name, JudgePrompt.load(prompt), concurrency=shared["concurrency"], timeout=shared["timeout"])
    raise UserError(f"there is no judge {name!r}; choose truth, people or openai:URL#MODEL")


@suite_command("samples", "limit")
def abilities(
    data: Annotated[Path | None, typer.Option(help="YAML of tasks; pocket images by default.")] = None,
    judge: JudgeName = "truth",
    judge_prompt: JudgePromptName = "success",
    count: Annotated[int, typer.Option(min=1, max=5000, help="Pocket images of each task.")] = 25,
    **shared: Any,
) -> "Suite":
    """Memes, recipes, advertisements, poems, websites, stories, facts, problems: how many answers succeed, of 25.

    Example: minigpt4 eval abilities pocket pocket-stage1 pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.abilities import Abilities

    return Abilities(data, judge_from(judge, judge_prompt, Abilities, shared), count)


@suite_command("samples")
def reliability(
    data: Annotated[Path | None, typer.Option(help="A folder of images; pocket images by default.")] = None,
    count: Annotated[int, typer.Option(min=1, max=50_000, help="Images to ask about.")] = 100,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    **shared: Any,
) -> "Suite":
    """Descriptions and poems that fail as language: repetition, fragment, nothing, no end, another language.

    Example: minigpt4 eval reliability pocket-stage1 pocket --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.reliability import Reliability

    return Reliability(data, count, max_new_tokens)


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
    from minigpt4.evaluation.judges import JudgePrompt, LLMJudge, measure_judge

    chosen = LLMJudge(endpoint, JudgePrompt.load(prompt), concurrency=concurrency, timeout=timeout)
    for line in measure_judge(chosen, out / "judge", labelled):
        say(line)


Images = Annotated[Path | None, typer.Option(help="The directory of the images that the files name.")]
Count = Annotated[int, typer.Option(min=1, max=100_000, help="Images to ask about: the first so many.")]


@suite_command()
def coverage(
    data: Annotated[Path | None, typer.Option(help="captions_val2017.json; pocket images by default.")] = None,
    images: Images = None,
    judge: JudgeName = "truth",
    judge_prompt: JudgePromptName = "coverage",
    count: Count = 200,
    prompt: Annotated[str, typer.Option(help="What the model is asked.")] = "Describe this image in detail.",
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    caption_metrics: Annotated[
        bool, typer.Option(help="Ask for short captions too, and score them by CIDEr, BLEU, METEOR, ROUGE.")
    ] = True,
    **shared: Any,
) -> "Suite":
    """How many of the captions that people wrote a description covers; CIDEr and its kin of short captions.

    Example: minigpt4 eval coverage pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.coverage import Coverage

    chosen = judge_from(judge, judge_prompt, Coverage, shared)
    return Coverage(data, images, chosen, count, prompt, max_new_tokens, caption_metrics)


@suite_command()
def hallucination(
    data: Annotated[Path | None, typer.Option(help="instances_val2017.json; pocket images by default.")] = None,
    images: Images = None,
    captions: Annotated[
        Path | None, typer.Option(help="captions_val2017.json: what people name is there too; without --data, alone.")
    ] = None,
    count: Count = 200,
    probes: Annotated[int, typer.Option(min=0, help="Objects that are there to ask about, of each image.")] = 3,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    **shared: Any,
) -> "Suite":
    """Objects that answers name and that are not there (CHAIR), against length; yes-or-no questions (POPE).

    Example: minigpt4 eval hallucination pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.hallucination import Hallucination

    return Hallucination(data, images, captions, count, probes, shared["seed"], max_new_tokens)


@suite_command("limit")
def vqa(
    data: Annotated[
        list[Path] | None, typer.Option(help="A question file of A-OKVQA, GQA or VQA v2; may be given several times.")
    ] = None,
    images: Images = None,
    count: Annotated[int, typer.Option(min=1, max=100_000, help="Pocket images, without --data.")] = 200,
    prompt: Annotated[str | None, typer.Option(help="How a question is put, with {} in its place.")] = None,
    choice: Annotated[str | None, typer.Option(help="How a choice is put as an answer, with {} in its place.")] = None,
    max_new_tokens: options.MaxNewTokens = 40,
    **shared: Any,
) -> "Suite":
    """Short answers: A-OKVQA (multiple choice by likelihood, and direct), GQA, VQA v2's accuracy.

    Example: minigpt4 eval vqa pocket pocket-blip2 --out runs/eval
    """
    from minigpt4.evaluation.benchmarks.vqa import Vqa

    return Vqa(data or [], images, count, prompt, choice, max_new_tokens)
