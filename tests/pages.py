"""Pages in a process of their own, as people start them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

START = "from minigpt4.cli import main; main()"


@contextlib.contextmanager
def served(*arguments: object) -> Iterator[str]:
    """The address of the page that `minigpt4 ARGUMENTS` serves; it must end on Ctrl-C, without a traceback."""
    with subprocess.Popen(
        [sys.executable, "-c", START, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, process.stderr and process.stderr.read()
        try:
            yield found.group()
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert process.returncode == 130
