"""Step 4 of the photo model: what was trained goes where the package ships it.

python tools/photo/ship.py parts runs/photo/qformer
python tools/photo/ship.py alignment photo-stage1 runs/photo/stage1/alignment

`parts` takes the Q-Former and the captioning LM, and makes the BLIP-2 baseline of them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from minigpt4 import MiniGPT4
from minigpt4.shipped import WEIGHTS


def ship_parts(trained: Path) -> None:
    """The Q-Former, the captioning LM and the baseline's alignment."""
    for part in ("vision", "captioner"):
        shutil.rmtree(WEIGHTS / part, ignore_errors=True)
        shutil.copytree(trained / part, WEIGHTS / part)
    model = MiniGPT4.assemble("photo/vision", "photo/captioner", template="blip2", dtype=torch.float32)
    model.blip2.language_projection.load_state_dict(load_file(trained / "projection.safetensors"))
    model.save_pretrained(WEIGHTS / "alignments" / "photo-blip2", overwrite=True)


def ship_alignment(name: str, trained: Path) -> None:
    """An alignment of the shipped parts."""
    shutil.rmtree(WEIGHTS / "alignments" / name, ignore_errors=True)
    shutil.copytree(trained, WEIGHTS / "alignments" / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("parts").add_argument("trained", type=Path)
    alignment = commands.add_parser("alignment")
    alignment.add_argument("name")
    alignment.add_argument("trained", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "parts":
        ship_parts(arguments.trained)
    else:
        ship_alignment(arguments.name, arguments.trained)


if __name__ == "__main__":
    main()
