"""Paths as they are written, and files and directories that appear whole or not at all."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt4 import files
from minigpt4.errors import UserError
from minigpt4.files import expand, new_directory, read_file
from minigpt4.images import find_image

#: Writes half a directory, says so, and waits to be killed; "late" is after the earlier directory was moved aside.
WRITER = """
import sys, time
from pathlib import Path
from minigpt4.files import new_directory
out, moment = Path(sys.argv[1]), sys.argv[2]
def wait(*_):
    print("here", flush=True)
    time.sleep(300)
with new_directory(out, overwrite=True, marker="m") as new:
    (new / "m").write_text("half")
    if moment == "early":
        wait()
    rename = Path.rename
    Path.rename = lambda self, target: wait() if target == out else rename(self, target)
"""


def start(out: Path, moment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(out), moment]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def write(out: Path, text: str) -> None:
    with new_directory(out, overwrite=True, marker="m") as new:
        (new / "m").write_text(text)


@pytest.mark.parametrize("moment", ["early", "late"])
def test_what_a_killed_process_leaves_is_cleared_up_and_nothing_is_lost(tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out[1]"  # a name that is a pattern too
    write(out, "former")
    process = start(out, moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(tmp_path.iterdir())) == {"early": 2, "late": 1}[moment]
    with pytest.raises(UserError, match="exists and is not empty"), new_directory(out, marker="m"):
        pass
    assert (out / "m").read_text() == "former"
    assert list(tmp_path.iterdir()) == [out]


def test_a_process_at_work_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(out, "early")
    try:
        [beside] = tmp_path.iterdir()
        write(out, "mine")
        assert sorted(tmp_path.iterdir()) == sorted([beside, out])
        assert (beside / "new" / "m").read_text() == "half"
    finally:
        process.kill()
        process.wait()
    notes = tmp_path / ".out.my_notes"  # somebody else's
    notes.mkdir()
    (notes / "read.me").touch()
    write(out, "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.my_notes", "out"]
    assert (notes / "read.me").exists()


def test_a_directory_that_another_clears_up_before_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = files._lock
    cleared = []

    def late(directory: Path) -> int | None:
        held = lock(directory)
        if not cleared:
            cleared.append(directory)
            directory.rmdir()
        return held

    monkeypatch.setattr(files, "_lock", late)
    write(tmp_path / "out", "mine")
    assert len(cleared) == 1
    assert (tmp_path / "out" / "m").read_text() == "mine"


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    former = os.umask(0o027)
    try:
        with new_directory(tmp_path / "out", marker="m") as new:
            (new / "deep").mkdir()
            save_file({"a": torch.zeros(1)}, new / "deep" / "model.safetensors")
            (new / "m").touch()
    finally:
        os.umask(former)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert modes == {"deep": 0o750, "model.safetensors": 0o640, "m": 0o640}


def test_paths_as_people_and_systems_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setattr(files, "_DRIVES", tmp_path)
    (tmp_path / "c").mkdir()
    odd = tmp_path / "a\\b 'c' $DATA.jpg"
    odd.touch()
    for written, meant in (
        ("~/a", tmp_path / "a"),
        ("$DATA/a", Path("/data/a")),
        ("run-${DATA}", Path("run-/data")),
        ("$NOBODY/a", Path("$NOBODY/a")),
        ('"~/a b"', tmp_path / "a b"),
        (" 'x' \n", Path("x")),
        (r"my\ chat.md", Path("my chat.md")),
        (r"sub\a.jpg", Path("sub/a.jpg")),
        (r"sub\(1).jpg", Path("sub/(1).jpg")),
        ((tmp_path / "ä b.jpg").as_uri(), tmp_path / "ä b.jpg"),
        ("file:/data/a", Path("/data/a")),
        (r"C:\Photos\a b.jpg", tmp_path / "c/Photos/a b.jpg"),
        ("file:///C:/Photos/a%20b.jpg", tmp_path / "c/Photos/a b.jpg"),
        (r"D:\a.jpg", Path("D:/a.jpg")),
        (r"\\wsl.localhost\Ubuntu\data\a", Path("/data/a")),
        ("file://wsl%24/Ubuntu/data/a", Path("/data/a")),
        ("{000..002}.tar", Path("{000..002}.tar")),
        ("hub:owner/name:split", Path("hub:owner/name:split")),
        (str(odd), odd),
    ):
        assert expand(written) == meant, written
    with pytest.raises(UserError, match="no home directory is known for ~"):
        expand("~nobody-here/a")


def test_a_dropped_file_is_found_as_each_terminal_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it's my (photo) #1.png"
    path.touch()
    escaped = re.sub(r"([ '()#])", r"\\\1", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in (
        str(path), f"{path} ", f'"{path}"', f'"{path}" ', shlex.quote(str(path)), f"{escaped} ", path.as_uri(),
        f"'{path.as_uri().replace('%27', chr(39))}", f'"{path.as_uri()}" ', str(path).replace("/", "\\"),
        "~/it's my (photo) #1.png", f"file://localhost{path.as_uri().removeprefix('file://')}",
    ):  # fmt: skip
        assert expand(text) == path, text


def test_a_name_in_a_table_tells_nothing_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    with pytest.raises(UserError, match=r"\$TOKEN\.jpg: no such file"):
        read_file(find_image(tmp_path, "$TOKEN.jpg"), 10)
    with pytest.raises(UserError, match=r"secret\.jpg: no such file"):
        read_file("$TOKEN.jpg", 10)
