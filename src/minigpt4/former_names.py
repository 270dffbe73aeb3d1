"""Former names of modules: code that imports a module by its name of release 0.1 works for one more release."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORMER_NAMES = {
    "minigpt4.app.gate": "minigpt4.app.api.gate",
    "minigpt4.app.page_gate": "minigpt4.app.page.gate",
    "minigpt4.app.pictures": "minigpt4.app.api.remote_images",
    "minigpt4.app.schema": "minigpt4.app.api.schema",
    "minigpt4.app.service": "minigpt4.app.api.service",
    "minigpt4.app.session": "minigpt4.app.page.session",
    "minigpt4.data.descriptions": "minigpt4.data.formats",
    "minigpt4.data.features": "minigpt4.training.features",
    "minigpt4.data.images": "minigpt4.images",
    "minigpt4.data.tables": "minigpt4.data.formats",
    "minigpt4.evaluation.answerers": "minigpt4.evaluation.models",
    "minigpt4.evaluation.reliability": "minigpt4.text_failures",
    "minigpt4.evaluation.remote": "minigpt4.evaluation.models",
    "minigpt4.evaluation.statistics": "minigpt4.statistics",
    "minigpt4.generation.attention": "minigpt4.app.page.attention",
    "minigpt4.generation.continuous": "minigpt4.generation.batching",
    "minigpt4.generation.endings": "minigpt4.generation.stopping",
    "minigpt4.generation.endpoint": "minigpt4.endpoint",
    "minigpt4.generation.jobs": "minigpt4.app.batch_job",
    "minigpt4.listening": "minigpt4.local_web",
    "minigpt4.local_page": "minigpt4.local_web",
    "minigpt4.model.adapters": "minigpt4.model.lora",
    "minigpt4.model.alignment": "minigpt4.minigpt4",
    "minigpt4.model.eight_bits": "minigpt4.model.quantization",
    "minigpt4.model.packed": "minigpt4.model.packing",
    "minigpt4.model.plan": "minigpt4.memory",
    "minigpt4.model.record": "minigpt4.model.loading",
    "minigpt4.model.released": "minigpt4.model.convert",
    "minigpt4.model.start": "minigpt4.model.projection",
    "minigpt4.model.streaming": "minigpt4.model.convert",
    "minigpt4.prompts.own": "minigpt4.prompts.jinja",
    "minigpt4.training.run": "minigpt4.training.train",
}


class _FormerNames(MetaPathFinder, Loader):
    """Gives the module of today for a former name. It is asked last, so today's modules never reach it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in FORMER_NAMES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Python's default module; `exec_module` puts another one in its place."""

    def exec_module(self, module: ModuleType) -> None:
        today = FORMER_NAMES[module.__name__]
        warnings.warn(f"{module.__name__} is called {today} now", DeprecationWarning, stacklevel=2)
        sys.modules[module.__name__] = importlib.import_module(today)


sys.meta_path.append(_FormerNames())
