from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from formats import FORMATS, picture, read, tars, text
from minigpt4.data.formats import LINES_SHARD, JsonLines
from minigpt4.data.pairs import Pair
from minigpt4.data.sources import Source, check_source, open_source
from minigpt4.errors import UserError
from minigpt4.prompts.templates import Message


def write_jsonl(directory: Path, *rows: object) -> Source:
    for name in ("a.png", "b.jpg", "c.webp"):
        (directory / name).write_bytes(picture(ord(name[0])))
    path = directory / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(str(path))


def test_instructions_and_conversations(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "You see a picture."},
        {"role": "user", "content": "What is it? "},
        {"role": "assistant", "content": "A cup."},
        {"role": "user", "content": "Its colour?"},
        {"role": "assistant", "content": "Blue."},
    ]
    source = write_jsonl(
        tmp_path,
        {"image": "a.png", "answer": "A red\n\nball."},
        {"image": "b.jpg", "instruction": " How many? ", "answer": "Two."},
        {"image": "c.webp", "messages": talk},
        {"image": "a.png", "messages": talk[1:4]},  # the user has the last word
        {"image": "a.png", "messages": [talk[2], talk[1]]},
        {"image": "a.png", "messages": "A cup."},
        {"image": "a.png", "messages": [*talk[:2], {"role": "assistant", "content": " "}]},
        {"image": "a.png", "instruction": "How many?", "answer": 2},
    )
    pairs, skipped = read(source.path, stage=2)
    assert [(pair.instruction, pair.text) for pair in pairs] == [
        (None, "A red\n\nball."), ("How many?", "Two."), (None, "Blue."),
    ]  # fmt: skip
    assert pairs[0].messages == ()
    assert pairs[2].messages == (
        Message("system", "You see a picture."),
        Message("user", "What is it?", images=1),
        Message("assistant", "A cup."),
        Message("user", "Its colour?"),
        Message("assistant", "Blue."),
    )
    assert skipped == {"no conversation": 4, "no description": 1}


def test_broken_lines_and_missing_pictures(tmp_path: Path) -> None:
    good = {"image": "a.png", "caption": "a\n ball"}
    source = write_jsonl(
        tmp_path, good, "{oops", "[1]", "", {"image": "none.png", "caption": "x"}, {"caption": "x"}, good
    )
    pairs, skipped = read(source.path)
    assert [pair.text for pair in pairs] == ["a ball", "a ball"]
    assert [pair.name.rpartition(":")[2] for pair in pairs] == ["1", "7"]
    assert skipped == {"broken line": 2, "no image": 2}


def test_a_large_file_is_read_in_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LINES_SHARD >= 1 << 20
    source = write_jsonl(tmp_path, *({"image": "a.png", "caption": text(i) + "." * (i % 40)} for i in range(300)))
    for size in (64, 100, 1001):  # stretches that end in and between lines, and hold none
        monkeypatch.setattr("minigpt4.data.formats.LINES_SHARD", size)
        assert len(open_source(source).shards()) > 10
        assert [pair.text.rstrip(".") for pair in read(source.path)[0]] == [text(i) for i in range(300)]


def test_a_caption_key_of_ones_own(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, {"image": "a.png", "caption": "short", "alt": "long"})
    assert read(source.path, key="alt")[0][0].text == "long"
    check_source(Source(source.path, caption_key="alt"), stage=1)


@pytest.mark.parametrize("kind", ["tars", "jsonl", "csv", "parquet", "hub"])
def test_a_caption_key_that_is_not_there(kind: str, tmp_path: Path) -> None:
    source = Source(FORMATS[kind](tmp_path / kind, range(3)), caption_key="title")
    message = r"none of the first pairs has a text under 'title'; the keys there are: .*(caption|text)"
    with pytest.raises(UserError, match=message):
        check_source(source, stage=1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "nowhere", "no such file or directory"),
        (lambda d: d, r"holds none of: \*\.tar"),
        (lambda d: d / "nowhere.jsonl", "no such file"),
        (lambda d: d / "{000..002}.parquet", r"3 of 3 shards are missing: .*000\.parquet"),
        (lambda d: d / "*.jsonl", "the pattern matches no file"),
        (lambda d: (d / "file.xls").write_text("x") and d / "file.xls", "unknown format"),
        (lambda d: (d / "bad.parquet").write_text("x") and d / "bad.parquet", "cannot be read as parquet"),
        (lambda d: (d / "empty.jsonl").write_text("") or d / "empty.jsonl", "it is empty"),
        (lambda d: f"hub:{d / 'nowhere'}", "cannot be loaded"),
    ],
)
def test_sources_that_are_not_there(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as told:
        check_source(Source(str(make(tmp_path))), stage=1)
    assert "\n" not in str(told.value)


def test_a_broken_file_of_a_hub_dataset_is_a_broken_shard(tmp_path: Path) -> None:
    image = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    for name, last in (("train-0", "blue"), ("train-1", "blue,more,cells")):
        (tmp_path / f"{name}.csv").write_text(f'image,caption\n"{image}",red\n"{image}",{last}\n')
    pairs, skipped = read(f"hub:{tmp_path}")
    assert [pair.text for pair in pairs] == ["red", "blue"]
    [cause] = skipped.elements()
    assert cause == "broken shard, its remaining pairs"
    assert cause.detail.startswith(f"hub:{tmp_path}:train: ")  # type: ignore[attr-defined]
    assert "\n" not in cause.detail  # type: ignore[attr-defined]


def test_a_pattern_of_tables(tmp_path: Path) -> None:
    for i in range(3):
        FORMATS["parquet"](tmp_path / str(i), range(10 * i, 10 * i + 10))
    pairs, _ = read(str(tmp_path / "{0..1}" / "train.parquet"))
    assert [pair.text for pair in pairs] == [text(i) for i in range(20)]
    assert len(read(str(tmp_path / "*" / "train.parquet"))[0]) == 30


def test_a_train_split_is_found(tmp_path: Path) -> None:
    FORMATS["descriptions"](tmp_path / "set" / "train", range(4))
    FORMATS["descriptions"](tmp_path / "set" / "validation", range(4, 6))
    assert [pair.text for pair in read(str(tmp_path / "set"), stage=2)[0]] == [text(i) for i in range(4)]


def test_a_truncated_shard_is_told_once_however_it_is_shared(tmp_path: Path) -> None:
    path = Path(tars(tmp_path / "tars", range(30), per_shard=30)) / "00000.tar"
    path.write_bytes(path.read_bytes()[:30_000])
    reader = open_source(Source(str(path)))
    whole = [item for item in reader.read(path, 0, 1, 1) if isinstance(item, Pair)]
    assert 5 < len(whole) < 29
    parts = [item for part in range(3) for item in reader.read(path, part, 3, 1)]
    assert sorted(item.text for item in parts if isinstance(item, Pair)) == sorted(pair.text for pair in whole)
    assert parts.count("broken shard, its remaining pairs") == 1


def test_lines_of_jsonl_count(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path, {"image": "a.png"}, "", {"image": "a.png"})
    assert JsonLines((Path(source.path),)).count() == 2
