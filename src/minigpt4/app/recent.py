"""What was used last is kept, for a while."""

import threading
from collections.abc import Callable, Hashable, Iterable
from time import monotonic
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """Things by key: at most `count`, and none that was not used for `seconds`. `end` is given each that has to go."""

    def __init__(self, count: int, seconds: float, end: Callable[[T], object] = lambda thing: None) -> None:
        self.count, self.seconds, self.end = count, seconds, end
        self.held: dict[Hashable, tuple[float, T]] = {}  # the longest unused first
        self._lock = threading.Lock()

    def use(self, key: Hashable, new: T | None = None) -> T | None:
        """What is held for the key, or else `new`, which is held from now on."""
        now = monotonic()
        with self._lock:
            self._end([each for each, (used, _) in self.held.items() if used < now - self.seconds])
            _, thing = self.held.pop(key, (now, new))
            if thing is not None:
                self.held[key] = (now, thing)
            self._end(list(self.held)[: -self.count])
            return thing

    def drop(self, keys: Iterable[Hashable]) -> None:
        """End what is held for these keys."""
        with self._lock:
            self._end([key for key in keys if key in self.held])

    def _end(self, keys: Iterable[Hashable]) -> None:
        for key in keys:
            self.end(self.held.pop(key)[1])
