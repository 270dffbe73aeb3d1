"""The progress bar of every job that takes more than a few seconds; silent where no one watches."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from minigpt4.telling import shown


class _Shown(TextColumn):
    def render(self, task: Task) -> Text:
        return Text(shown(super().render(task)))


def progress_bar(enabled: bool = True) -> Progress:
    """A progress bar on stderr, to be used as a context manager; it draws nothing unless stderr is a terminal.

    Each task has a field `note`: `add_task(..., note="")`, `update(task, note="loss 0.43")`.
    """
    console = Console(stderr=True)
    columns = (
        _Shown("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Shown("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, disable=not (enabled and console.is_terminal))
