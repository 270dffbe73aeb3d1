"""What ships with the pocket world: the weights of its models and parts, and its recipes."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).parent


def weights() -> Path:
    """The folder of the shipped weights, or the one that MINIGPT4_POCKET_WEIGHTS names."""
    return Path(os.environ.get("MINIGPT4_POCKET_WEIGHTS") or HERE / "weights")


def models() -> dict[str, Path]:
    """Directories by name: aligned models, then the parts from which they are made."""
    alignments = {name: weights() / "alignments" / name for name in ("pocket", "pocket-stage1", "pocket-blip2")}
    return alignments | {f"pocket/{part}": weights() / part for part in ("vision", "language", "captioner")}


def recipes() -> Path:
    """The folder of the recipes for the pocket parts."""
    return HERE / "recipes"
