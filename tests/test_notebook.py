"""The notebook runs from its first cell to its last, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "photo.ipynb"


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    script = tmp_path / "cells.py"
    script.write_text("\nprint('== cell')\n".join(cells("code")), encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900
    )
    assert run.returncode == 0, run.stderr
    said = run.stdout.split("== cell\n")
    assert all(len(text.split()) > 5 for text in (said[1], said[2]))  # an answer, and one without the image
    before, after = re.findall(r"^(?:before|after) - (.*)$", said[-1], re.MULTILINE)
    [metrics] = tmp_path.glob("*/run/metrics.jsonl")
    losses = [json.loads(line)["loss"] for line in metrics.read_text().splitlines()]
    assert before != after
    assert min(losses[-3:]) < 0.7 * losses[0], (losses, before, after)


def test_links_of_the_notebook_lead_somewhere() -> None:
    links = [link for text in cells("markdown") for link in re.findall(r"\]\(([^)]+)\)", text)]
    assert links
    assert all((NOTEBOOK.parent / link).is_file() for link in links)
