"""Projects with real pictures and texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from curating import add_texts, picture_file
from minigpt4.curation.ledger import Ledger


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
