"""Other people's data: each hostile record is left out and counted, the others are read, in bounded memory and time."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from minigpt4.generation.jobs import read_tasks
from PIL import Image

from minigpt4.curation.describe import add_dataset
from minigpt4.curation.ledger import Ledger
from minigpt4.data.formats import read_annotations
from minigpt4.data.pairs import Pair
from minigpt4.data.sources import Source, check_source, open_source
from minigpt4.errors import UserError
from minigpt4.files import read_file

MORE_MB, SECONDS = 700, 120
#: Reads every source as training and `data inspect` do, in a process that may take so much more memory.
READ = f"""
import collections, json, resource, sys
import pyarrow.parquet
from pathlib import Path
from minigpt4.data.pairs import Pair
from minigpt4.data.sources import Source, open_source
from minigpt4.errors import UserError
from minigpt4.images import open_image
before = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (before + {MORE_MB} * 2**20,) * 2)
found = {{}}
for source in sys.argv[1:]:
    count = collections.Counter()
    reader = open_source(Source(source))
    reader.count(), reader.keys()
    for shard in reader.shards():
        for item in reader.read(shard, 0, 1, 2):
            try:
                count["good" if isinstance(item, Pair) and open_image(item.image) else item] += 1
            except UserError:
                count["unreadable"] += 1
    found[source] = count
print(json.dumps(found))
"""


def png(size: tuple[int, int] = (8, 8)) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size).save(data, "PNG")
    return data.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


GOOD = png()
TEXT = b'{"caption": "a cat"}'
TEXT_BOMB = GOOD[:33] + chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(100_000_000))) + GOOD[33:]
WIDE = GOOD[:16] + struct.pack(">II", 60_000, 60_000) + GOOD[24:29]
WIDE += struct.pack(">I", zlib.crc32(WIDE[12:29])) + GOOD[33:]


def tar(path: Path, *members: tuple[str, bytes] | tuple[str, bytes, bytes]) -> None:
    """Members (name, content, type); then two good pairs."""
    with tarfile.open(path, "w") as archive:
        for name, content, *kind in (*members, *[(f"good{i}{e}", c) for i in "12" for e, c in END]):
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind[0] if kind else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(content))


END = ((".png", GOOD), (".json", TEXT))


def huge_member(path: Path, kind: bytes, declared: int, real: int) -> None:
    """A header, `real` bytes of zeros that the disk does not hold, and two good pairs behind them."""
    tar(path)
    good, member = path.read_bytes(), tarfile.TarInfo("huge.png")
    member.type, member.size = kind, declared
    with path.open("wb") as file:
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.seek(-(-real // 512) * 512, io.SEEK_CUR)
        file.write(good)


def longnames(path: Path) -> None:
    """A chain of 20,000 headers, each of which names the member that the next one is."""
    tar(path)
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, len(b"good1.png")
    path.write_bytes((name.tobuf(tarfile.GNU_FORMAT) + b"good1.png".ljust(512, b"\0")) * 20_000 + path.read_bytes())


def lines(path: Path, *rows: bytes) -> None:
    (path.parent / "good.png").write_bytes(GOOD)
    good = b'{"image": "good.png", "caption": "a cat"}'
    path.write_bytes(b"\n".join([good, *rows, good]) + b"\n")


def long_line(path: Path, size: int) -> None:
    """A line of so many bytes that the disk does not hold, between two good ones."""
    lines(path)
    good, _, last = path.read_bytes().partition(b"\n")
    with path.open("wb") as file:
        file.write(good + b"\n{")
        file.seek(size, io.SEEK_CUR)
        file.write(b"}\n" + last)


def row(image: object, caption: object = "a cat") -> bytes:
    return json.dumps({"image": image, "caption": caption}).encode()


def csv(path: Path, *rows: str) -> None:
    (path.parent / "good.png").write_bytes(GOOD)
    path.write_text("\n".join(["image,caption", "good.png,a cat", *rows, "good.png,a cat"]) + "\n")


def table(path: Path, columns: dict[str, Any], **how: Any) -> None:
    """Its rows, and two good ones in a row group of their own."""
    bad = pa.table(columns)
    good = {"image": [GOOD, GOOD], "caption": ["a cat"] * 2}
    good_columns = {name: pa.array(good.get(name, [None] * 2), bad.schema.field(name).type) for name in columns}
    with pq.ParquetWriter(path, bad.schema, store_schema=False, **how) as writer:
        writer.write_table(bad)
        writer.write_table(pa.table(good_columns, bad.schema))


def repeated(value: bytes | str, count: int) -> Any:
    """A column that holds one value `count` times, as an index into a dictionary of one."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


def long_list(count: int) -> Any:
    """One row with a list of so many equal texts: a few kB in a file."""
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), repeated("x", count))


UNPACKS = "in a part of a table that unpacks to far more than its size"
#: How each source is made, and what is found beside two good pairs.
CASES: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "zeros.tar": (lambda p: huge_member(p, tarfile.REGTYPE, 3 * 10**9, 3 * 10**9), {"image too large": 1}),
    "longname.tar": (lambda p: huge_member(p, tarfile.GNUTYPE_LONGNAME, 3 * 10**9, 3 * 10**9), {}),
    "pax.tar": (lambda p: huge_member(p, tarfile.XHDTYPE, 3 * 10**9, 3 * 10**9), {}),
    "chain.tar": (longnames, {}),
    "odd.tar": (
        lambda p: tar(
            p,
            ("a.png", GOOD), ("a.json", b"[" * 200_000),
            ("b.png", GOOD), ("b.json", b'{"caption": "x", "n": ' + b"9" * 500_000 + b"}"),
            ("c.png", GOOD), ("c.json", b'{"caption": "' + b"a" * 10**7 + b'"}'),
            ("d.png", GOOD), ("d.txt", b"\xff\xfe"),
            ("e.png", GOOD), ("e.txt", b"a" * 500_000),
            ("f.png", b"", tarfile.LNKTYPE), ("f.json", TEXT),
            ("g.png", b"", tarfile.SYMTYPE), ("g.json", TEXT),
            ("h.png", b"", tarfile.FIFOTYPE), ("h.json", TEXT),
            ("i.png", b"", tarfile.GNUTYPE_SPARSE), ("i.json", TEXT),
            ("j.tar", GOOD * 100),
            ("k.png", TEXT_BOMB), ("k.json", TEXT),
            ("l.png", WIDE), ("l.json", TEXT),
            ("../../../m\u202egpj\x1b[2J.png", GOOD), ("../../../m\u202egpj\x1b[2J.json", TEXT),
        ),
        {"no description": 3, "text too long": 2, "no image": 5, "unreadable": 2, "good": 1},
    ),
    "odd.jsonl": (
        lambda p: lines(
            p, b"[" * 100_000, b'{"a":' * 50_000, b"9" * 500_000, b"\xff", b"{}", row(5), row({"a": 1}), row("\0"),
            row("a" * 5000), row("/dev/zero"), row("/dev/stdin"), row("pipe"), row("."), row("~nobody-here/a.png"),
            row("good.png", [["x"]]), row("good.png", "a" * 200_000), row("good.png", "a" * 2_000_000),
        ),
        {"broken line": 4, "no image": 10, "no description": 1, "text too long": 2},
    ),
    "long.jsonl": (lambda p: long_line(p, 10**9), {"text too long": 1}),
    "odd.csv": (
        lambda p: csv(
            p, '"' + "a" * 200_000 + '",x', ",".join("x" * 10**6), "a" * 3_000_000, '"two\nlines",x', "short",
        ),
        {"broken line": 3, "no image": 2},
    ),
    "unclosed.csv": (
        # The good line at its end is in quotes, in a row of too many cells.
        lambda p: csv(p, '"x","y\n' * 500_000),
        {"broken line": 4, "good": -1},
    ),
    "zeros.parquet": (
        lambda p: table(p, {"image": pa.array([bytes(300_000_000)]), "caption": ["x"]}, compression="zstd"),
        {UNPACKS: 1},
    ),
    "dictionary.parquet": (
        lambda p: table(
            p, {"image": repeated(os.urandom(10**7), 100), "caption": ["x"] * 100}, dictionary_pagesize_limit=2**28
        ),
        {"unreadable": 100},
    ),
    "values.parquet": (
        lambda p: table(p, {"image": [GOOD], "messages": long_list(50_000_000), "caption": ["x"]}),
        {UNPACKS: 1},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    folder = tmp_path_factory.mktemp("hostile")
    os.mkfifo(folder / "pipe")
    for name, (make, _) in CASES.items():
        make(folder / name)
    command = [sys.executable, "-c", READ, *CASES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", CASES)
def test_hostile_records_are_left_out_and_the_others_are_read(found: dict[str, dict[str, int]], name: str) -> None:
    expected = {cause: count for cause, count in CASES[name][1].items() if count}
    expected["good"] = expected.get("good", 0) + 2
    assert found[name] == expected


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", ".", "a\0b", "a" * 5000, "~nobody-here/a", "missing", "huge"])
def test_only_regular_files_of_a_bounded_size_are_read(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(UserError) as caught:
        read_file(kind if kind.startswith("~") else tmp_path / kind, 1000)
    assert "\n" not in str(caught.value)


def test_a_long_line_at_the_start_ends_no_run(tmp_path: Path) -> None:
    lines(tmp_path / "long.jsonl", row("good.png"))
    (tmp_path / "long.jsonl").write_bytes(b"x" * 10**7 + b"\n" + (tmp_path / "long.jsonl").read_bytes())
    check_source(Source(str(tmp_path / "long.jsonl")), 1)


def test_a_dataset_takes_no_image_from_outside(tmp_path: Path) -> None:
    images = tmp_path / "set" / "image"
    images.mkdir(parents=True)
    (tmp_path / "outside.png").write_bytes(GOOD)
    (images / "good.png").write_bytes(GOOD)
    (images / "link.png").symlink_to(tmp_path / "outside.png")
    (images / "inner.png").symlink_to("good.png")
    os.mkfifo(images / "pipe.png")
    (images / "up").symlink_to(tmp_path)
    ids = [
        "good",
        "inner",
        "../../outside",
        str(tmp_path / "outside"),
        "link",
        "up/outside",
        "pipe",
        "a" * 5000,
        "\0",
        "",
    ]
    annotations = [{"image_id": name, "caption": f"text {name[:20]}"} for name in ids]
    (tmp_path / "set" / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    reader = open_source(Source(str(tmp_path / "set")))
    found = [item for shard in reader.shards() for item in reader.read(shard, 0, 1, 2)]
    assert [item.text if isinstance(item, Pair) else item for item in found] == [
        "text good", "text inner", *["no image"] * 8,
    ]  # fmt: skip
    with Ledger(tmp_path / "project", create=True) as ledger:
        assert add_dataset(ledger, tmp_path / "set") == 2
        assert {picture.path for picture in ledger.images()} == {images / "good.png"}


def test_a_file_of_annotations_that_is_no_json(tmp_path: Path) -> None:
    for content in (b"[" * 100_000, b'{"annotations": ' + b"9" * 5000 + b"}", b"\xff"):
        (tmp_path / "filter_cap.json").write_bytes(content)
        with pytest.raises(UserError, match="expected"):
            read_annotations(str(tmp_path))


def test_generate_leaves_out_what_unpacks_to_too_much(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", {"image": pa.array([bytes(300_000_000)]), "caption": ["x"]}, compression="zstd")
    tasks = read_tasks(str(tmp_path / "a.parquet"), "What?")
    reads = [task.image for task in tasks]
    assert len(reads) == 3
    assert all(callable(read) for read in reads)
    with pytest.raises(UserError, match="unpacks"):
        reads[0]()  # type: ignore[operator]
    assert [read() for read in reads[1:]] == [GOOD, GOOD]  # type: ignore[operator]


def test_generate_names_a_line_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n" + b"[" * 100_000 + b"\n")
    with pytest.raises(UserError, match=r"a\.jsonl:2: broken JSON"):
        read_tasks(str(tmp_path / "a.jsonl"), "What?")
