"""Killed at any statement, a step that is started again leaves what the undisturbed step leaves (describe, refine and
ground have such tests of their own)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curating import TEXTS
from minigpt4.curation.dataset import write_dataset
from minigpt4.curation.filters import DEFAULTS, filter_items
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.select import select

SCRIPT = Path(__file__).with_name("steps_in_trouble.py")


@pytest.mark.parametrize("step", ["import", "filter", "select", "export", "review"])
def test_no_row_is_lost_or_doubled(step: str, project: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    with Ledger(project) as ledger:
        scores = {"sentences": [], "lowest": 0.5, "whole": 0.5, "fluency": -1.0}
        settings = ledger.settings("ground", {})
        ledger.add("ground", settings, [(item.key, item.source.seq, scores) for item in ledger.items()])
        if step != "filter":
            filter_items(ledger, DEFAULTS)
        write_dataset(ledger, data, "cc_sbu_align")
    target = tmp_path / "new" if step == "import" else project
    command = [sys.executable, str(SCRIPT), step, str(target), str(data), str(out)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 2
    with Ledger(target) as ledger:
        items = ledger.items()
        assert len(items) == len(ledger.images()) == 12
        assert [item.text for item in items] == list(TEXTS)
        if step == "import":
            assert len(ledger.events("describe")) == 12
        if step == "filter":
            assert len(ledger.events("filter")) == 12
            assert filter_items(ledger, {**DEFAULTS, "too_short": 18})["changed"] == 0
        if step == "select":
            assert sum(item.kept for item in items) == 3
            assert len(ledger.events("select")) == 12
            assert select(ledger, 3)["changed"] == 0
        if step == "review":
            assert len(ledger.events("review")) == 12
            assert [item.final for item in items] == [text if i % 2 == 0 else None for i, text in enumerate(TEXTS)]
    if step == "export":
        captions = [a["caption"] for a in json.loads((out / "filter_cap.json").read_text())["annotations"]]
        assert captions == list(TEXTS)
        assert len(list((out / "image").iterdir())) == 12
        assert not list(tmp_path.glob(".out.*")), "what killed exports leave is cleared up by the next"
