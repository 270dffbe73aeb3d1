from __future__ import annotations

import io
import json
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from minigpt4.data.download import download, read_list
from minigpt4.data.mixture import PairStream, Source, count_pairs
from minigpt4.errors import UserError


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_is_read_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None
) -> None:
    monkeypatch.setattr("minigpt4.data.formats.PIECE", piece)
    entries = [{"caption": f'a [{i}] "dög", {{}}', "url": f"http://x/{i}.jpg"} for i in range(20)]
    odd = [{"caption": "no url"}, {"url": "http://x", "caption": None}, {"url": "http://y", "caption": "caf\udce9"}]
    (tmp_path / "list.json").write_text(json.dumps([*entries, *odd], indent=indent))
    found = list(read_list(tmp_path / "list.json"))
    expected = [(entry["url"], entry["caption"]) for entry in entries]
    assert found == [*expected, ("http://x", ""), ("http://y", "caf?")]  # half a character cannot be written
    (tmp_path / "lines.json").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert list(read_list(tmp_path / "lines.json")) == expected


def test_a_list_that_is_missing_or_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.json: cannot be read"):
        list(read_list(tmp_path / "list.json"))
    (tmp_path / "list.json").write_text('[{"url": "a", "caption": "b"}, {"url": "c", "capt')
    entries = read_list(tmp_path / "list.json")
    assert list(islice(entries, 1)) == [("a", "b")]
    with pytest.raises(UserError, match="is no JSON, or a record of more than 1,000,000 characters, from here on"):
        next(entries)


def test_a_record_that_is_too_large_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps([{"url": "a", "caption": "b" * 3_000_000}]))
    with pytest.raises(UserError, match=r"list\.json: .* a record of more than 1,000,000 characters, from here on: '{"):
        next(read_list(tmp_path / "list.json"))


def test_without_img2dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match=r"pip install 'minigpt4-vlm\[data\]'"):
        download(tmp_path / "list.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """Twelve pictures over HTTP on loopback."""
    directory = tmp_path / "website"
    directory.mkdir()
    for i in range(12):
        Image.new("RGB", (600, 300), (20 * i, 0, 0)).save(directory / f"{i}.jpg")
    (directory / "text.jpg").write_text("no image")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.skipif(shutil.which("img2dataset") is None, reason="needs img2dataset on the PATH")
def test_a_list_becomes_shards_that_training_reads(website: str, tmp_path: Path) -> None:
    names = [*(f"{i}.jpg" for i in range(12)), "missing.jpg", "text.jpg"]
    entries = [{"url": f"{website}/{name}", "caption": f"picture {name}"} for name in names]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    out = tmp_path / "out"
    counts = download(tmp_path / "list.json", out, processes=1, threads=4, image_size=128, timeout=5)
    assert counts["pairs"] == 12
    assert counts.total() == 14
    assert count_pairs([Source(str(out))]) == 12
    pairs = list(PairStream([Source(str(out / "{00000..00000}.tar"))], stage=1, seed=0, shuffle_buffer=0, repeat=False))
    assert sorted(pair.text for pair in pairs) == sorted(f"picture {i}.jpg" for i in range(12))
    assert {Image.open(io.BytesIO(pair.image)).size for pair in pairs} == {(256, 128)}  # reduced, not made square
    made = (out / "00000.tar").stat().st_mtime_ns
    assert download(tmp_path / "list.json", out, processes=1) == counts  # nothing is left to do
    assert (out / "00000.tar").stat().st_mtime_ns == made
