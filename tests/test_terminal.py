"""The conversation in the terminal: real processes, through a pipe and through a terminal."""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from PIL import Image

from commands import run
from speaking import endless_llm

MINIGPT4 = str(Path(sys.executable).with_name("minigpt4"))


@pytest.fixture(scope="module")
def alignment(tiny_vision: Path, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that answers "Yes" and then falls silent without an end, up to the limit. It knows no image."""
    import torch
    from safetensors.torch import save_file

    from minigpt4 import MiniGPT4

    directory = tmp_path_factory.mktemp("terminal")
    llm = endless_llm(tiny_llm, directory / "llm")
    vision = shutil.copytree(tiny_vision, directory / "vision")
    save_file({"direction": torch.zeros(32), "limit": torch.tensor(-1.0)}, vision / "familiar.safetensors")
    model = MiniGPT4.assemble(vision, llm, template="pocket", dtype="float32", device="cpu")
    model.save_pretrained(directory / "alignment")
    Image.new("RGB", (40, 30), (200, 30, 30)).save(directory / "picture.png")
    return directory / "alignment"


def chat(alignment: Path, lines: str) -> subprocess.CompletedProcess[str]:
    return run("chat", alignment, alignment.parent / "picture.png", "--max-new-tokens", 9, stdin=lines)


def test_a_pipe_gets_one_answer_a_line(alignment: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.md"
    picture = alignment.parent / "picture.png"
    lines = f"What is it?\n\nIs it\\\nred?\n/export {saved}\n/reset\nAgain?\n/image {picture}\nAnd?\n/quit\nNot asked\n"
    result = chat(alignment, lines)
    assert (result.returncode, result.stdout) == (0, "Yes\nYes\nYes\nYes\n"), result.stderr
    assert result.stderr == f"saved in {saved}\n"
    assert saved.read_text() == (
        f"**You:** ![]({picture}) What is it?\n\n**MiniGPT-4:** Yes\n\n**You:** Is it\nred?\n\n**MiniGPT-4:** Yes\n"
    )


def test_mistakes_in_a_conversation_do_not_end_it(alignment: Path, tmp_path: Path) -> None:
    existing = tmp_path / "old.md"
    existing.write_text("old")
    mistakes = (
        f"/paint\n/image\n/settings top_p=9\n/settings warm=1\n/export\n/export {existing}\n/export {'x' * 300}\n"
    )
    result = chat(alignment, f"/image {tmp_path / 'none.png'}\n{mistakes}/help\nStill there?\n")
    assert result.stdout.endswith("Yes\n")
    assert "/image PATH" in result.stdout
    errors = result.stderr.splitlines()
    assert [error.partition(": ")[0] for error in errors] == ["minigpt4"] * 8
    expected = (
        "none.png", "no command /paint", "/image needs a path", "top_p", "'warm'", "/export needs", "exists",
        "File name too long",
    )  # fmt: skip
    for error, part in zip(errors, expected, strict=True):
        assert part in error
    assert existing.read_text() == "old"
    assert result.returncode == 2, "a script that pipes questions in must be able to tell"


class Screen:
    """A process in a terminal of its own, 100 columns wide, and what it writes there."""

    def __init__(self, *arguments: object, **environment: str) -> None:
        self.main, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        plain = {**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        self.process = subprocess.Popen(
            [MINIGPT4, "chat", *map(str, arguments)], stdin=terminal, stdout=terminal, stderr=terminal, env=plain,
            start_new_session=True, preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(terminal)
        self.seen = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def wait_for(self, text: str) -> str:
        """What came before `text`, and it."""
        deadline = time.monotonic() + 60
        while text not in self.seen:
            ready, _, _ = select.select([self.main], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{text!r} did not come; got {self.seen[-900:]!r}"
            self.seen += self.decoder.decode(os.read(self.main, 65536))
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def type(self, keys: str) -> None:
        os.write(self.main, keys.encode())

    def say(self, line: str, expected: str) -> str:
        """Types a line at the prompt; returns all up to what is expected."""
        self.wait_for(READY)
        self.type(line + ENTER)
        return self.wait_for(expected)

    def quit(self) -> None:
        self.wait_for(READY)
        self.type("quit" + ENTER)
        assert self.process.wait(timeout=60) == 0

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.main)


ENTER, NEW_LINE, UP, CTRL_C = "\r", "\x1b\r", "\x1b[A", "\x03"
READY = "\x1b[?2004h"  # bracketed paste is switched on: the prompt reads (its own text comes in pieces, between moves)
DONE = "\x1b[?2004l"  # and off: a line was read


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_a_terminal_can_stop_an_answer_go_on_and_remember(alignment: Path, tmp_path: Path) -> None:
    picture = alignment.parent / "picture.png"
    with Screen(alignment, picture, "--max-new-tokens", 90_000, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(READY)
        screen.type("half a thought" + CTRL_C)
        screen.wait_for("Ctrl-D leaves")
        for question in ("Is it red?", "Is it blue?"):
            screen.say(question, "Yes")
            screen.type(CTRL_C)
            screen.wait_for("(stopped; this question is forgotten)")
        screen.quit()
    history = tmp_path / "minigpt4" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    saved = tmp_path / "chat.json"
    with Screen(alignment, picture, "--max-new-tokens", 9, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for(READY)
        screen.type(UP * 3 + ENTER)  # past quit and the second question
        assert "Is it red?" in screen.wait_for("Yes\r\n")
        screen.say("What is" + NEW_LINE + "it\\" + ENTER + "now?", "Yes\r\n")
        for _ in range(2):
            screen.say(f"/image {picture}", DONE)
        screen.say("\x1b[200~Are they\nalike?\x1b[201~", "Yes\r\n")  # pasted
        screen.say(f"/export {saved}", "saved in")
        messages = json.loads(saved.read_text())["messages"][::2]
        assert [message["text"] for message in messages] == ["Is it red?", "What is\nit\nnow?", "Are they\nalike?"]
        assert [len(message["images"]) for message in messages] == [1, 0, 2]
        screen.say("/settings", "max_new_tokens=9\r\n")
        screen.say("/settings max_new_tokens=2 temperature=0", "max_new_tokens=2\r\n")
        screen.say("Short?", "Ye\r\n")
        screen.say("/system Be ###brief.", "Be  brief.\r\n")
        screen.say("Well?", "Ye\r\n")
        screen.say("/system default", "(no system text)\r\n")
        screen.quit()


def test_tab_completes_and_exit_leaves(alignment: Path, tmp_path: Path) -> None:
    with Screen(alignment, "--max-new-tokens", 9, XDG_STATE_HOME=str(tmp_path)) as screen:
        screen.wait_for("Show an image first")
        screen.say("What is it?", "minigpt4: show an image first, for example /image photo.jpg")
        screen.wait_for(READY)
        screen.type("/im\t")
        screen.wait_for("age")
        screen.type(" " + str(alignment.parent / "pict") + "\t")
        screen.wait_for("ure.png")
        screen.type(ENTER)
        screen.wait_for("picture.png belongs to your next question. Yes")
        screen.wait_for("\x1b[2mThis image is unlike those that the model learnt from")
        screen.say("What is it?", "Yes\r\n")
        screen.say("/settings", "top_p=0.9   (not used: nothing is drawn at random)")
        screen.wait_for("repetition_penalty=1.0\r\n")
        screen.say("/settings temperature=warm", "temperature = 'warm': must be a number")
        screen.wait_for(READY)
        screen.type("exit" + ENTER)
        assert screen.process.wait(timeout=60) == 0


def test_words_are_not_broken_at_the_edge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from minigpt4.terminal import _Lines

    text = "A large white drum\nstands 日本日本日本 beside incomprehension of all kinds. Well."
    for size in (1, 3, 200):  # however it comes
        lines = _Lines()
        lines.room = 15
        for start in range(0, len(text), size):
            lines.write(text[start : start + size])
        lines.write("\n")
        # What was written of a word that is taken to the next line is wiped out before.
        shown = re.sub(r" ?\S*\x1b\[\d+D\x1b\[K", "", capsys.readouterr().out)
        assert [line.rstrip() for line in shown.splitlines()] == [
            "A large white", "drum", "stands", "日本日本日本", "beside", "incomprehension",
            "of all kinds.", "Well.",
        ]  # fmt: skip
