"""Ctrl-C and SIGTERM as a wish to stop at the next safe place."""

import os
import signal
import socket
import threading
from contextlib import suppress
from typing import Any

RECORDED = "stopping once what is under way is recorded; a second Ctrl-C or SIGTERM ends the process at once"


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop at the next safe place; a second one ends the process."""

    def __init__(self, told: str = RECORDED) -> None:
        """`told` is said on stderr at the first."""
        self.received = False
        self._told = told
        self._former: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._numbers, heard = socket.socketpair()
            self._numbers.setblocking(False)
            signal.set_wakeup_fd(self._numbers.fileno(), warn_on_full_buffer=False)
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
            # Python's own handlers wait for the end of an operation in C, such as a backward pass.
            threading.Thread(target=self._act, args=(heard,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._former:
            signal.set_wakeup_fd(-1)
            self._numbers.close()
            for number, handler in self._former.items():
                signal.signal(number, handler)

    def _receive(self, *_: object) -> None:
        self.received = True

    def _act(self, heard: socket.socket) -> None:
        start, end = ("\n", "\x1b[?25h\n") if os.isatty(2) else ("", "")  # a progress bar's line, and the hidden cursor
        text = f"{start}minigpt4: {self._told}\n"
        with heard:
            while number := heard.recv(1):
                if number[0] in self._former:
                    with suppress(OSError):
                        os.write(2, text.encode())  # not by Python's stderr, whose lock may be held
                    if text == end:
                        os._exit(130)
                    text = end

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came: to be called where all that was done is recorded."""
        if self.received:
            raise KeyboardInterrupt("stopped; what is done is recorded, and the same command goes on from there")
