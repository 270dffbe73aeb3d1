"""An endpoint that runs in a process of its own (`endpoint_server.py`), as tests see it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Server:
    """A running endpoint: its `url`, and the requests that it has had."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self._log = url, log

    @property
    def requests(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []
