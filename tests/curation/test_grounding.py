"""Grounding and selection."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from curating import TEXTS, picture_file, run
from minigpt4.curation.grounding import ground, measure_grounding
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.select import choose, cluster, select
from minigpt4.errors import UserError


@pytest.fixture(scope="session")
def alignment(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from minigpt4.minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("model") / "alignment"
    MiniGPT4.assemble(tiny_vision, tiny_llm, template="pocket", seed=1).save_pretrained(directory)
    return directory


def test_a_score_is_the_share_of_surprise_that_the_picture_explains(alignment: Path) -> None:
    from minigpt4.minigpt4 import MiniGPT4

    model = MiniGPT4.from_pretrained(alignment, dtype="float32")
    text = "A cup. A star."
    tokens = len(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    other = -torch.ones(2, tokens) * torch.tensor([[1.0], [3.0]])
    same = measure_grounding(model, text, other.mean(0), other)
    assert [(start, end) for start, end, _ in same["sentences"]] == [(0, 6), (7, 14)]
    assert (same["whole"], same["lowest"], same["fluency"]) == (0.0, 0.0, -2.0)
    certain = measure_grounding(model, text, torch.zeros(tokens), other)
    assert (certain["whole"], certain["lowest"]) == (1.0, 1.0)
    against = measure_grounding(model, text, -4 * torch.ones(tokens), other)
    assert (against["whole"], against["lowest"]) == (-1.0, -1.0)
    assert measure_grounding(model, "...", other[0], other)["lowest"] == 0.0


def test_every_text_is_scored_once(project: Path, pictures: Path, alignment: Path) -> None:
    (pictures / "7.png").unlink()
    with Ledger(project) as ledger:
        assert ground(ledger, alignment) == {"scored": 11, "left out": 1, "done before": 0}
        (pictures / "7.png").write_bytes(picture_file(7))
        assert ground(ledger, alignment) == {"scored": 1, "left out": 0, "done before": 11}
        assert ground(ledger, alignment)["scored"] == 0
        for item in ledger.items():
            assert item.grounding is not None
            assert [item.text[start:end] for start, end, _ in item.grounding["sentences"]] == [
                sentence + "." for sentence in item.text.rstrip(".").split(". ")
            ]
        one = ground(ledger, alignment, others=2, only=["1"])
        assert one["scored"] == 1
        assert ground(ledger, alignment)["scored"] == 1, "the newest measure counts, so it is made again"


def test_a_text_that_is_the_raw_one_again_is_measured_again(project: Path, alignment: Path) -> None:
    with Ledger(project) as ledger:
        assert ground(ledger, alignment)["scored"] == 12
        item, settings = ledger.items()[0], ledger.settings("refine", {"model": "editor"})
        for turn, accepted in enumerate((True, False)):
            data = {"text": "A red ball.", "ended": True, "accepted": accepted, "reason": None, "tokens": 0}
            ledger.add("refine", settings, [(item.key, item.raw.seq, data)], turn)
            assert ground(ledger, alignment)["scored"] == 1
            assert all(item.grounding for item in ledger.items())


def test_a_file_whose_name_is_not_utf8_is_left_out(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("minigpt4.curation.ledger"), "disabled", True)  # pytest keeps no such name
    odd = Path(os.fsdecode(os.fsencode(pictures) + b"/caf\xe9.png"))
    odd.write_bytes(picture_file(50))
    with Ledger(tmp_path / "new", create=True) as ledger:
        assert ledger.add_images([("0", pictures / "0.png"), (odd.stem, odd)]) == {odd.stem}
        assert [image.name for image in ledger.images()] == ["0"]


def test_one_picture_is_too_few(tmp_path: Path, pictures: Path, alignment: Path) -> None:
    from curating import add_texts

    with Ledger(tmp_path / "p", create=True) as ledger:
        add_texts(ledger, pictures, TEXTS[:1])
        with pytest.raises(UserError, match="at least two"):
            ground(ledger, alignment)


KILLED = """
import sys
from minigpt4.curation import grounding
from minigpt4.curation.ledger import Ledger
grounding.BATCH = 2
with Ledger(sys.argv[1]) as ledger:
    grounding.ground(ledger, sys.argv[2])
"""


def test_killed_it_goes_on(project: Path, alignment: Path) -> None:
    with Ledger(project) as ledger:
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(project), str(alignment)])
        while not ledger.events("ground"):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = len(ledger.events("ground"))
        assert 0 < done < 12
        assert ground(ledger, alignment)["scored"] == 12 - done
        assert len(ledger.events("ground")) == 12


def test_groups_send_their_best_in_proportion() -> None:
    groups = np.array([0] * 6 + [1] * 3 + [2])
    scores = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.5, 0.6, 0.4, 0.0])
    assert choose(10, scores, groups) == list(range(10))
    assert choose(3, scores, groups) == [1, 3, 7]
    assert len(choose(5, scores, groups)) == 5
    assert choose(0, scores, groups) == []


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(centre, 0.05, (20, 4)) for centre in (0, 2, 5)])
    found = cluster(vectors, 3)
    assert [len(set(found[start : start + 20])) for start in (0, 20, 40)] == [1, 1, 1]
    assert len(set(found)) == 3
    assert set(cluster(np.ones((5, 2)), 3)) == {0}


def test_the_best_are_selected_and_a_selection_is_taken_back(project: Path, alignment: Path) -> None:
    with Ledger(project) as ledger, pytest.raises(UserError, match="run minigpt4 curate filter first"):
        select(ledger, 3)
    result = run("filter", project, "--model", alignment, "--rules", _only_grounding_off(project))
    assert result.returncode == 0, result.stderr
    with Ledger(project) as ledger:
        with pytest.raises(UserError, match="only 12 images"):
            select(ledger, 13)
        assert select(ledger, 4, model=alignment)["selected"] == 4
        assert select(ledger, 4, model=alignment)["changed"] == 0
        chosen = [item for item in ledger.items() if item.kept]
        assert len(chosen) == 4
        assert all(0 <= item.selection.data["quality"] <= 1 for item in chosen if item.selection)
        select(ledger, None)
        assert all(item.kept for item in ledger.items())
        assert json.dumps([event.data for event in ledger.events("select")]).count('"selected": true') == 4
    assert run("select", project).returncode == 2


def _only_grounding_off(project: Path) -> Path:
    file = project / "rules.yaml"
    file.write_text("ungrounded_sentence: null\nungrounded_text: null\n")
    return file
