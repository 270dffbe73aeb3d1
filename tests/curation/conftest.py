"""Projects with real pictures and texts, and real servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curating import Server, add_texts, picture_file
from minigpt4.curation.ledger import Ledger

HERE = Path(__file__).parent


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`serve("status:429,1", "ok")`: a server that meets its requests with these behaviours in turn."""
    running = []

    def start(*behaviours: str) -> Server:
        log = tmp_path / f"requests{len(running)}.jsonl"
        command = [sys.executable, str(HERE / "endpoint_server.py"), str(log), *behaviours]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        return Server(process.stdout.readline().strip(), log)

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 12 small pictures, `0.png` to `11.png`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.png").write_bytes(picture_file(number))
    return folder


@pytest.fixture
def project(tmp_path: Path, pictures: Path) -> Path:
    """A project of 12 pictures with `TEXTS`."""
    directory = tmp_path / "project"
    with Ledger(directory, create=True) as ledger:
        add_texts(ledger, pictures)
    return directory
