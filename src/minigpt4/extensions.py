"""What other packages, such as the laboratory, add to the library, by entry points of the group `minigpt4.<kind>`:

* `models`: a function that gives {name: directory} of models and parts.
* `recipes`: a function that gives a directory of recipes.
* `benchmarks`: a module of the form of `evaluation.suite.DefaultData`.
"""

import functools
from importlib.metadata import entry_points
from typing import Any


@functools.cache
def extensions(kind: str) -> tuple[Any, ...]:
    """The objects that installed packages have registered as `kind`, by the packages' names."""
    found = sorted(entry_points(group=f"minigpt4.{kind}"), key=lambda entry: entry.name)
    return tuple(entry.load() for entry in found)
