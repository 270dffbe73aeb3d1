"""The command line: parsing and printing only."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def root() -> None:
    """MiniGPT-4: a frozen vision tower and a frozen LLM, aligned by one linear layer."""


def main() -> None:
    app()
