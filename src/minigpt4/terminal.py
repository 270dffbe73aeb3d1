"""The conversation in a terminal: questions and commands from standard input, answers to standard output as they come.

Knows nothing about models: it is given a `Chat`. With input from a pipe it prints the answers only.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pydantic import TypeAdapter, ValidationError

from minigpt4.errors import UserError
from minigpt4.files import expanded
from minigpt4.generation.decoding import Decoding
from minigpt4.images import open_image
from minigpt4.telling import say, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from prompt_toolkit import PromptSession

    from minigpt4.generation.chat import Chat

COMMANDS = """\
/image PATH       show another picture, as often as you like; all belong to your next question
/system TEXT      tell the model how to behave, and start again (alone: what it was told; default: as it came)
/settings         how answers are chosen; change it with /settings temperature=0.7 max_new_tokens=100
/reset            forget the conversation and start again with the last picture
/export PATH      write the conversation to a file (.md to read, .json for programs)
/help             this list
/quit             leave (so does Ctrl-D); Ctrl-C stops an answer
A line that ends in \\ goes on in the next; Alt-Enter starts a new one too. Up and down: what you asked before."""


class Terminal:
    """Talks until the input ends. `picture` is shown with the first question, `settings` are those of `Chat.ask`.

    `show`: whether pictures are drawn in the terminal, if it is one.
    """

    def __init__(self, chat: Chat, picture: Path | None, settings: dict[str, Any], show: bool = True) -> None:
        self.chat = chat
        self.settings = settings
        self.last_picture = picture
        self.pending = [] if picture is None else [picture]  # shown, but not yet asked about
        self.interactive = sys.stdin.isatty()
        self.show = show and self.interactive and sys.stdout.isatty()
        self.mistakes = 0
        self._session: PromptSession[str] | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(COMMANDS),
            "/image": self._image,
            "/system": self._system,
            "/settings": self._settings,
            "/reset": lambda _: self._reset(),
            "/export": self._export,
            "/save": self._export,
        }

    def run(self) -> None:
        """One line at a time: a question, or a command that starts with a slash."""
        for stream in (sys.stdin, sys.stdout):  # what cannot be decoded or shown is no reason to end
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if self.interactive:
            say("Ask about the picture. /help lists the commands.", err=True)
            self._session = prompt_session([*self._commands, "/quit"])
        self._draw(self.last_picture)
        while True:
            line = self._read()
            if line is None or line in ("/quit", "/exit"):
                return
            if not line:
                continue
            try:
                self._command(line) if line.startswith("/") else self._ask(line)
            except UserError as error:
                self.mistakes += 1
                say(shown(f"minigpt4: {error}"), err=True)

    def _read(self) -> str | None:
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            try:
                line = self._read_line()
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                say("(/quit or Ctrl-D leaves)", err=True)
                return ""
            if line is None:
                return None if not lines else "\n".join(lines).strip()
            lines = [*lines[:-1], lines[-1][:-1], line] if lines else [line]
        return "\n".join(lines).strip()

    def _read_line(self) -> str | None:
        if self._session is None:
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        try:
            return self._session.prompt("\n> ")
        except EOFError:
            return None

    def _ask(self, question: str) -> None:
        try:
            if self.settings.get("num_beams", 1) > 1:  # the best answer is known at the end only
                say(self.chat.ask(question, image=self.pending, **self.settings), end="")
            else:
                for piece in self.chat.stream(question, image=self.pending, **self.settings):
                    say(piece, end="")
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            say("\n(stopped; this question is forgotten)", err=True)
            return
        say("")
        self.pending = []

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise UserError(f"there is no command {name}; /help lists them")
        self._commands[name](argument.strip())

    def _reset(self) -> None:
        self.chat.reset()
        self.pending = [] if self.last_picture is None else [self.last_picture]

    def _image(self, path: str) -> None:
        if not path:
            raise UserError("/image needs a path, such as /image photo.jpg")
        picture = dropped(path)
        open_image(picture)  # says now, not at the next question, what is wrong with it
        self.last_picture = picture
        self.pending.append(picture)
        self._draw(self.last_picture)

    def _system(self, text: str) -> None:
        if text:
            self.chat.set_system(None if text == "default" else text)
            self._reset()
        say(self.chat.template.system or "(no system text)")

    def _settings(self, text: str) -> None:
        self.settings = changed_settings(self.settings, text)
        values = asdict(Decoding.from_settings(self.settings))
        say("\n".join(f"{name}={'none' if value is None else value}" for name, value in values.items()))

    def _export(self, path: str) -> None:
        if not path:
            raise UserError("/export needs a path, such as /export chat.md")
        say(f"saved in {self.chat.save(dropped(path))}", err=True)

    def _draw(self, path: Path | None) -> None:
        if self.show and path is not None:
            from minigpt4.terminal_picture import show

            show(open_image(path))


def dropped(text: str) -> Path:
    """The path in what people type, or a terminal writes when a file is dropped on it: the first that exists.

    Plain, in quotes, escaped for a shell, a file:// URL, with Windows' back-slashes (and drives, as WSL mounts them).
    """
    words = [text, text.strip(), text.strip().strip("'\"")]
    with suppress(ValueError):  # a quote without its second, no URL
        words.append(" ".join(shlex.split(text)))
        words += [url2pathname(urlsplit(word).path) for word in words if word.startswith("file:")]
    words += [re.sub("^/?([A-Za-z]):/", lambda drive: f"/mnt/{drive[1].lower()}/", w.replace("\\", "/")) for w in words]
    paths = [expanded(word) for word in words]
    return Path(next(filter(os.path.exists, paths), paths[2]))


def changed_settings(settings: dict[str, Any], text: str) -> dict[str, Any]:
    """`settings` with what `text` changes ("temperature=0.7 seed=none"): none goes back to the default.

    A temperature of 0 takes the likeliest token, any other samples. Raises UserError for what is no setting, or no
    value of it.
    """
    asked: dict[str, str] = {}
    for part in text.split():
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{part!r} is not of the form name=value, such as temperature=0.7")
        asked[name] = value
    if asked.get("temperature") in ("0", "0.0"):
        asked |= {"temperature": "none", "do_sample": "false"}
    elif "temperature" in asked and "do_sample" not in asked:
        asked["do_sample"] = "true"
    new = {name: value for name, value in settings.items() if name not in asked}
    given = {name: value for name, value in asked.items() if value != "none"}
    Decoding.check_names(asked)
    try:
        read = TypeAdapter(Decoding).validate_strings({k: str(v) for k, v in {**new, **given}.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        what = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{first['loc'][0]}: {what}" if first["loc"] else what) from None
    return new | {name: getattr(read, name) for name in given}


def prompt_session(commands: list[str]) -> PromptSession[str]:
    """A prompt with line editing, completion of commands and paths, and a history that is kept from day to day."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer, NestedCompleter, PathCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    for newline in (("escape", "enter"), ("c-j",)):
        keys.add(*newline)(lambda event: event.current_buffer.insert_text("\n"))
    paths: dict[str, Completer | None] = dict.fromkeys(("/image", "/export"), PathCompleter(expanduser=True))
    history: History = InMemoryHistory()
    try:
        path = history_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        history = FileHistory(path)
    except (OSError, UserError) as error:
        say(f"(no history: {error})", err=True)
    return PromptSession(
        history=history,
        output=create_output(sys.stdout if sys.stdout.isatty() else sys.stderr),
        multiline=True,
        key_bindings=keys,
        completer=NestedCompleter.from_nested_dict(dict.fromkeys(commands) | paths),
        complete_while_typing=False,
    )


def history_file() -> Path:
    """Where questions are kept: `minigpt4/history` in XDG_STATE_HOME, or in ~/.local/state."""
    return Path(os.environ.get("XDG_STATE_HOME") or expanded("~/.local/state")) / "minigpt4" / "history"
