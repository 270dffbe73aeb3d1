"""The files behind the page: pictures that visitors sent, and those that it shows them.

Clients know a file only by a token, and only the visitor to whom it was given may use it. Nothing that a client says is
ever part of a path.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.app.page.session import opened

if TYPE_CHECKING:
    from PIL import Image

#: A picture that was sent is deleted when it is so old.
KEPT_SECONDS = 7200.0
#: (files, bytes) of what one visitor and all have sent. What was sent first goes first: a question needs its pictures
#: only until it is asked, and a limit that refused new ones would let one stranger shut out everybody.
PER_VISITOR, IN_ALL = (32, 60_000_000), (512, 150_000_000)
#: Pictures as they are shown (up to 768 pixels a side): those kept, and how many tokens for them are remembered.
MAX_SHOWN, MAX_TOKENS = 256, 10_000


@dataclass(frozen=True)
class _Upload:
    path: Path
    size: int
    shown: Path
    time: float


class Uploads:
    """Pictures in `folder`. A visitor is a string that other visitors cannot guess."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent, self.pictures = folder / "uploads", folder / "pictures"
        self.sent.mkdir()
        self.pictures.mkdir()
        self._uploads: OrderedDict[tuple[str, str], _Upload] = OrderedDict()  # by visitor and token, oldest first
        self._given: OrderedDict[tuple[str, str], None] = OrderedDict()  # tokens of shown pictures, by visitor
        self._lock = threading.Lock()

    def add(self, visitor: str, data: bytes) -> str:
        """Keep an encoded picture; its token. Raises UserError if it is no picture."""
        shown = self.show(opened(data))
        path = self.sent / f"{secrets.token_hex(16)}.png"  # whatever it is: Gradio goes by the name
        with self._lock:
            path.write_bytes(data)
            self._uploads[visitor, path.name] = _Upload(path, len(data), Path(shown), time.monotonic())
            self._trim([key for key in self._uploads if key[0] == visitor], *PER_VISITOR)
            self._trim(list(self._uploads), *IN_ALL)
        return path.name

    def show(self, picture: Image.Image) -> str:
        """A file of the picture for the page, made from its pixels: what was sent is never sent back."""
        small = picture.copy()
        small.thumbnail((768, 768))
        path = self.pictures / f"{hashlib.sha256(repr(small.size).encode() + small.tobytes()).hexdigest()[:32]}.png"
        with self._lock:
            if path.exists():
                path.touch()
            else:
                small.save(path)
            # One that is still shown is made again.
            for old in sorted(self.pictures.iterdir(), key=lambda file: file.stat().st_mtime)[:-MAX_SHOWN]:
                old.unlink()
        return str(path)

    def give(self, visitor: str, token: str) -> None:
        """Let a visitor see, and ask about, a picture that the page shows them."""
        with self._lock:
            self._given[visitor, token] = None
            self._given.move_to_end((visitor, token))
            while len(self._given) > MAX_TOKENS:
                self._given.popitem(last=False)

    def sent_by(self, visitor: str, token: str) -> Path | None:
        """The file that a visitor's token stands for in a question."""
        upload = self._uploads.get((visitor, token))
        return upload.path if upload is not None else self._shown_to(visitor, token)

    def shown_to(self, visitor: str, token: str) -> Path | None:
        """The PNG, made by the page, that a visitor sees for a token."""
        upload = self._uploads.get((visitor, token))
        return upload.shown if upload is not None else self._shown_to(visitor, token)

    def _shown_to(self, visitor: str, token: str) -> Path | None:
        return self.pictures / token if (visitor, token) in self._given else None

    def forget_old(self) -> None:
        """Delete what was sent too long ago, and shown copies of that age."""
        with self._lock:
            now = time.monotonic()
            self._drop([key for key, upload in self._uploads.items() if now - upload.time > KEPT_SECONDS])
            for file in self.pictures.iterdir():
                if time.time() - file.stat().st_mtime > KEPT_SECONDS:
                    file.unlink()

    def _trim(self, keys: list[tuple[str, str]], files: int, size: int) -> None:
        used = sum(self._uploads[key].size for key in keys)
        while len(keys) > files or used > size:
            used -= self._uploads[keys[0]].size
            self._drop([keys.pop(0)])

    def _drop(self, keys: Iterable[tuple[str, str]]) -> None:
        for key in keys:
            self._uploads.pop(key).path.unlink(missing_ok=True)
