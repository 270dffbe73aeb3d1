"""The journal keeps whole lines, whatever happened to the last one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from minigpt4.errors import UserError
from minigpt4.evaluation.results import RESULTS, Journal, digest, read_rows, write_files


def test_half_a_line_at_the_end_is_cut_off_and_others_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal(path) as journal:
        journal.add({"key": "a", "text": "é\r\n"})
        journal.add({"key": "b", "text": "2"})
        journal.add({"key": "a", "text": "3"})
        assert [row["text"] for row in journal.rows.values()] == ["3", "2"]
    whole = path.read_bytes()
    for cut in (1, 5, 11):
        path.write_bytes(whole + b'{"key": "c"}\n'[:cut])
        assert len(list(read_rows(path))) == 3, "reading changes nothing"
        assert path.read_bytes() != whole
        with Journal(path) as journal:
            assert journal.rows["a"]["text"] == "3"
            assert "c" not in journal.rows
        assert path.read_bytes() == whole
    for broken in (b"{]\n", b"[1]\n", b'{"no": "key"}\n'):
        path.write_bytes(whole + broken + whole)
        with pytest.raises(UserError, match=r"a\.jsonl:4: is no line of a journal"):
            Journal(path)


def test_a_key_depends_on_what_it_names_and_not_on_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


def test_a_name_that_is_not_utf8_is_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add({"key": digest([name]), "id": name})
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal.rows[digest([name])]["id"] == name
    write_files(tmp_path, {"id": name}, {})
    assert json.loads((tmp_path / RESULTS).read_text())["id"] == name
