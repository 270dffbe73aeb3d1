"""`minigpt4 curate ...`: parsing and printing only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from minigpt4 import cli_options as options
from minigpt4.errors import UserError
from minigpt4.telling import say, shown

curate = typer.Typer(no_args_is_help=True, help="Build stage 2's dataset: describe, refine, filter, select, review.")

Project = Annotated[Path, typer.Argument(help="The project's directory, which holds its ledger.")]
_ENDPOINT = "Base URL of an OpenAI-compatible endpoint, for example http://host:8000/v1."
_Only = Annotated[list[str] | None, typer.Option("--only", help="Only the image of this name; may be repeated.")]
_Rules = Annotated[Path | None, typer.Option(help="YAML file of thresholds. Default: the built-in ones.")]


def _open(project: Path, *, create: bool = False) -> Any:
    from minigpt4.curation.ledger import Ledger

    return Ledger(project, create=create)


def _print(counts: Mapping[str, Any]) -> None:
    for name, count in counts.items():
        say(shown(f"{name}: {count}"))


@curate.command()
def describe(
    project: Project,
    images: Annotated[Path | None, typer.Option(help="A folder of images to add to the project.")] = None,
    model: Annotated[str, typer.Option(help="The model, or the endpoint's name of one.")] = "pocket-stage1",
    endpoint: Annotated[str | None, typer.Option(help=_ENDPOINT)] = None,
    samples: Annotated[int, typer.Option(min=1, help="Texts per image.")] = 1,
    min_tokens: Annotated[
        int | None, typer.Option(min=0, help="Shorter texts are continued; 80, or 0 after stage 2 or at temperature 0.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    instruction: Annotated[str | None, typer.Option(help="The prompt for a description.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="0 always takes the likeliest token; by default as the model does, or 1."),
    ] = None,
    seed: options.Seed = 0,
    only: _Only = None,
    redo: Annotated[bool, typer.Option("--redo", help="Describe again; earlier texts stay in the history.")] = False,
    concurrency: options.Concurrency = options.CONCURRENCY,
    timeout: options.Timeout = options.TIMEOUT,
) -> None:
    """Let the stage-1 model describe every image, and continue short texts.

    Example: minigpt4 curate describe my-set --images photos --model photo-stage1
    """
    if images is not None and not images.is_dir():
        raise UserError(f"{images}: no such directory of images")
    from minigpt4.curation import describe as describing
    from minigpt4.endpoint import Endpoint
    from minigpt4.model.loading import read_record

    record = None if endpoint else read_record(model)
    own = record.decoding if record else {}
    if temperature is None:
        temperature = own.get("temperature", 1.0) if own.get("do_sample", True) else 0.0
    if min_tokens is None:  # after stage 2 a model ends where it should; without chance it would repeat itself
        min_tokens = 0 if temperature == 0 or (record and record.stage == 2) else describing.Describing.min_tokens
    settings = describing.Describing(
        instruction=instruction or describing.Describing.instruction, min_tokens=min_tokens,
        max_new_tokens=max_new_tokens, temperature=temperature, seed=seed,
    )  # fmt: skip
    asked = Endpoint(endpoint, model, timeout=timeout) if endpoint else model
    with _open(project, create=images is not None) as ledger:
        if images is not None:
            say(f"images: {describing.add_folder(ledger, images)}")
        _print(describing.describe(
            ledger, asked, settings, samples=samples, only=only or (), redo=redo, concurrency=concurrency
        ))  # fmt: skip


@curate.command()
def refine(
    project: Project,
    endpoint: Annotated[str, typer.Option(help=_ENDPOINT)],
    model: Annotated[str, typer.Option(help="The endpoint's name of the model.")],
    min_similarity: Annotated[
        float, typer.Option(min=0, max=1, help="Reject texts that share less vocabulary than this with the original.")
    ] = 0.6,
    concurrency: options.Concurrency = options.CONCURRENCY,
    timeout: options.Timeout = options.TIMEOUT,
    budget: Annotated[int | None, typer.Option(min=1, help="Maximum of tokens, including earlier runs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what it would cost.")] = False,
    only: _Only = None,
) -> None:
    """Let an LLM correct every text without seeing the image. The key is read from OPENAI_API_KEY.

    Example: minigpt4 curate refine my-set --endpoint http://localhost:8000/v1 --model my-llm --budget 2000000
    """
    from minigpt4.curation.refine import refine as run
    from minigpt4.endpoint import Endpoint

    asked = Endpoint(endpoint, model, timeout=timeout)
    with _open(project) as ledger:
        _print(run(
            ledger, asked, min_similarity=min_similarity, only=only or (), concurrency=concurrency, budget=budget,
            dry_run=dry_run,
        ))  # fmt: skip
    if dry_run:
        say("at most: this is an estimate, and nothing was sent")


@curate.command("filter")
def filter_(
    project: Project,
    rules: _Rules = None,
    model: Annotated[str | None, typer.Option(help="Measure grounding with it; else skip its rules.")] = None,
    only: _Only = None,
) -> None:
    """Leave out the texts that a rule catches, and print how many each caught.

    Example: minigpt4 curate filter my-set --model pocket-stage1 --rules rules.yaml
    """
    from minigpt4.curation import filters

    thresholds = filters.load_thresholds(rules)
    with _open(project) as ledger:
        if model is not None:
            from minigpt4.curation.grounding import ground

            _print(ground(ledger, model, only=only or ()))
        found = filters.filter_items(ledger, thresholds, only=only or ())
        _print({**{name: count for name, count in found["caught"].items() if count}, "kept": found["kept"]})
        if not found["kept"]:
            say(shown(ledger.left_out()))


@curate.command()
def stats(
    project: Project,
    out: Annotated[Path, typer.Option(help="Directory for stats.png, stats.md and rules.yaml.")],
    rules: _Rules = None,
) -> None:
    """Plot what the rules measure, and show texts on both sides of every threshold.

    Example: minigpt4 curate stats my-set --out my-set/stats
    """
    from minigpt4.curation import filters
    from minigpt4.curation.dataset import summary

    with _open(project) as ledger:
        _print(summary(ledger)["counts"])
        say(f"measures and examples: {filters.write_stats(ledger, filters.load_thresholds(rules), out)}")


@curate.command()
def select(
    project: Project,
    best: Annotated[int | None, typer.Option(min=1, help="How many texts to keep.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Undo an earlier selection.")] = False,
    model: Annotated[str, typer.Option(help="The model whose image features are clustered.")] = "pocket-stage1",
    clusters: Annotated[int, typer.Option(min=1, help="Kinds of images to distinguish.")] = 10,
) -> None:
    """Keep the best texts, spread over all kinds of images.

    Example: minigpt4 curate select my-set --best 200 --model pocket-stage1
    """
    from minigpt4.curation.select import select as run

    if (best is None) != everything:
        raise UserError("give either --best N or --all")
    with _open(project) as ledger:
        _print(run(ledger, best, model=model, clusters=clusters))


@curate.command()
def review(
    project: Project,
    host: options.Host = options.HOST,
    port: options.Port = 8420,
    shared: Annotated[float, typer.Option(min=0, max=1, help="Share of the texts that every reviewer sees.")] = 0.1,
) -> None:
    """Serve a web page on which people accept, edit or reject the remaining texts.

    Example: minigpt4 curate review my-set --port 8420
    """
    from minigpt4.curation.review import serve_review

    with _open(project) as ledger:
        serve_review(ledger, host, port, shared, ready=lambda url: say(f"review at {url} (Ctrl-C ends it)"))


@curate.command()
def export(
    project: Project,
    out: Annotated[Path, typer.Option(help="A new directory for the dataset.")],
    form: Annotated[str, typer.Option("--format", help="cc_sbu_align or imagefolder.")] = "cc_sbu_align",
    validation: Annotated[float, typer.Option(min=0, max=0.99, help="Share of images to validate on.")] = 0.0,
    license: Annotated[str | None, typer.Option(help="For the dataset card, for example cc-by-4.0.")] = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write the finished texts and their images as a dataset that stage 2 trains on.

    Example: minigpt4 curate export my-set --out my-set/cc_sbu_align
    """
    from minigpt4.curation.dataset import write_dataset

    if form not in ("cc_sbu_align", "imagefolder"):
        raise UserError(f"there is no format {form!r}; choose cc_sbu_align or imagefolder")
    with _open(project) as ledger:
        _print(write_dataset(ledger, out, form, validation=validation, license=license, overwrite=overwrite))
    say(f"the dataset is in {out}")


@curate.command("import")
def import_(
    project: Project,
    data: Annotated[Path, typer.Option(help="A directory in cc_sbu_align's layout.")],
    model: Annotated[str | None, typer.Option(help="Measure grounding too, with this model.")] = None,
    rules: _Rules = None,
) -> None:
    """Add an existing cc_sbu_align to the project, and check it with the rules.

    Example: minigpt4 curate import my-audit --data cc_sbu_align --model pocket
    """
    from minigpt4.curation.describe import add_dataset
    from minigpt4.data.formats import read_annotations

    read_annotations(str(data))  # a mistyped path makes no project
    with _open(project, create=True) as ledger:
        say(f"new texts: {add_dataset(ledger, data)}")
    filter_(project, rules=rules, model=model, only=None)
