"""The files behind the page. A visitor gets a file by its token; no path is built from what a client sends."""

import hashlib
import threading
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from minigpt4.app.page.session import SHOWN, opened

#: Seconds after which a file is deleted.
KEPT_SECONDS = 7200.0
#: (files, bytes) of what one visitor and all have sent. What was sent first goes first: a limit that refused new images
#: would let one stranger shut out everybody.
PER_VISITOR, IN_ALL = (32, 60_000_000), (512, 150_000_000)
#: Images as they are shown that are kept. One that a conversation still shows is made again.
MAX_SHOWN = 256


class _File(NamedTuple):
    path: Path
    size: int
    time: float


_Files = dict[tuple[str, str], _File]  # by visitor and token, oldest first


class Uploads:
    """Images in `folder`. A visitor is a string that other visitors cannot guess."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent, self.images = folder, folder / "uploads", folder / "images"
        self.sent.mkdir()
        self.images.mkdir()
        self._sent: _Files = {}
        self._shown: _Files = {}
        self._lock = threading.Lock()

    def add(self, visitor: str, data: bytes) -> str:
        """Keep an encoded image; its token. Raises UserError if it is not an image."""
        token = Path(self.show(visitor, opened(data))).name
        path = self.sent / token  # .png, whatever it is: Gradio goes by the name
        with self._lock:
            if not path.exists():  # else a question may be reading it: Gradio sends a drawing several times at once
                path.write_bytes(data)
            self._sent.pop((visitor, token), None)
            self._sent[visitor, token] = _File(path, path.stat().st_size, time.monotonic())
            self._trim(self._sent, [key for key in self._sent if key[0] == visitor], *PER_VISITOR)
            self._trim(self._sent, list(self._sent), *IN_ALL)
        return token

    def show(self, visitor: str, image: Image.Image) -> str:
        """A file of the image for the page, made from its pixels: what was sent is never sent back."""
        small = image.copy()
        small.thumbnail((SHOWN, SHOWN))
        # The same for the same image and visitor, so that a conversation is not written anew with each answer.
        content = f"{visitor} {small.size} ".encode() + small.tobytes()
        path = self.images / f"{hashlib.sha256(content).hexdigest()[:32]}.png"
        with self._lock:
            if not path.exists():
                small.save(path)
            self._shown.pop((visitor, path.name), None)
            self._shown[visitor, path.name] = _File(path, 0, time.monotonic())
            self._trim(self._shown, list(self._shown), MAX_SHOWN, 0)
        return str(path)

    def sent_by(self, visitor: str, token: str) -> Path | None:
        """The file that a visitor's token stands for in a question."""
        file = self._sent.get((visitor, token)) or self._shown.get((visitor, token))
        return file and file.path

    def shown_to(self, visitor: str, token: str) -> Path | None:
        """The PNG, made by the page, that a visitor sees for a token."""
        file = self._shown.get((visitor, token))
        return file and file.path

    def forget_old(self) -> None:
        """Delete what is too old."""
        oldest = time.monotonic() - KEPT_SECONDS
        with self._lock:
            for files in (self._sent, self._shown):
                self._drop(files, [key for key, file in files.items() if file.time < oldest])

    def _trim(self, files: _Files, keys: list[tuple[str, str]], count: int, size: int) -> None:
        used = sum(files[key].size for key in keys)
        while len(keys) > count or used > size:
            used -= files[keys[0]].size
            self._drop(files, [keys.pop(0)])

    def _drop(self, files: _Files, keys: list[tuple[str, str]]) -> None:
        """Delete files; with what was sent goes its shown copy."""
        for key in keys:
            for held in (files, self._shown):
                if (file := held.pop(key, None)) is not None:
                    file.path.unlink(missing_ok=True)
