"""The conversation in the terminal: real processes, through a pipe and through a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from speaking import make_it_say

MINIGPT4 = str(Path(sys.executable).with_name("minigpt4"))


@pytest.fixture(scope="module")
def alignment(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "Yes" and then falls silent without an end, up to the token limit."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("terminal")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    llm = LlamaForCausalLM.from_pretrained(tiny_llm, max_position_embeddings=100_000)
    make_it_say(llm, tokenizer, ["Y", "e", "s"])
    llm.save_pretrained(directory / "llm")
    tokenizer.save_pretrained(directory / "llm")
    model = MiniGPT4.assemble(tiny_vision, directory / "llm", template="pocket", dtype="float32", device="cpu")
    model.save_pretrained(directory / "alignment")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(directory / "picture.png")
    return directory / "alignment"


def chat(alignment: Path, lines: str) -> subprocess.CompletedProcess[str]:
    command = [MINIGPT4, "chat", alignment, alignment.parent / "picture.png", "--max-new-tokens", 9]
    return subprocess.run([*map(str, command)], input=lines, capture_output=True, text=True, timeout=120)


def test_a_pipe_gets_one_answer_a_line(alignment: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.md"
    picture = alignment.parent / "picture.png"
    lines = f"What is it?\n\nIs it red?\n/save {saved}\n/reset\nAgain?\n/image {picture}\nAnd?\n/quit\nNot asked\n"
    result = chat(alignment, lines)
    assert (result.returncode, result.stdout) == (0, "Yes\nYes\nYes\nYes\n")
    assert result.stderr == f"saved in {saved}\n"
    assert saved.read_text() == (
        f"**You:** ![]({picture}) What is it?\n\n**MiniGPT-4:** Yes\n\n**You:** Is it red?\n\n**MiniGPT-4:** Yes\n"
    )


def test_mistakes_in_a_conversation_do_not_end_it(alignment: Path, tmp_path: Path) -> None:
    existing = tmp_path / "old.md"
    existing.write_text("old")
    result = chat(alignment, f"/image {tmp_path / 'none.png'}\n/paint\n/image\n/save {existing}\n/help\nStill there?\n")
    assert result.stdout.endswith("Yes\n")
    assert "/image PATH" in result.stdout
    errors = result.stderr.splitlines()
    assert [error.partition(": ")[0] for error in errors] == ["minigpt4"] * 4
    for error, part in zip(errors, ("none.png", "no command /paint", "/image needs a path", "exists"), strict=True):
        assert part in error
    assert existing.read_text() == "old"
    assert result.returncode == 2, "a script that pipes questions in must be able to tell"


def test_a_terminal_can_stop_an_answer_and_go_on(alignment: Path) -> None:
    main, terminal = pty.openpty()
    command = [MINIGPT4, "chat", str(alignment), "--max-new-tokens", "90000"]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=_own_terminal
    )
    os.close(terminal)
    seen = ""

    def wait_for(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 60
        while text not in seen:
            ready, _, _ = select.select([main], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; got {seen!r}"
            seen += os.read(main, 4096).decode()
        seen = seen.partition(text)[2]

    try:
        for _ in range(2):
            wait_for("> ")
            os.write(main, b"Is it red?\n")
            wait_for("Yes")
            os.write(main, b"\x03")
            wait_for("(stopped; this question is forgotten)")
        wait_for("> ")
        os.write(main, b"/quit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(main)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
