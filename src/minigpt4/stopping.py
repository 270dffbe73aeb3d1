"""Ctrl-C and SIGTERM as a wish to stop at the next safe place."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopSignals:
    """Turns the first Ctrl-C or SIGTERM into a wish to stop at the next safe place; a second one acts at once."""

    def __init__(self) -> None:
        self.received = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self._former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _receive(self, *_: object) -> None:
        self.received = True
        self.__exit__()

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came: to be called where all that was done is recorded."""
        if self.received:
            raise KeyboardInterrupt("stopped; what is done is recorded, and the same command goes on from there")
