"""Former names of modules: code that imports a module by its name of release 0.1 works for one more release."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_NAMES = {
    "app.gate": "app.api.gate", "app.page_gate": "app.page.gate", "app.pictures": "app.api.remote_images",
    "app.schema": "app.api.schema", "app.service": "app.api.service", "app.session": "app.page.session",
    "data.descriptions": "data.formats", "data.features": "training.features", "data.images": "images",
    "data.tables": "data.formats", "evaluation.answerers": "evaluation.models",
    "evaluation.reliability": "text_failures", "evaluation.remote": "evaluation.models",
    "evaluation.statistics": "statistics", "generation.attention": "app.page.attention",
    "generation.continuous": "generation.batching", "generation.endings": "generation.stopping",
    "generation.endpoint": "endpoint", "generation.jobs": "app.batch_job", "listening": "local_web",
    "local_page": "local_web", "model.adapters": "model.lora", "model.alignment": "minigpt4",
    "model.eight_bits": "model.quantization", "model.packed": "model.packing", "model.plan": "memory",
    "model.record": "model.loading", "model.released": "model.convert", "model.start": "model.projection",
    "model.streaming": "model.convert", "prompts.own": "prompts.jinja", "training.run": "training.train",
}  # fmt: skip
FORMER_NAMES = {f"minigpt4.{former}": f"minigpt4.{today}" for former, today in _NAMES.items()}


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
