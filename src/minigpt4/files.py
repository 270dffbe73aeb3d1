"""Paths as people write them, and files and directories that appear whole or not at all, also after a kill."""

import codecs
import errno
import glob
import math
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePath
from typing import IO
from urllib.parse import unquote

from minigpt4.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
#: What systems and programs leave in folders and archives, besides hidden files: copies, thumbnails, rubbish.
_LEFT_BY_SYSTEMS = {
    "__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found", "thumbs.db",
    "ehthumbs.db", "desktop.ini", "system volume information", "__pycache__", "icon\r", "cvs",
}  # fmt: skip
_DRIVES = Path("/mnt")  # where WSL mounts the drives of Windows
_UNFINISHED = (".part", ".partial", ".crdownload", ".download", ".tmp", ".temp", ".bak", ".swp", ".orig", "~")


def is_leftover(name: str | PurePath) -> bool:
    """Whether a name in a folder or an archive, or a part of it, is of what systems leave there: never data."""
    return any(
        part.startswith((".", "~$")) or part in _LEFT_BY_SYSTEMS or part.endswith(_UNFINISHED)
        for part in map(str.lower, PurePath(name).parts)
        if part != ".."
    )


def walk(folder: str | Path) -> list[Path]:
    """All regular files below a folder, by name, behind links too, each once, without leftovers. Raises UserError."""
    folder = expand(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory; give the path of a folder")
    found, real, links, seen = [], [folder], list[Path](), set[tuple[int, int]]()
    while real or links:
        place = (real or links).pop(0)
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if is_leftover(entry.name):
                        continue
                    if entry.is_dir():
                        (links if entry.is_symlink() else real).append(place / entry.name)
                    elif entry.is_file():
                        found.append(place / entry.name)
        except OSError as error:
            raise UserError(f"{place}: cannot be read ({error.strerror}); mend that, or take it away") from None
    return sorted(found)


def find_files(path: Path, remedy: str = "") -> tuple[list[Path], Path]:
    """The files of a pattern (`{00..12}.tar`, `*`, `?`) or the one file, and their folder. Raises UserError."""
    if path.is_file():
        return [path], path.parent
    fixed = next((i for i, part in enumerate(path.parts) if set(part) & set("*?") or _RANGE.search(part)), None)
    if fixed is None:
        raise UserError(f"{path}: no such file or directory, and no file fits it as a pattern{remedy}")
    root = Path(*path.parts[:fixed])
    if numbers := _RANGE.search(str(path)):
        first, last = numbers.groups()
        names = [_RANGE.sub(f"{n:0{len(first)}}", str(path), count=1) for n in range(int(first), int(last) + 1)]
        missing = [name for name in names if not Path(name).is_file()]
        if not names:
            raise UserError(f"{path}: the range is empty; write the smaller number first")
        if missing:
            listed = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise UserError(f"{path}: {len(missing)} of {len(names)} shards are missing: {listed}")
        return [Path(name) for name in names], root
    found = sorted(file for file in root.glob(str(PurePath(*path.parts[fixed:]))) if file.is_file())
    found = [file for file in found if not is_leftover(file.relative_to(root))]
    if not found:
        raise UserError(f"{path}: the pattern matches no file")
    return found, root


def expand(path: str | Path, *, variables: bool = True) -> Path:
    r"""The path that people, shells, terminals and other systems write; of several readings the first that exists.

    `~/a.jpg`, `$DATA/a.jpg`, `"a b.jpg"`, `a\ b.jpg`, `file:///a%20b.jpg`, `folder\a.jpg`; in WSL `C:\a.jpg` too.
    Without `variables` a `$` stays: a stranger's table learns nothing of this machine's environment.

    Raises UserError if no home directory is known for `~`.
    """
    text = str(path)
    if os.path.lexists(text):
        return Path(text)
    readings = [text.strip().strip("'\"").replace("\\", "/")]
    with suppress(ValueError):  # a quote without its second one
        escaped = re.search(r"""\\[\s'"]""", text)  # with other signs a backslash is rather a separator
        readings.insert(0 if escaped else 1, " ".join(shlex.split(text)))
    local = [_here(os.path.expandvars(reading) if variables else reading) for reading in readings]
    try:
        paths = [Path(reading).expanduser() for reading in local]
    except RuntimeError:
        raise UserError(f"{path}: no home directory is known for ~; give the whole path") from None
    return next(filter(os.path.lexists, paths), paths[0])


def _here(text: str) -> str:
    """This system's path for a file:// URL, and in WSL for a path of Windows."""
    if text.startswith("file:/"):
        text = unquote(re.sub("^file:(//localhost)?/*(?=/)", "", text))
    text = re.sub(r"^//?wsl(\$|\.localhost)/[^/]+", "", text)
    if drive := re.match("/?([A-Za-z]):/", text):
        mounted = _DRIVES / drive[1].lower()
        return str(mounted / text[drive.end() :]) if mounted.is_dir() else text
    return text


def encoding_of(start: bytes) -> str:
    """UTF-16 if the text's first bytes are its mark, else UTF-8."""
    return "utf-16" if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def decode_text(data: bytes, name: str) -> str:
    """Text from outside: UTF-8 with or without a mark, or UTF-16 with one. Raises UserError that names the line."""
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        there = " ".join(data[max(0, error.start - 12) : error.start + 12].decode("cp1252", "replace").split())
        guess = f"as cp1252 it reads {there!r}" if encoding == "utf-8-sig" else "it is cut off"
        line = data.count(b"\n", 0, error.start) + 1
        where = f"{name}, line {line}" if b"\n" in data.strip() else name
        raise UserError(f"{where}: is not UTF-8 ({guess}); save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{name}: holds zero bytes (UTF-16 without a mark?); save it as UTF-8")
    return text


class TooLargeError(UserError):
    """A file has more bytes than are read of its kind."""


def read_file(path: str | Path, largest: int, what: str = "a file") -> bytes:
    """The bytes of a regular file: no device, no pipe. Raises UserError, and TooLargeError for more than `largest`."""
    path = expand(path, variables=isinstance(path, str))  # a Path may come from a stranger's table
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                data = file.read(min(status.st_size, largest) + 1)
    except (FileNotFoundError, ValueError):  # a name with a NUL byte too
        raise UserError(f"{path}: no such file; give the path of {what}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise UserError(f"{path}: is {kind}; give the path of {what}")
    if len(data) > largest:
        raise TooLargeError(f"{path}: has more than the {largest:,} bytes that are read of {what}")
    return data


@contextmanager
def new_directory(path: str | Path, *, overwrite: bool = False, marker: str) -> Iterator[Path]:
    """A temporary directory to write in, which becomes `path` when the block ends well and vanishes when it does not.

    What a killed process left beside `path` is taken away first. Files get the permissions of the umask.

    Raises UserError if `path` exists and is not empty, unless `overwrite` is set and it holds the file `marker`, that
    is, unless it is an earlier one of the same sort: nothing else is ever deleted.
    """
    path = expand(path)
    _clear_up(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a directory to write to")
    if path.is_dir() and (names := sorted(inside.name for inside in path.iterdir())):
        there = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
        known = (path / marker).is_file()
        if not known and overwrite:
            raise UserError(f"{path}: holds no {marker}, but {there}; it is not overwritten, so give another directory")
        if not overwrite:
            lost = "--overwrite (in Python overwrite=True) replaces all of that, or " if known else ""
            raise UserError(f"{path}: exists and is not empty ({there}); {lost}give another directory")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            inside = _own_directory(path, stack) / "new"
            inside.mkdir()
            yield inside
            for file in inside.rglob("*"):  # safetensors writes its files for their owner alone
                if file.is_file():
                    file.chmod(inside.stat().st_mode & 0o666)
            if path.exists():
                path.rename(inside.with_name("old"))
            inside.rename(path)
        except Exception as error:
            # safetensors wraps the operating system's error in its own exception
            if isinstance(error, OSError) or "os error" in str(error):
                raise UserError(f"{path}: cannot be written ({error}); nothing was changed") from None
            raise


def _own_directory(path: Path, stack: ExitStack) -> Path:
    """A new directory beside `path`, locked and there until `stack` is closed."""
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        lock = _lock(temporary)
        if lock is None or temporary.exists():  # else another process took it for a leftover before it was locked
            break
        os.close(lock)
    if lock is not None:
        stack.callback(os.close, lock)
    stack.callback(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def _clear_up(path: Path) -> None:
    """Take away the temporary directories of killed processes, and put back what such a one had moved from `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with suppress(OSError):  # another process may be clearing up the same
            made_here = left.is_dir() and {inner.name for inner in left.iterdir()} <= {"new", "old"}
            if not made_here or (lock := _lock(left)) is None:
                continue
            try:
                if not path.exists() and (left / "old").is_dir():
                    (left / "old").rename(path)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(directory: Path) -> int | None:
    """Lock a directory until the returned descriptor is closed; None if another process has it, or without locks."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # it is gone, or this is Windows
        return None
    with suppress(OSError):
        if _locked(descriptor):
            return descriptor
    os.close(descriptor)
    return None


def _locked(file: int | IO[str]) -> bool:
    """Take the lock on an open file or directory, or keep it; False if another process has it."""
    import fcntl  # not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def failed_write_is_a_user_error(path: str | Path) -> Iterator[None]:
    """Turns what the system says while `path` is written (no space left, read-only, taken away) into a UserError."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        told = f"cannot be written ({(error.strerror or str(error)).lower()}); what was saved before is intact"
        mend = "free some space" if full else "make it writable"
        raise UserError(f"{path}: {told}, so {mend} and run the same command again") from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` aside, flush it, and rename it to `path`. Raises UserError; a former file is then intact."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with failed_write_is_a_user_error(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


#: A process that was killed leaves its data readers for about a second, and with them its locks.
ORPHANS_SECONDS = 3.0


@contextmanager
def only_process(directory: Path, work: str, *, wait: bool = False) -> Iterator[None]:
    """Keeps a second process out of `work` in `directory` for the block; it gets a UserError, unless it may `wait`."""
    if os.name == "nt":  # nothing keeps it out there
        yield
        return
    path = directory / f".{work}.lock"
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    with file:
        deadline = time.monotonic() + (math.inf if wait else ORPHANS_SECONDS)
        while not _locked(file) and time.monotonic() < deadline:
            time.sleep(0.1)
        if not _locked(file):
            file.seek(0)
            busy = f"process {file.read().strip() or '?'} is at work on {work} here"
            raise UserError(f"{directory}: {busy}; when it has ended, run the same command again")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
