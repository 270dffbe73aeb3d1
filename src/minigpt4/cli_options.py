"""Options that several commands share: one name, one default and one definition each."""

from pathlib import Path
from typing import Annotated

import typer

MODELS = "photo or pocket (or either with -stage1 or -blip2), or a model's directory or hub id"
Model = Annotated[str, typer.Argument(help=f"{MODELS}.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on CUDA, else float32.")]
LoadIn = Annotated[str | None, typer.Option(help="Quantize the LLM's linear layers: 4bit or 8bit, fp8 or int8.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, or auto to spread the LLM; CUDA if there is one.")]
WrittenDtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; as in the files.")]
NewDirectory = Annotated[Path, typer.Option("--out", help="A new directory.")]
Quantize = Annotated[str | None, typer.Option(help="4bit: write the LLM's linear layers so, for CPUs.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run wrote there.")]
Template = Annotated[str | None, typer.Option(help="Chat format; the LLM's own by default.")]

BatchSize = Annotated[int, typer.Option("--batch-size", "--batch", min=1, help="Images computed together.")]
BATCH_SIZE = 8
MaxNewTokens = Annotated[int, typer.Option(min=1, help="The longest answer, in tokens; it is cut there.")]
MAX_NEW_TOKENS = 300
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")]
Seed = Annotated[int, typer.Option(min=0, help="Makes what is drawn at random repeatable.")]

Concurrency = Annotated[int, typer.Option(min=1, max=256, help="Requests to an endpoint at the same time.")]
CONCURRENCY = 4
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer of an endpoint.")]
TIMEOUT = 120.0

Host = Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 lets other machines in.")]
HOST = "127.0.0.1"
Port = Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 picks a free one.")]

Source = Annotated[
    str,
    typer.Argument(help="Tar shards ({00000..00012}.tar), a directory, .jsonl, .csv, .parquet, or hub:NAME[:SPLIT]."),
]
Stage = Annotated[int, typer.Option(min=1, max=2, help="1: captions. 2: descriptions, instructions, conversations.")]
CaptionKey = Annotated[str | None, typer.Option(help="Column or JSON key of the text; the usual ones by default.")]
