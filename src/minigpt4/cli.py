"""The command line: parsing and printing only. What a command needs is imported when it runs, so `--help` is quick."""

import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from minigpt4 import cli_options as options
from minigpt4.curation.cli import curate
from minigpt4.errors import ToldError, UserError
from minigpt4.evaluation.cli import eval_
from minigpt4.files import expand
from minigpt4.telling import LogFormatter, say, shown

_GROUPS = {
    "Start here": ("web", "chat", "generate"), "Train": ("train", "recipe", "data", "curate", "assemble", "plan"),
    "Serve": ("serve", "export", "convert"), "Measure": ("eval",), "Research": ("pocket",),
}  # fmt: skip


class _Commands(TyperGroup):
    """Tells a user's mistake and Ctrl-C apart from errors: one line on stderr, exit code 2 or 130."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """`~/x`, `$DATA/x` and file:// URLs are paths also where no shell has seen them: `--out=~/x`, a quoted path."""
        path = r"^(--[a-z-]+=)?((?:~|\$\w+|\$\{\w+\})(?:/.*)?|file:/.*)$"
        return super().parse_args(ctx, [re.sub(path, _expanded, arg) for arg in args])

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for group, names in _GROUPS.items():
            with formatter.section(group):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(120)) for name in names])

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except UserError as mistake:
            if not isinstance(mistake, ToldError):
                say(shown(f"minigpt4{_process()}: {mistake}"), err=True)
            raise SystemExit(2) from None
        except OSError as trouble:
            if trouble.filename is None:  # else a file or directory that cannot be read or written, wherever it is met
                raise
            say(shown(f"minigpt4{_process()}: {trouble.filename}: {trouble.strerror}"), err=True)
            raise SystemExit(2) from None
        except KeyboardInterrupt as stop:
            if not _process():
                say(f"minigpt4: {str(stop) or 'stopped'}", err=True)
            raise SystemExit(130) from None


def _process() -> str:
    """Of the processes that torchrun starts, one says what all have to say; the name of another, for its mistakes."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (process {rank})"


def _expanded(option: re.Match[str]) -> str:
    try:
        return (option[1] or "") + str(expand(option[2]))
    except UserError as mistake:
        raise typer.BadParameter(str(mistake)) from None


app = typer.Typer(
    cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
data = typer.Typer(no_args_is_help=True, help="Look at data, download them, cache the vision side's features of them.")
recipes = typer.Typer(no_args_is_help=True, help="Recipes: those that ship, and what their keys mean.")
app.add_typer(curate, name="curate")
app.add_typer(data, name="data")
app.add_typer(eval_, name="eval")
app.add_typer(recipes, name="recipe")


def _add_laboratory() -> None:
    """The laboratory's commands, which stand above the library; their former names still work."""
    import pocket.cli as laboratory

    app.add_typer(laboratory.pocket, name="pocket")
    app.command(hidden=True)(laboratory.demo)
    app.command(hidden=True)(laboratory.reproduce)
    curate.command("demo", hidden=True)(laboratory.curate)
    eval_.command("ablations", hidden=True)(laboratory.ablations)


_add_laboratory()


def _version(asked: bool) -> None:
    if asked:
        from minigpt4 import __version__

        say(__version__)
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """MiniGPT-4: a frozen vision tower and a frozen LLM, aligned by one linear layer."""


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships: pocket-stage1.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to change.")] = None,
    check: Annotated[bool, typer.Option("--dry-run", help="Check everything, and say what would be done.")] = False,
    processes: Annotated[int, typer.Option(min=1, help="With --dry-run: processes that torchrun will start.")] = 1,
) -> None:
    """Carry out a recipe: train the projection. A run that was stopped goes on where its last checkpoint stood.

    Several processes or machines: torchrun --nproc-per-node 4 -m minigpt4 train RECIPE (docs/training.md).

    Example: minigpt4 train pocket-stage1 steps=200 output=runs/short
    """
    from minigpt4.training.recipe import Recipe

    loaded = Recipe.load(recipe, overrides or [])  # a mistake in it is found before torch is imported
    if check:
        from minigpt4.training.checks import dry_run

        say(dry_run(loaded, processes))
        return
    from accelerate import PartialState

    from minigpt4.training.train import train as run

    logging.getLogger("minigpt4").setLevel(logging.WARNING if _process() else logging.INFO)
    alignment = run(loaded)
    # All have come here, so all leave the group. After a failure torchrun ends the processes that would wait in it.
    PartialState().destroy_process_group()
    if not _process():
        say(alignment)


@app.command()
def chat(
    model: options.Model,
    image: Annotated[Path | None, typer.Argument(help="The image to talk about.")] = None,
    template: options.Template = None,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    temperature: options.Temperature = 0.0,
    seed: options.Seed | None = None,
    dtype: options.Dtype = None,
    load_in: options.LoadIn = None,
    device: options.Device = None,
) -> None:
    """Talk about an image in the terminal. /help lists what else can be typed.

    Example: minigpt4 chat pocket image.png
    """
    from minigpt4.images import open_image
    from minigpt4.terminal import Terminal

    if image is not None:
        image = expand(image)
        open_image(image)  # a wrong path is known before the model is loaded
    from minigpt4.minigpt4 import MiniGPT4

    talk = MiniGPT4.from_pretrained(model, dtype=dtype, load_in=load_in, device=device).start_chat(template)
    sampling = {"do_sample": True, "temperature": temperature, "seed": seed} if temperature else {"do_sample": False}
    terminal = Terminal(talk, image, {"max_new_tokens": max_new_tokens, **sampling})
    terminal.run()
    if terminal.mistakes and not terminal.interactive:
        raise typer.Exit(2)  # a script's caller must know; its user has read what was wrong


@app.command()
def web(
    model: Annotated[str | None, typer.Argument(help=f"{options.MODELS}; photo if it is here.")] = None,
    beside: Annotated[list[str] | None, typer.Option(help="Another model to compare; may be repeated.")] = None,
    host: options.Host = options.HOST,
    port: options.Port = 7860,
    dtype: options.Dtype = None,
    load_in: options.LoadIn = None,
    device: options.Device = None,
) -> None:
    """Open a page in the browser to chat about images, draw websites, and see what the model looked at.

    Example: minigpt4 web --port 7860
    """
    from minigpt4 import shipped
    from minigpt4.app.page.serve import serve_page
    from minigpt4.app.page.session import Models, offered

    model = model or ("photo" if "photo" in shipped.models() else "pocket")
    if model == "photo" and (lacks := shipped.photo_lacks()):
        say(f"The photo model needs two packages ({lacks}); the page shows the drawn pocket world instead", err=True)
        model = "pocket"
    models = Models(offered(model, beside or []), dtype=dtype, load_in=load_in, device=device)
    serve_page(models, host, port, lambda address: say(f"The page is at {address} (Ctrl-C ends it)"))


@app.command()
def generate(
    model: options.Model,
    images: Annotated[str, typer.Option(help="A directory, a pattern, a .jsonl or a .parquet file.")],
    out: Annotated[Path, typer.Option(help="Where the answers go, one line of JSON each; a job there goes on.")],
    prompt: Annotated[str | None, typer.Option(help="The question about every image without one of its own.")] = None,
    batch_size: options.BatchSize = options.BATCH_SIZE,
    max_new_tokens: options.MaxNewTokens = options.MAX_NEW_TOKENS,
    temperature: options.Temperature = 0.0,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams to search.")] = 1,
    seed: options.Seed | None = None,
    dtype: options.Dtype = None,
    load_in: options.LoadIn = None,
    device: options.Device = None,
) -> None:
    """Ask about many images, in batches. A job that was stopped goes on where its file ends.

    Example: minigpt4 generate pocket --images photos --prompt "Describe this image in detail." --out answers.jsonl
    """
    from minigpt4.app.batch_job import read_questions
    from minigpt4.app.batch_job import run as run_job
    from minigpt4.minigpt4 import MiniGPT4
    from minigpt4.model.loading import read_record

    sampling: dict[str, Any] = dict(read_record(model).decoding)
    sampling |= {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    result = run_job(
        lambda: MiniGPT4.from_pretrained(model, dtype=dtype, load_in=load_in, device=device),
        read_questions(images, prompt), out, job={"model": model, "dtype": dtype, "load_in": load_in},
        batch_size=batch_size, max_new_tokens=max_new_tokens, num_beams=num_beams, seed=seed, **sampling,
    )  # fmt: skip
    say(result)


@app.command()
def serve(
    model: options.Model = "pocket",
    engine: Annotated[str, typer.Option(help="local, or vllm where it is installed.")] = "local",
    host: options.Host = options.HOST,
    port: options.Port = 8000,
    name: Annotated[str | None, typer.Option(help="What requests call the model; its own name by default.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="MINIGPT4_API_KEY", help="What clients must send.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers written together.")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; more are refused (429).")] = 128,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")] = 120,
    max_pixels: Annotated[int, typer.Option(min=1, help="Maximum pixels per image.")] = 16_000_000,
    max_images: Annotated[int, typer.Option(min=0, help="Maximum images per request.")] = 8,
    allow_images_from: Annotated[list[str] | None, typer.Option(help="A host from which to fetch images.")] = None,
    dtype: options.Dtype = None,
    load_in: options.LoadIn = None,
    device: options.Device = None,
) -> None:
    """Answer OpenAI's clients over HTTP: chat completions with images.

    Example: minigpt4 serve pocket --port 8000
    """
    name = name or Path(model).resolve().name
    if host not in ("127.0.0.1", "localhost", "::1") and not api_key:
        say(f"minigpt4: anyone who reaches {host} can use this server; --api-key asks for a key", err=True)
    if engine == "vllm":
        from minigpt4.vllm.server import serve as serve_with_vllm

        if load_in or device:
            raise UserError("--load-in and --device are for --engine local; leave them out")
        serve_with_vllm(model, name, host, port, api_key, max_images, max_pixels, allow_images_from or [], dtype)
        return
    if engine != "local":
        raise UserError(f"there is no engine {engine!r}; choose local or vllm")
    try:
        from minigpt4.app.api.gate import Limits
        from minigpt4.app.api.server import serve as serve_api
    except ModuleNotFoundError as missing:
        raise UserError(f"the API needs {missing.name}: pip install 'minigpt4-vlm[serve]'") from None
    from minigpt4.minigpt4 import MiniGPT4

    limits = Limits(
        pixels=max_pixels, images=max_images, seconds=timeout, batch=max_batch, queue=max_queue,
        hosts=tuple(host.lower() for host in allow_images_from or ()),
    )  # fmt: skip
    serve_api(
        lambda: MiniGPT4.from_pretrained(model, dtype=dtype, load_in=load_in, device=device),
        name, host, port, limits, api_key,
        ready=lambda url: say(f"{name} at {url} (Ctrl-C ends it when what is running is done)"),
    )  # fmt: skip


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="vicuna-7b, vicuna-13b, pocket, or a model's directory or hub id.")],
    train: Annotated[bool, typer.Option("--train", help="Show what training needs too.")] = False,
    batch_size: options.BatchSize = options.BATCH_SIZE,
) -> None:
    """Show parameters and the memory that chat, batches and training need, without loading any weights.

    Example: minigpt4 plan vicuna-7b --train --batch-size 12
    """
    from minigpt4.memory import plan as make_plan

    say(make_plan(model, batch=batch_size, train=train).table())


@app.command()
def convert(
    vision: Annotated[Path, typer.Option(help="The tower: eva_vit_g.pth.")],
    projection: Annotated[Path, typer.Option(help="The projection: pretrained_minigpt4*.pth.")],
    template: Annotated[str, typer.Option(help="Chat format it was trained for: vicuna_v0 or llama2.")],
    out: options.NewDirectory,
    qformer: Annotated[Path | None, typer.Option(help="The Q-Former: blip2_pretrained_flant5xxl.pth.")] = None,
    no_qformer: Annotated[bool, typer.Option("--no-qformer", help="The variant that has none.")] = False,
    llm: Annotated[str | None, typer.Option(help="The LLM: a directory, hub id or GGUF file.")] = None,
    llm_base: Annotated[str | None, typer.Option(help="Base LLaMA weights, which a Vicuna delta needs.")] = None,
    llm_delta: Annotated[str | None, typer.Option(help="The Vicuna delta.")] = None,
    vision_heads: Annotated[int | None, typer.Option(help="Heads of the ViT (default: width / 88).")] = None,
    qformer_heads: Annotated[int | None, typer.Option(help="Heads of the Q-Former (default: width / 64).")] = None,
    image_size: Annotated[int | None, typer.Option(help="Input size in pixels; positions are interpolated.")] = None,
    dtype: options.WrittenDtype = None,
    quantize: options.Quantize = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Turn the files that the paper's authors released into a Hugging Face directory.

    Example: minigpt4 convert --vision eva_vit_g.pth --qformer blip2_pretrained_flant5xxl.pth
    --projection pretrained_minigpt4_7b.pth --llm vicuna-7b --template vicuna_v0 --out minigpt4-7b
    """
    if (llm is None) == (llm_base is None) or (llm_base is None) != (llm_delta is None):
        raise UserError("give the LLM as --llm, or as --llm-base together with --llm-delta")
    if qformer is None and not no_qformer:
        raise UserError("give the Q-Former as --qformer, or --no-qformer for the variant without one")
    from minigpt4.model.convert import convert

    convert(
        vision, qformer, projection, llm or llm_base or "", out, template=template, llm_delta=llm_delta,
        without_qformer=no_qformer, vision_heads=vision_heads, qformer_heads=qformer_heads, image_size=image_size,
        dtype=dtype, quantize=quantize, overwrite=overwrite,
    )  # fmt: skip
    say(out)


@app.command()
def assemble(
    llm: Annotated[str, typer.Option(help="Any decoder-only LLM: a directory, hub id or GGUF file.")],
    out: options.NewDirectory,
    vision_qformer: Annotated[str | None, typer.Option(help="Any BLIP-2: a directory or hub id.")] = None,
    vision: Annotated[str | None, typer.Option(help="Or any vision encoder, as CLIP, SigLIP, DINOv2.")] = None,
    template: options.Template = None,
    no_qformer: Annotated[bool, typer.Option("--no-qformer", help="Feed ViT patches to the projection.")] = False,
    group: Annotated[int, typer.Option(min=1, help="Without a Q-Former: patches in an image token.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the untrained projection.")] = 0,
    dtype: options.WrittenDtype = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Put Hugging Face parts together with an untrained projection, ready for `minigpt4 train ... init=DIR`.

    Example: minigpt4 assemble --vision-qformer Salesforce/blip2-opt-2.7b --llm lmsys/vicuna-7b-v1.5 --out untrained
    """
    from minigpt4.model.convert import assemble

    side = vision_qformer or vision
    if not side or (vision and vision_qformer):
        raise UserError("give the vision side as --vision-qformer, or an encoder alone as --vision")
    qformer = not (vision or no_qformer)
    used = assemble(
        side, llm, out, template=template, qformer=qformer, group=group, seed=seed, dtype=dtype, overwrite=overwrite
    )
    say(f"{out} (chat format: {used.name})")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="An alignment or an export, or pocket.")],
    out: Annotated[Path | None, typer.Option(help="A new directory, or a new .pth file.")] = None,
    format: Annotated[str, typer.Option(help="huggingface, or released: the projection as a .pth.")] = "huggingface",
    dtype: options.WrittenDtype = None,
    quantize: options.Quantize = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a whole Hugging Face directory, or the projection for the original code.

    Example: minigpt4 export runs/stage2/alignment --format released --out pretrained_minigpt4.pth
    """
    if format not in ("huggingface", "released"):
        raise UserError(f"there is no format {format!r}; choose huggingface or released")
    if format == "released":
        from minigpt4.model.convert import write_projection

        say(write_projection(model, out or "pretrained_minigpt4.pth", overwrite))
        return
    if out is None:
        raise UserError("give the new directory as --out")
    from minigpt4.model.convert import export as export_files

    export_files(model, out, dtype=dtype, quantize=quantize, overwrite=overwrite)
    say(out)


@data.command()
def inspect(
    source: options.Source,
    stage: options.Stage = 1,
    caption_key: options.CaptionKey = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs to look at, from the start.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet of 24 images, as sheet.png.")] = None,
    model: Annotated[str | None, typer.Option(help="Say how well its LLM knows the words.")] = None,
) -> None:
    """Show counts, lengths of texts, and problems of a source of pairs.

    Example: minigpt4 data inspect photos --out sheet.png --model pocket
    """
    from minigpt4.data.inspect import contact_sheet, spelling
    from minigpt4.data.inspect import inspect as look
    from minigpt4.data.sources import Source

    found = look(Source(source, caption_key=caption_key), stage=stage, limit=limit)
    say(found)
    if model is not None:
        from minigpt4.model.loading import read_record
        from minigpt4.model.parts import load_tokenizer

        say(spelling(found, load_tokenizer(read_record(model).parts[1])))
    if out is not None:
        contact_sheet(found, out)
        say(f"contact sheet: {out}")


@data.command()
def download(
    captions: Annotated[
        Path | None, typer.Argument(help="A list of url and caption, JSON; without it: where they are.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for the tar shards; a download there goes on.")] = Path("data"),
    processes: Annotated[int, typer.Option(min=1, help="Processes of img2dataset.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Connections of each.")] = 64,
    image_size: Annotated[int, typer.Option(min=1, help="Larger images are reduced to this shorter side.")] = 256,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that an image may take.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pairs from the list's start.")] = None,
) -> None:
    """Download the images of BLIP's caption lists as tar shards, with img2dataset.

    Example: minigpt4 data download ccs_synthetic_filtered_large.json --out data/cc_sbu
    """
    from minigpt4.data import download as downloading

    if captions is None:
        say(downloading.LISTS)
        return
    counts = downloading.download(
        captions, out, processes=processes, threads=threads, image_size=image_size, timeout=timeout, limit=limit
    )
    for outcome, count in counts.most_common():
        say(f"{outcome}: {count}")


@data.command()
def features(
    source: options.Source,
    model: Annotated[str, typer.Option(help="Whose vision side: an alignment or an export, or pocket.")],
    out: Annotated[Path, typer.Option(help="The cache, which recipes name as feature_cache.")],
    stage: options.Stage = 1,
    caption_key: options.CaptionKey = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode images.")] = 0,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Share of unusable pairs that ends it.")] = 0.1,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Run the frozen vision side over a source once, and keep its output for training. Goes on where it was stopped.

    Example: minigpt4 data features runs/pocket/data/stage1 --model pocket --out runs/pocket/features
    """
    from minigpt4.data.mixture import check_sources
    from minigpt4.data.sources import Source

    pairs = Source(source, caption_key=caption_key)
    check_sources([pairs], stage)  # a wrong path is known before the model is loaded
    from minigpt4.model.precision import resolve_device, training_dtype
    from minigpt4.model.vision import load_vision_side
    from minigpt4.training.features import encode_source

    resolved = resolve_device(device)
    loaded = load_vision_side(model, dtype=dtype or training_dtype(resolved), device=resolved)
    say(encode_source(loaded, out, pairs, stage=stage, workers=workers, max_skipped=max_skipped))


@recipes.command("list")
def list_recipes() -> None:
    """List the recipes that come with the package, each with the first line of its file.

    Example: minigpt4 recipe list | grep vicuna
    """
    from minigpt4.training.recipe import packaged_recipes

    for name, path in packaged_recipes().items():
        say(f"{name:<24}{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


@recipes.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys to change.")] = None,
) -> None:
    """Print a recipe whole: every key, those of its base and the defaults included.

    Example: minigpt4 recipe show vicuna-13b-stage1
    """
    from minigpt4.training.recipe import Recipe

    say(Recipe.load(recipe, overrides or []).to_yaml(), end="")


@recipes.command()
def explain(key: Annotated[str, typer.Argument(help="A key of a recipe: batch_size.")]) -> None:
    """Say what a key of a recipe means, which values it takes, and its default.

    Example: minigpt4 recipe explain batch_size
    """
    from minigpt4.training.recipe import explain as explain_key

    say(explain_key(key))


def main() -> None:
    """The `minigpt4` command: exit code 2 for a mistake of the user's, 130 for Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger().handlers[0].setFormatter(LogFormatter("%(message)s"))
    app()
