from __future__ import annotations

import json
from pathlib import Path

import pytest

from formats import read
from minigpt4.errors import UserError
from minigpt4.files import find_files
from tiny import write_shard


def write(path: Path, members: dict[str, bytes]) -> Path:
    write_shard(path, members)
    return path


def caption(text: object) -> bytes:
    return json.dumps({"caption": text}).encode()


def test_pairs_of_all_shards_in_order(tiny_pairs: Path) -> None:
    pairs, skipped = read(tiny_pairs)
    assert [pair.name.rpartition("/")[2] for pair in pairs] == [f"{i:09d}" for i in range(40)]
    assert pairs[1].text == "a green picture with a dot"
    assert pairs[1].image.startswith(b"\x89PNG")
    assert not skipped


def test_caption_from_txt_on_one_line(tmp_path: Path) -> None:
    shard = write(tmp_path / "0.tar", {"1.jpg": b"picture", "1.txt": b" a dog\n on grass "})
    assert [pair.text for pair in read(shard)[0]] == ["a dog on grass"]


def test_unusable_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    members = {
        "1.jpg": b"picture", "1.json": caption("good"),
        "2.json": caption("no image"),
        "3.jpg": b"picture",
        "4.jpg": b"picture", "4.json": caption(None),
        "5.jpg": b"picture", "5.json": b"{broken",
        "6.jpg": b"picture", "6.json": caption("  "),
        "7.jpg": b"", "7.json": caption("empty picture"),
        "8.jpg": b"picture", "8.json": b"[1]",
        "9.webp": b"picture", "9.json": caption("good too"),
    }  # fmt: skip
    pairs, skipped = read(write(tmp_path / "0.tar", members))
    assert [pair.text for pair in pairs] == ["good", "good too"]
    assert skipped == {"no image": 2, "no caption": 5}


@pytest.mark.parametrize("length", [11_000, 11_900, 14_000, 14_336])  # in a header, a picture, a caption, between pairs
def test_a_truncated_shard_gives_what_it_has(tmp_path: Path, length: int) -> None:
    members = {}
    for i in range(8):
        members |= {f"{i}.jpg": b"x" * 2000, f"{i}.json": caption(f"text {i}")}
    whole = write(tmp_path / "0.tar", members)
    whole.write_bytes(whole.read_bytes()[:length])
    write(tmp_path / "1.tar", {"9.jpg": b"x", "9.json": caption("next shard")})
    pairs, skipped = read(tmp_path)
    texts = [pair.text for pair in pairs]
    assert texts[:3] == ["text 0", "text 1", "text 2"]
    assert texts[-1] == "next shard"
    assert len(texts) < 6
    assert skipped["broken shard, its remaining pairs"] == 1


def test_a_range_of_shards(tmp_path: Path) -> None:
    for i in (0, 1, 2, 9):
        write(tmp_path / f"{i:05d}.tar", {})
    found, _ = find_files(tmp_path / "{00000..00002}.tar")
    assert [path.name for path in found] == ["00000.tar", "00001.tar", "00002.tar"]
    with pytest.raises(UserError, match=r"1 of 4 shards are missing.*00003\.tar"):
        find_files(tmp_path / "{00000..00003}.tar")


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds none of: \*\.tar"):
        read(tmp_path)
    with pytest.raises(UserError, match="range is empty"):
        read(tmp_path / "{00003..00001}.tar")
