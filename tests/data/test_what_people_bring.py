"""Folders, archives, tables and texts as systems, programs and other trainers leave them."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from formats import picture, read
from minigpt4.app.batch_job import read_questions
from minigpt4.curation.describe import add_folder
from minigpt4.curation.ledger import Ledger
from minigpt4.data.batches import without_stop
from minigpt4.data.inspect import inspect
from minigpt4.data.sources import Source, check_source, open_source
from minigpt4.errors import UserError
from minigpt4.files import walk
from minigpt4.images import find_images


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pair(path: Path, text: str = "red", number: int = 1) -> None:
    put(path, picture(number))
    put(path.with_suffix(".txt"), text)


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def table(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def texts(path: Path, stage: int = 1) -> list[str]:
    return [found.text for found in read(path, stage)[0]]


LEFTOVERS = (
    "._a.jpg", ".hidden.jpg", "__MACOSX/a.jpg", "__MACOSX/._a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "a.jpg.part",
    ".AppleDouble/a.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg", "sub/.thumbnails/a.png", "a.jpg~", "Thumbs.db",
    "a.jpg.crdownload", "lost+found/a.jpg", "~$a.jpg", "a.jpg.bak",
)  # fmt: skip


def test_what_systems_leave_is_data_for_no_reader(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    pair(folder / "a.jpg")
    for name in LEFTOVERS:
        put(folder / name, picture(2))
        put(folder / f"{name}.txt", "old")
    assert texts(folder) == texts(folder / "*.jpg") == ["red"]
    assert [path.name for path in find_images(folder)] == ["a.jpg"]
    assert len(read_questions(str(folder), "What?")) == len(read_questions(str(folder / "*.jpg"), "What?")) == 1
    with Ledger(tmp_path / "project", create=True) as ledger:
        assert add_folder(ledger, folder) == 1
    inner = [(name, data) for place in LEFTOVERS for name, data in ((place, picture(2)), (f"{place}.txt", b"old"))]
    shards = tmp_path / "shards"
    tar(shards / "0.tar", ("./a.jpg", picture(1)), ("./a.txt", b"red"), *inner)
    put(shards / "._0.tar", b"\0\5\x16\7")
    assert texts(shards) == texts(shards / "*.tar") == ["red"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "folder"
    pair(store / "a.jpg")
    pair(folder / "real" / "b.jpg")
    for name, target in (("one", store), ("two", store), ("back", folder), ("again", folder / "real"), ("0", store)):
        (folder / name).symlink_to(target, target_is_directory=True)
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    assert [path.relative_to(folder).as_posix() for path in walk(folder)] == [
        "0/a.jpg", "0/a.txt", "real/b.jpg", "real/b.txt",
    ]  # fmt: skip


def test_endings_of_phones_browsers_and_windows(tmp_path: Path) -> None:
    for i, name in enumerate(("1.JPG", "2.jfif", "3.Jpe", "4.PJPEG", "5.TIF", "6", "7.heic", "8.jpg_large")):
        put(tmp_path / name, picture(i))  # a PNG: what counts is the content
    put(tmp_path / "9.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    put(tmp_path / "10.dng", b"II*\0")
    put(tmp_path / "notes.docx", b"PK\3\4")
    assert [path.name[0] for path in find_images(tmp_path)] == list("12345678")
    put(tmp_path / "1.TXT", "red")
    told = str(inspect(Source(str(tmp_path))))
    assert "2 files left out that look like images" in told
    assert "9.HEIC" in told
    assert "10.dng" in told
    only = tmp_path / "phone"
    put(only / "9.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UserError, match=r"9\.HEIC.*JPEG"):
        find_images(only)


def test_one_rule_for_the_names_of_images_and_texts(tmp_path: Path) -> None:
    put(tmp_path / "d" / "A.JPG", picture(1))
    put(tmp_path / "d" / unicodedata.normalize("NFD", "café.jpg"), picture(2))
    rows = [{"image": name, "caption": "red"} for name in ("d\\a.jpg", "d/a.jpg", "d/A", "d/café.jpg", '"d/a.jpg"')]
    rows.append({"image": (tmp_path / "d" / "A.JPG").as_uri(), "caption": "red"})
    put(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert len(texts(tmp_path / "a.jsonl")) == len(rows)
    put(tmp_path / "d" / "a.jpg.TXT", "one")
    put(tmp_path / "d" / "CAFÉ.caption", "two")
    assert texts(tmp_path / "d") == ["one", "two"]
    put(tmp_path / "set" / "image" / "1.JPEG", picture(3))
    notes = [
        {"image_id": "1", "caption": "x"},
        {"image_id": "1.jpeg", "caption": "y"},
        {"image_id": "2", "caption": ""},
    ]
    put(tmp_path / "set" / "filter_cap.json", json.dumps({"annotations": notes}))
    pairs, skipped = read(tmp_path / "set", stage=2)
    assert [found.text for found in pairs] == ["x", "y"]
    assert [(cause, cause.detail) for cause in skipped] == [  # type: ignore[attr-defined]
        ("no image", f"{tmp_path}/set/image/2: no such file; give the path of an image")
    ]


TEXT = "a café with a “blue” door"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_in_unicode_are_read(tmp_path: Path, encoding: str) -> None:
    put(tmp_path / "a.jpg", picture(1))
    put(tmp_path / "a.txt", TEXT.encode(encoding))
    put(tmp_path / "a.csv", f"image,caption\r\na.jpg,{TEXT}\r\n".encode(encoding))
    put(tmp_path / "b.csv", f"sep=;\r\nImage; Caption\r\na.jpg; {TEXT}\r\n".encode(encoding))
    put(tmp_path / "a.tsv", f"image\tcaption\ra.jpg\t{TEXT}\r".encode(encoding))
    row = json.dumps({"image": "a.jpg", "caption": TEXT}, ensure_ascii=False)
    put(tmp_path / "a.jsonl", f"{row}\r\n{row}\r\n".encode(encoding))
    put(tmp_path / "a.json", f"[{row},\r\n{row}]".encode(encoding))
    tar(tmp_path / "a.tar", ("a.jpg", picture(1)), ("a.txt", TEXT.encode(encoding)))
    for name, number in (("a.tar", 1), ("a.csv", 1), ("b.csv", 1), ("a.tsv", 1), ("a.jsonl", 2), ("a.json", 2)):
        assert texts(tmp_path / name) == [TEXT] * number, name
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.tar").unlink()
    assert texts(tmp_path) == [TEXT]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_texts_in_a_code_page_are_refused_with_file_and_line(tmp_path: Path, encoding: str) -> None:
    def spoilt(text: str) -> bytes:
        return text.encode(encoding)

    put(tmp_path / "a.jpg", picture(1))
    put(tmp_path / "a.txt", spoilt(TEXT))
    tar(tmp_path / "t" / "a.tar", ("a.jpg", picture(1)), ("a.txt", spoilt(TEXT)))
    row = spoilt(json.dumps({"image": "a.jpg", "caption": TEXT}, ensure_ascii=False))
    put(tmp_path / "a.jsonl", b'{"image": "a.jpg", "caption": "good"}\n' + row.replace(b"\n", b" ") + b"\n")
    if encoding == "cp1252":
        put(tmp_path / "a.csv", spoilt(f"image,caption\na.jpg,good\na.jpg,{TEXT}\n"))
    named = {"a.txt": tmp_path / "a.jpg", "t/a.tar/a.txt": tmp_path / "t" / "a.tar", "a.jsonl:2": tmp_path / "a.jsonl"}
    for name, source in (named | ({"a.csv:3": tmp_path / "a.csv"} if encoding == "cp1252" else {})).items():
        pairs, skipped = read(source)
        assert [found.text for found in pairs] == ["good"] * (source.suffix in (".csv", ".jsonl"))
        [cause] = skipped
        assert name in cause.detail  # type: ignore[attr-defined]
        assert "UTF-8" in cause.detail  # type: ignore[attr-defined]
        assert encoding != "cp1252" or "caf\xe9" in cause.detail  # type: ignore[attr-defined]


def test_no_sign_of_a_wrong_encoding_is_learnt(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture(1))
    rows = [{"caption": "caf\ufffd"}, {"caption": "\ud83d"}, {"question": "caf\ufffd?", "answer": "yes"}]
    put(tmp_path / "a.jsonl", "".join(json.dumps({"image": "a.jpg", **row}) + "\n" for row in rows))
    assert read(tmp_path / "a.jsonl", stage=2)[1] == {"damaged text": 3}


def test_the_caption_that_is_there_is_read(tmp_path: Path) -> None:
    images, records = [(f"{i}.jpg", picture(i)) for i in range(3)], [(f"{i}.txt", b"red") for i in range(3)]
    assert texts(tar(tmp_path / "apart.tar", *images, *records)) == ["red"] * 3
    for name, record in {
        "empty": b"{}",
        "null": b'{"caption": null}',
        "broken": b"{",
        "blank": b'{"text": " "}',
    }.items():
        tar(tmp_path / f"{name}.tar", images[0], ("0.json", record), records[0])
        assert texts(tmp_path / f"{name}.tar") == ["red"], name
    put(tmp_path / "a.jpg", picture(1))
    captions: dict[str, object] = {"captions": ["one", " ", "two", "one"]}
    put(tmp_path / "a.jsonl", json.dumps({"image": "a.jpg", **captions}) + "\n")
    assert texts(tmp_path / "a.jsonl") == ["one", "two"]
    assert "problem:" not in str(inspect(Source(str(tmp_path / "a.jsonl"))))


@pytest.mark.parametrize("column", ["legend", "Legend", "LEGEND"])
def test_a_caption_key_is_found_in_any_case(tmp_path: Path, column: str) -> None:
    put(tmp_path / "a.jpg", picture(1))
    put(tmp_path / "a.jsonl", json.dumps({"image": "a.jpg", "caption": "another", column: "red"}) + "\n")
    put(tmp_path / "a.csv", f"image,caption,{column}\na.jpg,another,red\n")
    table(tmp_path / "a.parquet", image=[picture(1)], caption=["another"], **{column: ["red"]})
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        for key in ("legend", "Legend"):
            assert [found.text for found in read(tmp_path / name, key=key)[0]] == ["red"], (name, key)


def test_a_text_with_separators_outside_quotes_is_not_cut_silently(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture(1))
    rows = ["image,caption", "a.jpg,red", "a.jpg,a cup, a ball", 'a.jpg,"a cup, a ball"', "a.jpg,blue,, "]
    put(tmp_path / "a.csv", "\n".join(rows) + "\n")
    pairs, skipped = read(tmp_path / "a.csv")
    assert [found.text for found in pairs] == ["red", "a cup, a ball", "blue"]
    [cause] = skipped.elements()
    assert cause == "broken line"
    told = "more cells than the header has; put texts with separators in quotes"
    assert cause.detail == f"{tmp_path}/a.csv:3: {told}"  # type: ignore[attr-defined]


def test_a_stray_table_or_archive_hides_no_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "photos"
    pair(folder / "deep" / "a.jpg")
    table(folder / "index.parquet", url=["https://example.org"], caption=["of no image"])
    tar(folder / "backup.tar", ("a.jpg", picture(3)), ("a.txt", b"an old one"))
    put(folder / "metadata.csv", "camera,lens\nx,y\n")
    assert texts(folder) == ["red"]
    check_source(Source(str(folder)), 1)
    for name in ("backup.tar", "index.parquet", "metadata.csv"):
        assert name in caplog.text
    shards = tmp_path / "shards"
    tar(shards / "0.tar", ("a.jpg", picture(3)), ("a.txt", b"in a shard"))
    tar(shards / "code.tar", ("main.py", b""))
    put(shards / "preview.jpg", picture(1))
    assert texts(shards) == ["in a shard"]


@pytest.mark.parametrize("places", [("train2017", "val2017"), ("x/train", "x/test"), ("my-train", "my-dev", "my-eval")])
def test_a_folder_of_splits_is_read_for_training_alone(tmp_path: Path, places: tuple[str, ...]) -> None:
    for place in places:
        pair(tmp_path / place / "test.jpg", place)
    assert texts(tmp_path) == [places[0]]
    told = str(inspect(Source(str(tmp_path))))
    assert "split train" in told
    assert "(1 files)" in told
    assert texts(tmp_path / places[1]) == [places[1]]
    assert len(read_questions(str(tmp_path), "What?")) == len(places)


def test_shards_of_splits_are_read_for_training_alone(tmp_path: Path) -> None:
    for place in ("default/train/0.parquet", "default/test/0.parquet", "default/validation/0.parquet"):
        table(tmp_path / "snapshot" / place, image=[picture(1)], text=[place])
    assert texts(tmp_path / "snapshot") == texts(tmp_path / "snapshot/*/*/*.parquet") == ["default/train/0.parquet"]
    for split in ("valid", "test"):
        tar(tmp_path / "held" / f"{split}-0.tar", ("a.jpg", picture(1)), ("a.txt", split.encode()))
    assert sorted(texts(tmp_path / "held")) == ["test", "valid"]
    assert "split test, validation" in open_source(Source(str(tmp_path / "held"))).notes[1]


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "parquet"])
def test_a_table_whose_column_names_splits_is_read_for_training_alone(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / "a.jpg", picture(1))
    names = ["test", "val", "train", "restval", "train", "dev"]
    rows = [{"filename": "a.jpg", "raw": f"{name} {i}", "Split": name} for i, name in enumerate(names)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        table(path, **{key: [row[key] for row in rows] for key in rows[0]})
    elif kind == "csv":
        put(path, "".join(",".join(line) + "\n" for line in (rows[0].keys(), *(row.values() for row in rows))))
    else:
        lines = [json.dumps(row) for row in rows]
        put(path, "\n".join(lines) if kind == "jsonl" else f"[{','.join(lines)}]")
    source = Source(str(path), caption_key="raw")
    expected = ["train 2", "restval 3", "train 4"]
    assert [found.text for found in read(path, key="raw")[0]] == expected
    reader = open_source(source)
    parts = [item for part in (0, 1) for shard in reader.shards() for item in reader.read(shard, part, 2, 1)]
    assert sorted(item.text for item in parts if not isinstance(item, str)) == sorted(expected)
    assert reader.count() is None
    check_source(source, 1)
    left_out = "left out: test (1 rows of the column split), validation (2 rows of the column split)"
    assert left_out in caplog.text
    assert left_out in str(inspect(source))
    assert len(read_questions(str(path), "What?")) == len(names)


def test_karpathys_files(tmp_path: Path) -> None:
    rows = [
        {"filepath": "val2014", "sentids": [1], "filename": f"{i}.jpg", "imgid": i, "split": split,
         "sentences": [{"tokens": ["a"], "raw": f"{split} {i}"}, {"tokens": ["b"], "raw": f"b {i}"}]}
        for i, split in enumerate(("test", "restval", "val", "train"))
    ]  # fmt: skip
    for i in range(4):
        put(tmp_path / "val2014" / f"{i}.jpg", picture(i))
    for indent in (None, 2):
        put(tmp_path / "dataset_coco.json", json.dumps({"images": rows, "dataset": "coco"}, indent=indent))
        found, skipped = read(tmp_path / "dataset_coco.json")
        assert [pair.text for pair in found] == ["restval 1", "b 1", "train 3", "b 3"]
        assert [pair.image for pair in found] == [picture(i) for i in (1, 1, 3, 3)]
        assert not skipped


def test_a_table_of_held_out_splits_alone_is_read_and_told(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture(1))
    for name, told in (("dev", "validation"), ("train", ""), ("2014", "")):
        put(tmp_path / "a.csv", f"image,caption,split\na.jpg,red,{name}\n")
        assert texts(tmp_path / "a.csv") == ["red"]
        reader = open_source(Source(str(tmp_path / "a.csv")))
        assert reader.notes == ("reads a.csv", *((f"reads what is named as split {told}",) if told else ()))
        assert reader.count() == 1


def test_a_long_table_is_not_searched_for_splits_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt4.data.sources.SPLIT_ROWS", 3)
    put(tmp_path / "a.jpg", picture(1))
    for names in (["test"] * 5 + ["train", "val"], ["train"] * 5 + ["val"], ["test"] * 5):
        put(tmp_path / "a.csv", "image,caption,split\n" + "".join(f"a.jpg,{name},{name}\n" for name in names))
        assert set(texts(tmp_path / "a.csv")) == ({"train"} if "train" in names else {"test"})


ANSWER = "A red picture."
PARTS = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
ADDRESS = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
FOLDED = "data:image/png;base64,\n" + base64.encodebytes(picture(1)).decode()  # in lines of 76 letters
QUESTIONS: dict[str, dict[str, Any]] = {
    "question": {"image": "a.jpg", "question": "What is it?", "answer": ANSWER},
    "query": {"images": ["a.jpg"], "query": "<image>What is it?", "response": ANSWER},
    "capitals": {"Image": "a.jpg", "Question": "What is it?", "Answer": ANSWER},
    "LLaVA": {"image": "a.jpg", "conversations": [
        {"from": "human", "value": "What is it?\n<image>"}, {"from": "gpt", "value": ANSWER},
    ]},
    "ms-swift": {"images": ["a.jpg"], "messages": [
        {"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": ANSWER},
    ]},
    "TRL": {"images": ["a.jpg"], "prompt": [{"role": "user", "content": PARTS}],
            "completion": [{"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}]},
    "OpenAI": {"messages": [
        {"role": "user", "content": [PARTS[1], {"type": "image_url", "image_url": {"url": ADDRESS}}]},
        {"role": "assistant", "content": ANSWER},
    ]},
    "folded": {"image": FOLDED, "question": "What is it?", "answer": ANSWER},
    "the_cauldron": {"images": ["a.jpg"], "texts": [{"user": "What is it?", "assistant": ANSWER, "source": "x"}]},
}  # fmt: skip


@pytest.mark.parametrize("form", QUESTIONS)
def test_questions_and_conversations_of_other_trainers(tmp_path: Path, form: str) -> None:
    put(tmp_path / "a.jpg", picture(1))
    put(tmp_path / "a.json", json.dumps([QUESTIONS[form]]))
    [found] = read(tmp_path / "a.json", stage=2)[0]
    asked = found.instruction or "".join(message.text for message in found.messages if message.role == "user")
    assert (asked, found.text, found.image) == ("What is it?", ANSWER, picture(1))
    assert texts(tmp_path / "a.json", stage=1) == [ANSWER]
    put(tmp_path / "lines.json", (json.dumps(QUESTIONS[form]) + "\n") * 2)
    assert texts(tmp_path / "lines.json", stage=1) == [ANSWER] * 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"images": ["a.jpg", "a.jpg"], "text": "two"}, "names 2 images"),
        ({"image": "a.jpg", "conversations": [{"from": "human", "value": "<image> <image> ?"}]}, "2 images"),
        ({"image": "a.jpg", "messages": [{"role": "tool", "content": "x"}]}, "there is: tool"),
        ({"image": "a.jpg", "chosen": "x", "rejected": "y"}, "there is: chosen, image, rejected"),
        ({"url": "x", "caption": "red"}, "there is: caption, url"),
        ({"image": "https://example.org/a.jpg", "caption": "red"}, r"example\.org.*download"),
        ({"image": "data:image/png;base64,!", "caption": "red"}, "base64,!' is not an image in base64"),
        ({"image": "b.jpg", "caption": "red"}, r"/b\.jpg: no such file"),
        ({"image": ".", "caption": "red"}, "is a directory"),
    ],
)
def test_a_refusal_names_the_path_and_what_is_there(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    put(tmp_path / "a.jpg", picture(1))
    put(tmp_path / "x.jsonl", json.dumps(row) + "\n")
    with pytest.raises(UserError, match=told) as caught:
        check_source(Source(str(tmp_path / "x.jsonl")), 2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "stop", "mended"),
    [
        ("### Setting\nA wall.\n#### Details", "###", "Setting\nA wall.\nDetails"),
        ("A ### B", "###", "A   B"),
        ("In C#", "###", "In C# "),
        ("## Two are no end", "###", "## Two are no end"),
        ("one\ntwo", "\n", "one two"),
        ("### Setting", "</s>", "### Setting"),
    ],
)
def test_no_target_holds_the_stop_string(text: str, stop: str, mended: str) -> None:
    assert without_stop(text, stop) == mended
    assert (mended + stop).find(stop) == len(mended)


def test_signs_of_a_heading_alone_are_no_text_and_line_ends_are_one(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", picture(1))
    rows = [{"image": "a.jpg", "text": text} for text in (" ### ", "one\r\ntwo\rthree")]
    put(tmp_path / "x.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert texts(tmp_path / "x.jsonl", stage=2) == ["one\ntwo\nthree"]
