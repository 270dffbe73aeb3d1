"""Former names of modules: code that imports a module by its name of release 0.1 works for one more release."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_LINES = Path(__file__).with_suffix(".tsv").read_text(encoding="utf-8").splitlines()
FORMER_NAMES = {f"minigpt4.{former}": f"minigpt4.{today}" for former, today in map(str.split, _LINES)}


class _FormerNames(MetaPathFinder, Loader):
    """Gives the module of today for a former name. It is asked last, so today's modules never reach it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in FORMER_NAMES else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of `module`, which Python has made for the former name."""
        today = FORMER_NAMES[module.__name__]
        warnings.warn(f"{module.__name__} is called {today} now", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(today)


sys.meta_path.append(_FormerNames())
