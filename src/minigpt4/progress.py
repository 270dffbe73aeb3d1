"""The progress bar of every job that takes more than a few seconds; silent where no one watches."""

from rich import progress
from rich.console import Console
from rich.text import Text

from minigpt4.telling import shown


class _Shown(progress.TextColumn):
    def render(self, task: progress.Task) -> Text:
        return Text(shown(super().render(task)))


def progress_bar(enabled: bool = True) -> progress.Progress:
    """A progress bar on stderr, a context manager, silent unless that is a terminal. Each task has a field `note`."""
    console = Console(stderr=True)
    title, note = _Shown("{task.description}", markup=False), _Shown("{task.fields[note]}", markup=False)
    times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn()
    columns = title, progress.BarColumn(), progress.MofNCompleteColumn(), note, *times
    return progress.Progress(*columns, console=console, disable=not (enabled and console.is_terminal))
