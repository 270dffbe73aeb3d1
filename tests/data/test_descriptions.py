from __future__ import annotations

import json
from pathlib import Path

import pytest

from formats import read
from minigpt4.data.formats import read_annotations
from minigpt4.errors import UserError


def test_descriptions_in_order(tiny_descriptions: Path) -> None:
    pairs, skipped = read(tiny_descriptions, stage=2)
    assert [Path(pair.name).name for pair in pairs] == [f"{i}.png" for i in range(12)]
    assert pairs[1].text == "The image is green. It has a dot."
    assert not skipped


def test_unusable_ones_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    for name in ("1.jpg", "3.webp"):
        (tmp_path / "image" / name).write_bytes(b"picture")
    annotations = [
        {"image_id": 1, "caption": "kept"},
        {"image_id": "2", "caption": "its picture is missing"},
        {"image_id": "3", "caption": " "},
    ]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    pairs, skipped = read(tmp_path, stage=2)
    assert [pair.text for pair in pairs] == ["kept"]
    assert skipped == {"no image": 1, "no description": 1}


@pytest.mark.parametrize("content", ["", "[]", '{"annotations": [{"image_id": 1}]}', '{"annotations": 3}'])
def test_a_file_of_another_layout(tmp_path: Path, content: str) -> None:
    (tmp_path / "filter_cap.json").write_text(content)
    with pytest.raises(UserError, match="expected"):
        read(tmp_path, stage=2)


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        read_annotations(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no filter_cap\.json"):
        read_annotations(tmp_path)
