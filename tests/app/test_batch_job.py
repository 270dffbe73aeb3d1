"""Jobs over many pictures: what is asked, what is written, and what a kill leaves."""

from __future__ import annotations

import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from minigpt4 import MiniGPT4, UserError
from minigpt4.app.batch_job import ImageQuestion, read_questions, run

PLAIN: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "progress": False}


@pytest.fixture
def folder(tmp_path: Path, pictures: list[Image.Image]) -> Path:
    """Seven pictures, one of them broken and one in a subdirectory, and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i, picture in enumerate(pictures[:6]):
        picture.save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"not an image")
    pictures[6].save(folder / "more" / "6.jpg")
    (folder / "notes.txt").write_text("notes")
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_picture_gets_a_line_in_order(varied: MiniGPT4, folder: Path, tmp_path: Path) -> None:
    questions = read_questions(str(folder), "What is it?")
    names = [Path(question.name).name for question in questions]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png", "6.jpg"]
    result = run(lambda: varied, questions, tmp_path / "answers.jsonl", batch_size=3, **PLAIN)
    assert (result.answered, result.unreadable, result.found) == (6, 1, 0)
    assert "6 answers, 1 unreadable in " in str(result)
    found = lines(tmp_path / "answers.jsonl")
    assert [line["image"] for line in found] == [question.name for question in questions]
    for question, line in zip(questions, found, strict=True):
        if question.name.endswith("2.png"):
            assert "2.png: not an image" in line["error"]
        else:
            [alone] = varied.generate(question.image, "What is it?", do_sample=False, max_new_tokens=8)
            assert line["answer"] == alone


def test_a_job_goes_on_after_its_last_whole_line(varied: MiniGPT4, folder: Path, tmp_path: Path) -> None:
    questions = read_questions(str(folder), "What is it?")
    whole = tmp_path / "whole.jsonl"
    settings = {**PLAIN, "do_sample": True, "seed": 3}
    run(lambda: varied, questions, whole, batch_size=3, **settings)
    expected = whole.read_bytes()
    end_of_fourth = len(b"".join(expected.splitlines(keepends=True)[:4]))
    for cut in (1, end_of_fourth, end_of_fourth + 5, len(expected) - 1):
        whole.write_bytes(expected[:cut])
        run(lambda: varied, questions, whole, batch_size=3, **settings)
        assert whole.read_bytes() == expected
    result = run(lambda: pytest.fail("nothing is left to do"), questions, whole, batch_size=3, **settings)
    assert (result.answered, result.found) == (0, 7)


def test_what_cannot_be_asked_or_named_costs_its_own_line(varied: MiniGPT4, folder: Path, tmp_path: Path) -> None:
    odd = os.fsencode(folder) + b"/caf\xe9.png"
    if sys.platform == "linux":  # where names are bytes
        Path(os.fsdecode(odd)).write_bytes((folder / "1.png").read_bytes())
    questions = read_questions(str(folder), "What is it?")
    questions[1] = replace(questions[1], prompt="What? " * 2000)
    questions[3] = replace(questions[3], prompt="caf\udce9?")  # a Latin-1 byte of the shell
    result = run(lambda: varied, questions, tmp_path / "answers.jsonl", batch_size=3, **PLAIN)
    assert (result.answered, result.unreadable) == (len(questions) - 2, 2)
    found = lines(tmp_path / "answers.jsonl")
    assert [line["image"] for line in found] == [question.name for question in questions]
    assert "tokens" in found[1]["error"]
    assert found[3]["prompt"] == "caf\udce9?"
    assert "answer" in found[3]
    [alone] = varied.generate(questions[0].image, "What is it?", do_sample=False, max_new_tokens=8)
    assert found[0]["answer"] == alone
    assert run(lambda: pytest.fail("all is done"), questions, tmp_path / "answers.jsonl", batch_size=3, **PLAIN)


def test_a_second_job_on_the_same_file_is_refused(varied: MiniGPT4, folder: Path, tmp_path: Path) -> None:
    questions, out = read_questions(str(folder), "What is it?"), tmp_path / "new" / "answers.jsonl"

    def second() -> MiniGPT4:
        with pytest.raises(UserError, match=r"process \d+ is at work on answers.jsonl here"):
            run(lambda: pytest.fail("the second job began"), questions, out, **PLAIN)
        run(lambda: varied, questions, out.with_name("others.jsonl"), **PLAIN)  # another file beside it is free
        return varied

    assert run(second, questions, out, **PLAIN).answered == len(questions) - 1  # one is no image
    assert out.read_bytes() == out.with_name("others.jsonl").read_bytes()


def test_a_killed_job_loses_and_doubles_nothing(tmp_path: Path, pictures: list[Image.Image], varied: MiniGPT4) -> None:
    varied.export(tmp_path / "export")
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        pictures[i % 8].save(tmp_path / "pictures" / f"{i:02d}.png")
    out = tmp_path / "answers.jsonl"
    command = [
        str(Path(sys.executable).with_name("minigpt4")), "generate", str(tmp_path / "export"), "--images",
        str(tmp_path / "pictures" / "*.png"), "--prompt", "What is it?", "--out", str(out), "--batch-size", "1",
        "--max-new-tokens", "30", "--device", "cpu",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while (not out.exists() or out.stat().st_size < 300) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = len(out.read_text().splitlines())
    assert 0 < before < 60
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 0, again.stderr
    assert f"({before} were there already)" in again.stdout
    assert "images/s" in again.stdout
    assert [Path(line["image"]).stem for line in lines(out)] == [f"{i:02d}" for i in range(60)]


def test_questions_from_jsonl_and_parquet(folder: Path, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"image": "pictures/0.png", "prompt": "What?"}, {"image": str(folder / "1.png")}]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    questions = read_questions(str(tmp_path / "asked.jsonl"), "Where?")
    assert questions == [
        ImageQuestion("pictures/0.png", folder / "0.png", "What?"),
        ImageQuestion(str(folder / "1.png"), folder / "1.png", "Where?"),
    ]
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    columns = {"image": [{"bytes": data.getvalue(), "path": None}, {"bytes": None, "path": "pictures/0.png"}]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "asked.parquet")
    first, second = read_questions(str(tmp_path / "asked.parquet"), "Where?")
    assert callable(first.image)
    assert (first.image(), first.prompt) == (data.getvalue(), "Where?")
    assert first.name.endswith("asked.parquet:0")
    assert second == ImageQuestion("pictures/0.png", folder / "0.png", "Where?")


def test_a_parquet_file_is_never_in_memory_as_a_whole(varied: MiniGPT4, tmp_path: Path) -> None:
    """64 MB in row groups of 8, read in order, again from the middle, and by a job that goes on."""
    import pyarrow
    import pyarrow.parquet

    rng = random.Random(0)
    files = []
    for i in range(64):
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (4 * i, 0, 0)).save(data, "PNG")
        files.append(data.getvalue() + rng.randbytes(10**6))  # what follows a picture's end is not looked at
    table = pyarrow.table({"image": files, "prompt": [f"{i}?" for i in range(64)]})
    pyarrow.parquet.write_table(table, tmp_path / "asked.parquet", row_group_size=8, compression="none")
    del table
    empty = pyarrow.total_allocated_bytes()
    questions = read_questions(str(tmp_path / "asked.parquet"), None)
    assert [question.prompt for question in questions] == [f"{i}?" for i in range(64)]
    peak = 0
    for i in (*range(64), 45, 3, 7):
        picture = questions[i].image
        assert callable(picture)
        assert picture() == files[i]
        peak = max(peak, pyarrow.total_allocated_bytes() - empty)
    assert peak < 32e6
    out, settings = tmp_path / "answers.jsonl", {**PLAIN, "max_new_tokens": 2, "batch_size": 16}
    run(lambda: varied, questions, out, **settings)
    expected = out.read_bytes()
    out.write_bytes(b"".join(expected.splitlines(keepends=True)[:50]))
    result = run(lambda: varied, read_questions(str(tmp_path / "asked.parquet"), None), out, **settings)
    assert (result.found, result.answered) == (50, 14)
    assert out.read_bytes() == expected


def test_a_damaged_part_of_a_parquet_file_is_one_line(varied: MiniGPT4, tmp_path: Path) -> None:
    """Of three row groups the middle one: the rows of the others keep their own images, also in a job that goes on."""
    import pyarrow
    import pyarrow.parquet

    files = []
    for i in range(6):
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(data, "PNG")
        files.append(data.getvalue())
    path = tmp_path / "asked.parquet"
    columns = pyarrow.table({"image": files, "prompt": [f"{i}?" for i in range(6)]})
    pyarrow.parquet.write_table(columns, path, row_group_size=2, compression="none", use_dictionary=False)
    chunk = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    for at in range(chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size):
        content[at] ^= 0xFF
    path.write_bytes(content)
    questions = read_questions(str(path), "Damaged?")
    assert [question.prompt for question in questions] == ["0?", "1?", "Damaged?", "4?", "5?"]
    for place, row in ((4, 5), (0, 0), (1, 1), (3, 4)):
        read = questions[place].image
        assert callable(read)
        assert read() == files[row]
    out, settings = tmp_path / "answers.jsonl", {**PLAIN, "batch_size": 2}
    result = run(lambda: varied, questions, out, **settings)
    assert (result.answered, result.unreadable) == (4, 1)
    assert ["error" in line for line in lines(out)] == [False, False, True, False, False]
    assert "cannot be read as parquet" in lines(out)[2]["error"]
    expected = out.read_bytes()
    for kept in (1, 2, 3, 4):
        out.write_bytes(b"".join(expected.splitlines(keepends=True)[:kept]))
        assert run(lambda: varied, read_questions(str(path), "Damaged?"), out, **settings).found == kept
        assert out.read_bytes() == expected


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_images_in_the_text_of_a_table_are_read_when_they_are_asked_for(tmp_path: Path, ending: str) -> None:
    """Forty of 90 kB: after all questions are read next to nothing of them is in memory."""
    rng = random.Random(0)
    files = [rng.randbytes(90_000) for _ in range(40)]
    rows = [("data:image/png;base64," + base64.b64encode(data).decode(), f"{i}?") for i, data in enumerate(files)]
    path = tmp_path / f"asked.{ending}"
    if ending == "csv":
        path.write_text("image,prompt\n" + "".join(f'"{image}",{prompt}\n' for image, prompt in rows))
    else:
        path.write_text("".join(json.dumps({"image": image, "prompt": prompt}) + "\n" for image, prompt in rows))
    del rows
    tracemalloc.start()
    try:
        questions = read_questions(str(path), None)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 1e6
    assert [question.prompt for question in questions] == [f"{i}?" for i in range(40)]
    for i in (*range(40), 7, 3, 11):
        read = questions[i].image
        assert callable(read)
        assert read() == files[i]


def test_what_cannot_be_asked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jsonl").write_text('{"image": "a.png", "prompt": "?"}\n{"image"\n')
    (tmp_path / "bare.jsonl").write_text('{"prompt": "?"}\n')
    (tmp_path / "mute.jsonl").write_text('{"image": "a.png"}\n')
    (tmp_path / "not.parquet").write_text("not parquet")
    for images, message in (
        ("nowhere", "nowhere: no such file or directory, and no file fits it"),
        ("empty", "holds no images"),
        ("none.jsonl", "no such file"),
        ("broken.jsonl", r"broken\.jsonl:2: broken JSON"),
        ("bare.jsonl", r"bare\.jsonl:1: has no image"),
        ("mute.jsonl", r"mute\.jsonl:1: has no prompt; give it one, or all with --prompt"),
        ("not.parquet", "cannot be read as parquet"),
        ("pictures", "no question was given"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_questions(str(tmp_path / images), None)
        assert "\n" not in str(caught.value)


def test_answers_of_two_jobs_are_never_mixed(varied: MiniGPT4, folder: Path, tmp_path: Path) -> None:
    questions, out = read_questions(str(folder), "What is it?"), tmp_path / "answers.jsonl"
    run(lambda: varied, questions, out, job={"model": "a"}, **PLAIN)
    before = out.read_bytes()
    for change, message in (
        ({"questions": read_questions(str(folder), "Where?")}, "another set of images or prompts"),
        ({"max_new_tokens": 9}, "another max_new_tokens"),
        ({"job": {"model": "b"}}, "another model"),
    ):
        arguments: dict[str, Any] = {"questions": questions, "job": {"model": "a"}, **PLAIN, **change}
        with pytest.raises(UserError, match=message):
            run(lambda: varied, arguments.pop("questions"), out, **arguments)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds something else"):
        run(lambda: varied, questions, tmp_path / "letter.txt", **PLAIN)
    with pytest.raises(UserError, match="is a directory; name a file in it"):
        run(lambda: varied, questions, tmp_path, **PLAIN)
    assert out.read_bytes() == before
    assert (tmp_path / "letter.txt").read_text() == "dear"
