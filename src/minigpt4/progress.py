"""The progress bar of every job that takes more than a few seconds; silent where no one watches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(enabled: bool = True) -> Progress:
    """A progress bar on stderr, to be used as a context manager; it draws nothing unless stderr is a terminal.

    Each task has a field `note`: `add_task(..., note="")`, `update(task, note="loss 0.43")`.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not (enabled and console.is_terminal))
