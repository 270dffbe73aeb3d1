"""`minigpt4 data ...`: parsing and printing only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minigpt4.telling import say

data = typer.Typer(no_args_is_help=True, help="Look at data, download them, cache the vision side's features of them.")

SourceName = Annotated[
    str,
    typer.Argument(help="Tar shards ({00000..00012}.tar), a directory, .jsonl, .csv, .parquet, or hub:NAME[:SPLIT]."),
]
Stage = Annotated[int, typer.Option(min=1, max=2, help="1: captions. 2: descriptions, instructions, conversations.")]
CaptionKey = Annotated[str | None, typer.Option(help="Column or JSON key of the text; the usual ones by default.")]


@data.command()
def inspect(
    source: SourceName,
    stage: Stage = 1,
    caption_key: CaptionKey = None,
    limit: Annotated[int, typer.Option(min=1, help="Pairs to look at, from the start.")] = 1000,
    out: Annotated[Path | None, typer.Option(help="Write a contact sheet of 24 images, as sheet.png.")] = None,
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
