"""The conversation in a terminal: questions and commands from standard input, answers to standard output as they come.

Knows nothing about models: it is given a `Chat`. With input from a pipe it prints the answers only.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt4.data.images import open_image
from minigpt4.errors import UserError

if TYPE_CHECKING:
    from minigpt4.generation.chat import Chat

COMMANDS = """\
/image PATH   show another picture; it belongs to your next question
/reset        forget the conversation and start again with the last picture
/save PATH    write the conversation to a file (.md to read, .json for programs)
/help         this list
/quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""

#: What a terminal could take for commands of its own. A model's answer is text from outside.
_CONTROL = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Terminal:
    """Talks until the input ends. `picture` is shown with the first question, `settings` are those of `Chat.ask`."""

    def __init__(self, chat: Chat, picture: Path | None, settings: dict[str, Any]) -> None:
        self.chat = chat
        self.settings = settings
        self.last_picture = picture
        self.pending = [] if picture is None else [picture]  # shown, but not yet asked about
        self.interactive = sys.stdin.isatty()
        self.mistakes = 0

    def run(self) -> None:
        """One line at a time: a question, or a command that starts with a slash."""
        for stream in (sys.stdin, sys.stdout):  # what cannot be decoded or shown is no reason to end
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        if self.interactive:
            print("Ask about the picture. /help lists the commands.", file=sys.stderr)
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
                print(f"minigpt4: {error}", file=sys.stderr)

    def _read(self) -> str | None:
        if self.interactive:
            import readline  # noqa: F401  gives input() line editing and a history

            try:
                return input("\n> ").strip()
            except EOFError:
                print()
                return None
        line = sys.stdin.readline()
        return line.strip() if line else None

    def _ask(self, question: str) -> None:
        try:
            for piece in self.chat.stream(question, image=self.pending, **self.settings):
                print(piece.translate(_CONTROL), end="", flush=True)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
            print("\n(stopped; this question is forgotten)", file=sys.stderr)
            return
        print()
        self.pending = []

    def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        argument = argument.strip().strip("'\"")
        if name == "/help":
            print(COMMANDS)
        elif name == "/reset":
            self.chat.reset()
            self.pending = [] if self.last_picture is None else [self.last_picture]
        elif name in ("/image", "/save") and not argument:
            raise UserError(f"{name} needs a path, such as {name} {'photo.jpg' if name == '/image' else 'chat.md'}")
        elif name == "/image":
            open_image(argument)  # says now, not at the next question, what is wrong with it
            self.last_picture = Path(argument).expanduser()
            self.pending.append(self.last_picture)
        elif name == "/save":
            print(f"saved in {self.chat.save(argument)}", file=sys.stderr)
        else:
            raise UserError(f"there is no command {name}; /help lists them")
