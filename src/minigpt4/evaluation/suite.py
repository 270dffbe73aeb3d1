"""A suite: its items, the judge of their answers, and how verdicts add up to figures beside the paper's."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from minigpt4.errors import UserError
from minigpt4.evaluation.items import Case, Items, Response
from minigpt4.evaluation.judges import Judge
from minigpt4.evaluation.results import Journal
from minigpt4.extensions import extensions
from minigpt4.statistics import Estimate, Rate


@dataclass(frozen=True)
class TableRow:
    """A line of the table."""

    name: str
    label: str
    unit: str = "%"  # as `statistics.text` takes it: "%", "of", or one such as "words"
    paper: Mapping[str, str] = field(default_factory=dict)  # the paper's figures, by its names of the models
    group: str = ""  # the heading that the line stands under


#: The lines of a table, each with the figure of one model.
Table = Iterable[tuple[TableRow, Rate | Estimate]]


class Suite(ABC):
    """`name` is the command and the directory; `title` heads the table; `notes` stand below it."""

    name: str
    title: str
    judge: Judge
    notes: tuple[str, ...] = ()

    @abstractmethod
    def load(self, directory: Path) -> Items:
        """The items and the faults. `directory` is the suite's own, for images that it draws."""

    def cases(self, answer: Response) -> Sequence[Case]:
        """What is to be decided about an answer; by default one thing, of which the judge needs the text only."""
        return [Case(answer, {"answer": answer.text})]

    @abstractmethod
    def table(self, responses: Sequence[Response]) -> Table:
        """What the responses of one model come to."""

    def more(self, responses: Sequence[Response], verdicts: Journal) -> Mapping[str, Any]:
        """Anything else for results.json; `agreement`, as of `statistics`, is shown too. By default nothing."""
        return {}

    def plots(self, results: Mapping[str, Any]) -> Mapping[str, bytes]:
        """Plots beside the bars that every suite gets, as file names and PNGs; by default none."""
        return {}


class DefaultData(Protocol):
    """What suites ask about if no data is given: images whose truth is known, from an extension (`benchmarks`)."""

    #: How to ask for a `description` and a `poem`, and how to put a `question` and a `choice`, with {} in its place.
    wording: Mapping[str, str]

    # Each draws `count` images into `directory`, and returns them or the files that name them.
    def images(self, directory: Path, count: int) -> list[Path]: ...
    def tasks(self, directory: Path, count: int) -> Path: ...
    def coco(self, directory: Path, count: int) -> tuple[Path, Path, Path]: ...  # captions, instances, folder of images
    def questions(self, directory: Path, count: int) -> tuple[list[Path], Path]: ...  # files, folder of images

    # What is wrong with an answer, or which fact of a caption is not in a description; None if nothing is.
    def what_is_wrong(self, known: Mapping[str, Any], prompt: str, answer: str) -> str | None: ...
    def missing_fact(self, caption: str, description: str) -> str | None: ...


def default_data() -> DefaultData:
    """The default data of this installation. Raises UserError if it has none."""
    found = extensions("benchmarks")
    if not found:
        raise UserError("no default images are installed; name your own (--data)")
    return found[0]


def require_images(data: Path | None, images: Path | None) -> None:
    """Raises UserError for data without the directory of its images."""
    if data is not None and images is None:
        raise UserError(f"{data}: names images, so give their directory too (--images)")
