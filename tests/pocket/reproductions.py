"""A reproduction at toy size, as a process of its own that tests can kill."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from minigpt4.errors import UserError
from pocket.reproduce.artifacts import Parts, Workshop
from pocket.reproduce.experiments import Scale
from pocket.reproduce.run import reproduce

TOY = Scale(
    "toy", (0,), pairs=8, descriptions=5, stage1_steps=2, stage2_steps=2, questions=1, scenes=2, stage1_shares=(0.5,),
    stage2_sets=(6,), skills=("poem",), first_lessons=1, skill_steps=1,
)  # fmt: skip


def toy(out: Path, vision: Path, llm: Path, baseline: Path) -> Workshop:
    """A workshop whose parts are the toy ones of `conftest.py`."""
    parts = Parts(str(vision), str(llm), str(baseline), str(llm))
    return Workshop(out, TOY, parts, {"batch_size": 4, "warmup_steps": 1})


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:5]]
    page = places[0] / "docs" / "results.md"
    try:
        reproduce(toy(*places), page, "minigpt4 pocket reproduce", Console(quiet=True), processes=int(sys.argv[5]))
    except UserError as mistake:
        sys.exit(f"minigpt4: {mistake}")
