from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curating import TEXTS, add_texts
from minigpt4.curation.ledger import Ledger
from minigpt4.errors import UserError


def test_events_are_never_changed_or_deleted(project: Path) -> None:
    with Ledger(project):
        pass
    database = sqlite3.connect(project / "ledger.sqlite")
    for query in ("UPDATE events SET data = '{}'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            database.execute(query)


def test_what_is_there_is_not_added_again(project: Path, pictures: Path) -> None:
    with Ledger(project) as ledger:
        before = ledger.events()
        add_texts(ledger, pictures)
        assert ledger.events() == before
        assert [item.text for item in ledger.items()] == list(TEXTS)
        assert [item.image.name for item in ledger.items(["7", "2"])] == ["2", "7"]
        with pytest.raises(UserError, match="'none'"):
            ledger.items(["none"])


def test_a_new_text_leaves_behind_what_was_said_of_the_old_one(project: Path) -> None:
    with Ledger(project) as ledger:
        [item] = ledger.items(["3"])
        settings = ledger.settings("any", {})
        ledger.add("filter", settings, [(item.key, item.source.seq, {"caught": ["markup"], "values": {}})])
        review = {"reviewer": "Ann", "verdict": "accept", "text": None}
        ledger.add("review", settings, [(item.key, item.source.seq, review)])
        [item] = ledger.items(["3"])
        assert not item.kept
        assert set(item.reviews) == {"Ann"}
        refused = {"text": "I cannot.", "accepted": False, "reason": "drift", "tokens": 1}
        ledger.add("refine", settings, [(item.key, item.raw.seq, refused)])
        [item] = ledger.items(["3"])
        assert item.text == TEXTS[3]
        assert not item.kept
        better = {"text": "Better.", "accepted": True, "reason": None, "tokens": 1}
        ledger.add("refine", settings, [(item.key, item.raw.seq, better)], turn=1)
        [item] = ledger.items(["3"])
        assert (item.text, item.kept, item.reviews) == ("Better.", True, {})
        assert len([event for event in ledger.events() if event.image == "3"]) == 5  # nothing earlier is lost


@pytest.mark.parametrize(
    ("verdicts", "final"),
    [("a", "text"), ("r", None), ("ar", None), ("are", "edited"), ("aar", "text"), ("ee", "edited")],
)
def test_most_reviewers_decide(project: Path, verdicts: str, final: str | None) -> None:
    with Ledger(project) as ledger:
        [item] = ledger.items(["0"])
        settings = ledger.settings("review", {})
        names = {"a": "accept", "r": "reject", "e": "edit"}
        for number, letter in enumerate(verdicts):
            text = "edited" if letter == "e" else None
            data = {"reviewer": f"R{number}", "verdict": names[letter], "text": text}
            ledger.add("review", settings, [(item.key, item.source.seq, data)], turn=number)
        assert ledger.items(["0"])[0].final == (TEXTS[0] if final == "text" else final)


def test_files_that_are_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="describe or import"):
        Ledger(tmp_path / "nowhere")
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="not a database"):
        Ledger(tmp_path)
    file.unlink()
    other = sqlite3.connect(file)
    other.execute("CREATE TABLE recipes (name)")
    other.close()
    with pytest.raises(UserError, match="not a ledger"):
        Ledger(tmp_path)


def test_a_ledger_of_another_version(project: Path) -> None:
    database = sqlite3.connect(project / "ledger.sqlite")
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(UserError, match=r"another version.*version 7.*reads 1"):
        Ledger(project)


def test_pictures_that_vanish_or_change(project: Path, pictures: Path) -> None:
    (pictures / "1.png").unlink()
    (pictures / "2.png").write_bytes((pictures / "3.png").read_bytes())
    with Ledger(project) as ledger:
        by_name = {picture.name: picture for picture in ledger.images()}
        assert by_name["0"].read() == (pictures / "0.png").read_bytes()
        with pytest.raises(UserError, match=r"1\.png.*gone"):
            by_name["1"].read()
        with pytest.raises(UserError, match=r"2\.png.*changed"):
            by_name["2"].read()
        with pytest.raises(UserError, match="another image named '2'"):
            ledger.add_images([("2", pictures / "2.png")])


HOLD = """
import sys
from minigpt4.curation.ledger import Ledger
with Ledger(sys.argv[1]) as ledger, ledger.lock("refine"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_kept_out_and_told_why(project: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(project)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with Ledger(project) as ledger:
        with pytest.raises(UserError, match=f"process {holder.pid} is at work on refine"), ledger.lock("refine"):
            pass
        with ledger.lock("filter"):
            pass  # other steps go on
        holder.kill()
        holder.communicate()
        with ledger.lock("refine"):
            pass  # a lock ends with its process


ADD = """
import sys
from minigpt4.curation.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    settings = ledger.settings("ground", {})
    print("started", flush=True)
    for turn in range(100_000):
        ledger.add("ground", settings, [((str(i), 0), 1, {"turn": turn}) for i in range(12)], turn)
"""


def test_killed_while_writing(project: Path) -> None:
    """Rows that belong together are there together, whenever the process was killed."""
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", ADD, str(project)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "started\n"
        time.sleep(0.15)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        with Ledger(project) as ledger:
            events = ledger.events("ground")
            turns = [event.data["turn"] for event in events]
            assert turns == sorted(turns)
            assert all(turns.count(turn) == 12 for turn in set(turns))
            assert len({event.seq for event in ledger.events()}) == 12 + len(events)


FULL = """
import resource, sys
from minigpt4.curation.ledger import Ledger
from minigpt4.errors import UserError
with Ledger(sys.argv[1]) as ledger:
    settings = ledger.settings("ground", {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
    done = 0
    try:
        while True:
            ledger.add("ground", settings, [(("0", 0), 1, {"text": "x" * 20_000})], done)
            done += 1
    except UserError as error:
        print(done, error)
"""


def test_a_full_disk_is_told_and_costs_nothing_that_was_recorded(project: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FULL, str(project)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    done, _, message = result.stdout.partition(" ")
    assert "intact" in message
    with Ledger(project) as ledger:
        assert len(ledger.events("ground")) == int(done) > 3
        assert [item.text for item in ledger.items()] == list(TEXTS)
