"""What comes out can be trained on, loaded and taken in again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from curating import TEXTS, assert_one_line, run
from formats import read
from minigpt4.curation.dataset import write_dataset
from minigpt4.curation.filters import DEFAULTS, filter_items
from minigpt4.curation.ledger import Ledger
from minigpt4.errors import UserError


@pytest.fixture
def judged(project: Path) -> Path:
    """The project, with one text caught, one rejected and one edited by a person."""
    with Ledger(project) as ledger:
        settings = ledger.settings("refine", {"model": "editor", "instruction": "Mend"})
        items = ledger.items()
        short = {"text": "A ball.", "accepted": True, "reason": None, "tokens": 9, "endpoint": "http://secret.host"}
        drift = {"text": "Elephants.", "accepted": False, "reason": "drift", "tokens": 9}
        rows = [(items[0].key, items[0].raw.seq, short), (items[1].key, items[1].raw.seq, drift)]
        ledger.add("refine", settings, rows)
        filter_items(ledger, {**DEFAULTS, "duplicate_picture": None})
        by_hand = ledger.settings("review", {})
        for turn, (name, verdict, text) in enumerate([("2", "reject", None), ("3", "edit", "By hand: “a cup”.")]):
            [item] = ledger.items([name])
            data = {"reviewer": "Ann", "verdict": verdict, "text": text}
            ledger.add("review", by_hand, [(item.key, item.source.seq, data)], turn)
    return project


def test_cc_sbu_align_is_what_stage_2_reads(judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    result = run("export", judged, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "train: 10" in result.stdout
    pairs, skipped = read(out, stage=2)
    assert not skipped
    assert [pair.text for pair in pairs] == [TEXTS[1], "By hand: “a cup”.", *TEXTS[4:]]
    annotations = json.loads((out / "filter_cap.json").read_text())["annotations"]
    assert annotations[0] == {"image_id": "1", "caption": TEXTS[1]}
    assert sorted(path.name for path in (out / "image").iterdir()) == sorted(f"{i}.jpg" for i in range(1, 11))
    assert all(Image.open(path).format == "JPEG" for path in (out / "image").iterdir())
    assert_one_line(run("export", judged, "--out", out), str(out), "exists")


def test_a_split_stays_as_it_is_when_pictures_are_added(judged: Path, tmp_path: Path) -> None:
    with Ledger(judged) as ledger:
        counts = write_dataset(ledger, tmp_path / "a", "cc_sbu_align", validation=0.4)
        assert counts["train"] + counts["validation"] == 10
        captions = {
            split: {
                a["caption"]
                for a in json.loads((tmp_path / "a" / split / "filter_cap.json").read_text())["annotations"]
            }
            for split in ("train", "validation")
        }
        assert not captions["train"] & captions["validation"]
        ledger.add("filter", ledger.settings("filter", {}), [
            (item.key, item.source.seq, {"caught": ["too_short"], "values": {}}) for item in ledger.items(["5", "6"])
        ], turn=99)  # fmt: skip
        write_dataset(ledger, tmp_path / "b", "cc_sbu_align", validation=0.4)
    for split, before in captions.items():
        annotations = json.loads((tmp_path / "b" / split / "filter_cap.json").read_text())["annotations"]
        assert {a["caption"] for a in annotations} == before - {TEXTS[5], TEXTS[6]}


def test_an_image_folder_loads_and_its_card_tells_the_story(judged: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = tmp_path / "folder"
    more = ("--format", "imagefolder", "--validation", 0.4, "--license", "cc-by-4.0")
    result = run("export", judged, "--out", out, *more)
    assert result.returncode == 0, result.stderr
    loaded = load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    rows = [row for split in ("train", "validation") for row in loaded[split]]
    assert {row["text"] for row in rows} == {TEXTS[1], "By hand: “a cup”.", *TEXTS[4:]}
    assert sum(row["reviewed"] for row in rows) == 1
    assert rows[0]["image"].size == (32, 32)
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    for line in (
        "| described | 12 |",
        "| too_short | 1 |",
        "| drift | 1 |",
        "| rejected in review | 1 |",
        "model: editor",
    ):
        assert line in card
    assert "secret.host" not in card


def test_pictures_that_are_gone_are_left_out(judged: Path, pictures: Path, tmp_path: Path) -> None:
    for name in range(4, 12):
        (pictures / f"{name}.png").unlink()
    with Ledger(judged) as ledger:
        assert write_dataset(ledger, tmp_path / "a", "cc_sbu_align") == {"train": 2, "left out": 8}
        (pictures / "1.png").unlink()
        (pictures / "3.png").unlink()
        with pytest.raises(UserError, match="no finished text"):
            write_dataset(ledger, tmp_path / "b", "cc_sbu_align")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(("b", ".b"))) == []


def test_an_existing_dataset_is_taken_in_and_audited(judged: Path, tmp_path: Path) -> None:
    out, audit = tmp_path / "data", tmp_path / "audit"
    with Ledger(judged) as ledger:
        write_dataset(ledger, out, "cc_sbu_align")
    record = json.loads((out / "filter_cap.json").read_text())
    record["annotations"][0]["caption"] = "I'm sorry, I made a mistake: the picture shows a red ball in a meadow."
    record["annotations"] += [{"image_id": "77", "caption": "There is no image of this."}]
    (out / "filter_cap.json").write_text(json.dumps(record))
    for new in (10, 0):
        result = run("import", audit, "--data", out)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        assert f"new texts: {new}" in lines
        assert "apology: 1" in lines
        assert "image/77: no such file" in result.stderr
    corrected = json.loads(json.dumps(record))
    corrected["annotations"][0]["caption"] = "A red ball lies in a meadow under a tree with green leaves."
    (out / "filter_cap.json").write_text(json.dumps(corrected))
    assert "new texts: 1" in run("import", audit, "--data", out).stdout.splitlines()
    (out / "filter_cap.json").write_text(json.dumps(record))
    assert "new texts: 1" in run("import", audit, "--data", out).stdout.splitlines()
    with Ledger(audit) as ledger:
        assert len(ledger.events("describe")) == 12
        again = tmp_path / "again"
        write_dataset(ledger, again, "cc_sbu_align")
    texts = [pair.text for pair in read(again, stage=2)[0]]

    assert record["annotations"][0]["caption"] not in texts
    assert_one_line(run("import", tmp_path / "new", "--data", tmp_path / "none"), "no such directory")
    assert not (tmp_path / "new").exists()
