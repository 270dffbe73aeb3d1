"""`minigpt4 data ...`: parsing and printing only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minigpt4.telling import say

data = typer.Typer(no_args_is_help=True, help="Look at data, download them, cache the vision side's features of them.")

_Source = Annotated[
    str,
    typer.Argument(help="Tar shards ({00000..00012}.tar), a directory, .jsonl, .csv, .parquet, or hub:NAME[:SPLIT]."),
]
_Stage = Annotated[int, typer.Option(min=1, max=2, help="1: captions. 2: descriptions, instructions, conversations.")]
_CaptionKey = Annotated[str | None, typer.Option(help="Column or JSON key of the text; the usual ones by default.")]


@data.command()
def inspect(
    source: _Source,
    stage: _Stage = 1,
    caption_key: _CaptionKey = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs to look at, from the start.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet of 24 pictures, as sheet.png.")] = None,
) -> None:
    """Show counts, lengths of texts, and problems of a source of pairs.

    Example: minigpt4 data inspect photos --out sheet.png
    """
    from minigpt4.data.inspect import contact_sheet
    from minigpt4.data.inspect import inspect as look
    from minigpt4.data.sources import Source

    found = look(Source(source, caption_key=caption_key), stage=stage, limit=limit)
    say(found)
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
    image_size: Annotated[int, typer.Option(min=1, help="Larger pictures are reduced to this shorter side.")] = 256,
    timeout: Annotated[int, typer.Option(min=1, help="Seconds that a picture may take.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many pairs from the list's start.")] = None,
) -> None:
    """Download the pictures of BLIP's caption lists as tar shards, with img2dataset.

    Example: minigpt4 data download ccs_synthetic_filtered_large.json --out data/cc_sbu
    """
    from minigpt4.data import download as downloading

    if captions is None:
        say(downloading.where())
        return
    counts = downloading.download(
        captions, out, processes=processes, threads=threads, image_size=image_size, timeout=timeout, limit=limit
    )
    for outcome, count in counts.most_common():
        say(f"{outcome}: {count}")


@data.command()
def features(
    source: _Source,
    model: Annotated[str, typer.Option(help="Whose vision side: an alignment or an export, or pocket.")],
    out: Annotated[Path, typer.Option(help="The cache, which recipes name as feature_cache.")],
    stage: _Stage = 1,
    caption_key: _CaptionKey = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and decode pictures.")] = 0,
    max_skipped: Annotated[float, typer.Option(min=0, max=1, help="Share of unusable pairs that ends it.")] = 0.1,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16; as training takes by default.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; CUDA if there is one.")] = None,
) -> None:
    """Run the frozen vision side over a source once, and keep its output for training. Goes on where it was stopped.

    Example: minigpt4 data features runs/pocket/data/stage1 --model pocket --out runs/pocket/features
    """
    from minigpt4.data.mixture import Source, check_sources

    source_ = Source(source, caption_key=caption_key)
    check_sources([source_], stage)  # a wrong path is known before the model is loaded
    from minigpt4.model.precision import resolve_device, training_dtype
    from minigpt4.model.vision import load_vision_side
    from minigpt4.training.features import encode_source

    resolved = resolve_device(device)
    loaded = load_vision_side(model, dtype=dtype or training_dtype(resolved), device=resolved)
    say(encode_source(loaded, out, source_, stage=stage, workers=workers, max_skipped_share=max_skipped))
