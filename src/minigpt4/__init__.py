"""MiniGPT-4: a frozen vision tower and Q-Former, a frozen LLM, and one linear layer that aligns them.

`import minigpt4` is cheap: torch and transformers are first read when `MiniGPT4` is.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minigpt4 import former_names  # noqa: F401  # lets imports by former names work
from minigpt4.errors import UserError

if TYPE_CHECKING:
    from minigpt4.generation.chat import Chat
    from minigpt4.minigpt4 import MiniGPT4

__version__ = "0.1.0"
__all__ = ["Chat", "MiniGPT4", "UserError", "__version__"]
_HOMES = {"Chat": "minigpt4.generation.chat", "MiniGPT4": "minigpt4.minigpt4"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
