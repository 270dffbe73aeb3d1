"""The photo model's last step: what was trained goes where the package ships it.

python tools/photo/ship.py parts runs/photo/generative
python tools/photo/ship.py alignment photo-stage1 runs/photo/stage1/alignment

`parts` takes the Q-Former, and makes the BLIP-2 baseline of it and the projection that learnt with it. The same in the
LLM's own chat format goes to runs/photo/generative/alignment: stage 1 starts there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from minigpt4 import MiniGPT4
from minigpt4.model.loading import write_json
from minigpt4.shipped import WEIGHTS

#: How its answers are decoded: a small LLM loops without a penalty, and wanders with chance. Chosen on validation data.
DECODING = {"do_sample": False, "repetition_penalty": 1.15}


def ship_parts(trained: Path) -> None:
    """The Q-Former and the baseline's alignment."""
    shutil.copytree(trained / "vision", WEIGHTS / "vision", dirs_exist_ok=True)  # what is familiar stays
    model = MiniGPT4.assemble("photo/vision", "photo/language", template="blip2", dtype=torch.float32)
    model.blip2.language_projection.load_state_dict(load_file(trained / "projection.safetensors"))
    model.decoding = DECODING
    model.save_pretrained(WEIGHTS / "alignments" / "photo-blip2", overwrite=True)
    start = MiniGPT4.assemble("photo/vision", "photo/language", dtype=torch.float32)
    start.blip2.language_projection.load_state_dict(model.blip2.language_projection.state_dict())
    start.save_pretrained(trained / "alignment", overwrite=True)


def ship_alignment(name: str, trained: Path) -> None:
    """An alignment of the shipped parts."""
    shutil.rmtree(WEIGHTS / "alignments" / name, ignore_errors=True)
    shutil.copytree(trained, WEIGHTS / "alignments" / name)
    record = WEIGHTS / "alignments" / name / "alignment.json"
    write_json(record, json.loads(record.read_text(encoding="utf-8")) | {"decoding": DECODING})


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
