"""The tables of phrases, which are data: `*.yaml` beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_table(name: str) -> dict[str, Any]:
    """What `NAME.yaml` holds."""
    return yaml.safe_load(Path(__file__).with_name(f"{name}.yaml").read_text(encoding="utf-8"))
