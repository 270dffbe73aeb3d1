"""`minigpt4 chat`: questions and commands from standard input (a terminal or a pipe), answers as they come."""

import io
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.utils import get_cwidth
from pydantic import TypeAdapter, ValidationError

from minigpt4.documents import explain
from minigpt4.errors import UserError
from minigpt4.files import expand
from minigpt4.generation.chat import Chat
from minigpt4.generation.decoding import Decoding
from minigpt4.images import open_image
from minigpt4.prompts.encode import CUT
from minigpt4.telling import UNFAMILIAR, say, shown

COMMANDS = Path(__file__).with_name("terminal_help.txt").read_text(encoding="utf-8").rstrip()


class Terminal:
    """A conversation until the input ends. `image` is for the first question, `settings` are those of `Chat.ask`."""

    def __init__(self, chat: Chat, image: Path | None, settings: dict[str, Any]) -> None:
        self.chat, self.settings, self.last_image = chat, settings, image
        self.pending = [] if image is None else [image]  # for the next question
        self.interactive = sys.stdin.isatty()
        self.mistakes = 0  # questions and commands that failed
        self._session: PromptSession[str] | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: say(COMMANDS),
            "/image": self._image,
            "/system": self._system,
            "/settings": self._settings,
            "/reset": self._reset,
            "/export": lambda path: say(f"saved in {self.chat.save(expand(path))}", err=True),
        }

    def run(self) -> None:
        """Answer lines until the input ends: each is a question, or a command that starts with a slash."""
        for stream in (sys.stdin, sys.stdout):  # a byte that cannot be decoded or shown does not end it
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if self.interactive:
            show = "Ask about the image" if self.pending else "Show an image first: /image photo.jpg"
            say(f"{show}. /help lists the commands, exit leaves.", err=True)
            for image in self.pending:
                self._warn(image)
            self._session = prompt_session([*self._commands, "/quit"])
        while (line := self._read()) not in (None, "/quit", "/exit", "quit", "exit"):
            try:
                if line:
                    self._command(line) if line.startswith("/") else self._ask(line)
            except (UserError, OSError, RuntimeError) as error:  # out of memory is one; the chat goes on
                self.mistakes += 1
                say(shown(f"minigpt4: {error}"), err=True)

    def _read(self) -> str | None:
        """The next question or command, of one or several lines; None at the end of the input."""
        lines: list[str] = []
        try:
            while not lines or lines[-1].endswith("\\"):
                line = self._session.prompt("\n> ") if self._session else input()
                lines = [*lines[:-1], lines[-1][:-1], line] if lines else [line]
        except EOFError:
            return "\n".join(lines).strip() if lines else None
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            say("(/quit or Ctrl-D leaves)", err=True)
            return ""
        return "\n".join(lines).strip()

    def _ask(self, question: str) -> None:
        if not self.pending and not any(message.images for message in self.chat.history):
            raise UserError("show an image first, for example /image photo.jpg")
        lines = _Lines()
        try:
            if self.settings.get("num_beams", 1) > 1:  # the best beam is known at the end only
                lines.write(self.chat.ask(question, image=self.pending, **self.settings))
            else:
                for piece in self.chat.stream(question, image=self.pending, **self.settings):
                    lines.write(piece)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            say("\n(stopped; this question is forgotten)", err=True)
            return
        lines.write("\n")
        self.pending = []

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            raise UserError(f"there is no command {name}; /help lists them")
        if name in ("/image", "/export") and not argument.strip():
            raise UserError(f"{name} needs a path, for example {name} {'photo.jpg' if name == '/image' else 'chat.md'}")
        self._commands[name](argument.strip())

    def _reset(self, _: str = "") -> None:
        self.chat.reset()
        self.pending = [] if self.last_image is None else [self.last_image]

    def _image(self, path: str) -> None:
        image = expand(path)
        open_image(image)  # a broken image is reported now, not at the next question
        self.last_image = image
        self.pending.append(image)
        if self.interactive:
            self._tell(image)
            self._warn(image)

    def _warn(self, image: Path) -> None:
        """One dim line about an image that is far from what the model learnt."""
        if self.chat.model.is_unfamiliar(image):
            lines = _Lines()
            sys.stdout.write("\x1b[2m" * bool(lines.room))
            lines.write(f"{UNFAMILIAR}.")
            sys.stdout.write("\x1b[0m" * bool(lines.room))
            lines.write("\n")

    def _tell(self, image: Path) -> None:
        """Say what the model sees in an image, in its first sentence about it, outside of the conversation."""
        lines, told = _Lines(), ""
        lines.write(f"{shown(image.name)} belongs to your next question. ")
        try:
            for piece in Chat(self.chat.model, self.chat.template).stream(
                "Describe this image in detail.", image=image, do_sample=False, max_new_tokens=60
            ):
                sentence, end, _ = (told + piece).partition(". ")
                lines.write(sentence[len(told) :] + end.strip())
                told += piece
                if end:
                    break
        except KeyboardInterrupt:  # it is only a courtesy
            pass
        lines.write("\n")

    def _system(self, text: str) -> None:
        if text:
            self.chat.set_system(None if text == "default" else text)
            self._reset()
        template = self.chat.template
        before, _, after = template.system_turn.partition("{text}")
        say(template.system.removeprefix(before).removesuffix(after).replace(CUT, "") or "(no system text)")

    def _settings(self, text: str) -> None:
        self.settings = changed_settings(self.settings, text)
        decoding = Decoding.from_settings(self.settings, self.chat.model.decoding)
        values = asdict(decoding) | {"do_sample": decoding.sampling, "repetition_penalty": decoding.penalty}
        for name, value in values.items():
            unused = not decoding.sampling and name in ("temperature", "top_p", "seed")
            why = "   (not used: nothing is drawn at random)" if unused else ""
            say(f"{name}={'none' if value is None else value}{why}")


def changed_settings(settings: dict[str, Any], text: str) -> dict[str, Any]:
    """`settings` with the changes in `text`, as "temperature=0.7 seed=none". Raises UserError for what does not fit."""
    if wrong := next((part for part in text.split() if "=" not in part), None):
        raise UserError(f"{wrong!r} is not of the form name=value, for example temperature=0.7")
    asked = dict(part.split("=", 1) for part in text.split())
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
        raise UserError(explain(error)) from None
    return new | {name: getattr(read, name) for name in given}


class _Lines:
    """Writes text as it comes; on a terminal a word that comes to its edge is taken to the next line whole."""

    def __init__(self) -> None:
        self.room = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 0
        self._column, self._word = 0, ""

    def write(self, piece: str) -> None:
        if not self.room:
            say(piece, end="")
            return
        for part in re.findall(r"\n|[^\S\n]+|\S+", shown(piece, lines=True)):
            if part.isspace():
                self._word, cells = "", get_cwidth(part)
                fits = part == "\n" or self._column + cells <= self.room
                self._column = 0 if part == "\n" else self._column + cells * fits
                say(part * fits, end="")
                continue
            written, cells = get_cwidth(self._word), get_cwidth(part)
            if self._column + cells > self.room >= written + cells and self._column > written:
                sys.stdout.write(f"\x1b[{written}D\x1b[K" if written else "")
                part, self._column, cells = f"\n{self._word}{part}", 0, written + cells
            say(part, end="")
            self._column += cells
            self._word = part[1:] if part[0] == "\n" else self._word + part


def prompt_session(commands: list[str]) -> PromptSession[str]:
    """A prompt with line editing, completion of commands and paths, and a history on disk."""
    from prompt_toolkit.completion import NestedCompleter, PathCompleter, WordCompleter, merge_completers
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    paths = NestedCompleter(dict.fromkeys(("/image", "/export"), PathCompleter(expanduser=True)))
    completer = merge_completers([WordCompleter(commands, sentence=True), paths], deduplicate=True)
    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    for newline in (("escape", "enter"), ("c-j",)):
        keys.add(*newline)(lambda event: event.current_buffer.insert_text("\n"))
    history: History = InMemoryHistory()
    try:
        path = expand(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "minigpt4" / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        history = FileHistory(path)
    except (OSError, UserError) as error:
        say(f"(no history: {error})", err=True)
    return PromptSession(
        history=history, output=create_output(sys.stdout if sys.stdout.isatty() else sys.stderr), multiline=True,
        key_bindings=keys, completer=completer, complete_while_typing=False,
    )  # fmt: skip
