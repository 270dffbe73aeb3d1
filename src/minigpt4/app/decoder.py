"""Strangers' images are decoded in processes of their own, which have little time and memory, and die at the limit.

The result is what `images.open_image` gives. Each image begins among the quick; one that needs more than a moment
begins anew among the slow, so that it holds up only others of its kind.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import IO, Any

from PIL import Image

from minigpt4.errors import UserError
from minigpt4.images import SENT_FORMATS, fit, open_image

#: Seconds of processor time that an image may take among the quick, and among the slow.
QUICK_SECONDS, SECONDS = 0.5, 5.0
#: Seconds by the clock, if the processors are busy with other things.
CLOCK_SECONDS = 10.0
#: Bytes that a decoder may allocate: enough for 64 million pixels, but not in every format.
MEMORY = 1 << 30
#: What a decoder runs. It imports what this process would, and nothing from the directory that it is started in.
_CODE = "import sys; sys.path[:] = {path!r}; from minigpt4.app.decoder import work; work()"
#: The parts of NumPy that calculate in threads are not used here; each thread would count as memory.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class _SlowError(Exception):
    """The image took more time than it may."""


@dataclass(frozen=True, eq=False)
class _Job:
    """An encoded image, what `open_image` and `fit` take with it, and who waits for it."""

    data: bytes
    max_pixels: int
    size: tuple[int, int, int] | None
    image: Future[Image.Image] = field(default_factory=Future)

    def settle(self, image: Image.Image | None = None, error: Exception | None = None) -> None:
        with contextlib.suppress(InvalidStateError):  # nobody waits any more
            if image is not None:
                self.image.set_result(image)
            else:
                self.image.set_exception(error)


class Decoder:
    """Opens images in `quick` processes, and the slow ones in one more; first come, first served."""

    def __init__(self, quick: int = 2) -> None:
        self._quick: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._slow: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._lanes = [self._quick] * quick + [self._slow]
        self._processes: list[_Process] = []
        self._threads = [
            threading.Thread(target=self._run, args=[lane], name="minigpt4-decode", daemon=True) for lane in self._lanes
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, data: bytes, max_pixels: int, size: tuple[int, int, int] | None = None) -> Future[Image.Image]:
        """The image to be, brought to `size` by `fit` if there is one. It fails with a UserError; cancel it at will."""
        job = _Job(data, max_pixels, size)
        self._quick.put(job)
        return job.image

    def open(self, data: bytes, max_pixels: int, seconds: float = 60.0) -> Image.Image:
        """What `open_image` gives for the bytes. Raises UserError, also if it isn't there after so many seconds."""
        image = self.submit(data, max_pixels)
        try:
            return image.result(seconds)
        except (TimeoutError, FutureTimeoutError):
            image.cancel()
            raise UserError("uploaded image: too many images are being opened; try again later") from None

    def close(self) -> None:
        """End the processes; an image that waits or is being opened fails."""
        self._closed = True
        for lane in self._lanes:
            lane.put(None)
        for process in list(self._processes):
            process.kill()
        for thread in self._threads:
            thread.join()

    def _run(self, lane: queue.SimpleQueue[_Job | None]) -> None:
        process = _Process(QUICK_SECONDS if lane is self._quick else SECONDS)  # ends with the thread that starts it
        self._processes.append(process)
        while (job := lane.get()) is not None:
            if job.image.cancelled():
                continue
            try:
                if self._closed:
                    raise UserError("uploaded image: the server ends")
                job.settle(process.open(job))
            except _SlowError:
                if lane is self._quick:
                    self._slow.put(job)
                else:
                    job.settle(
                        error=UserError(f"uploaded image: decoding it takes more than {SECONDS:g} s; save it simpler")
                    )
            except Exception as error:
                job.settle(error=error)
        process.kill()


class _Process:
    """A process that decodes one image after the other, and another in its place when it has died."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CODE.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT}, start_new_session=True,  # Ctrl-C is for the server
        )  # fmt: skip

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def open(self, job: _Job) -> Image.Image:
        """The image. Raises UserError for a bad one, and _SlowError."""
        if self._process.poll() is not None:  # killed by somebody while it had nothing to do
            self._start()
        end = time.monotonic() + (CLOCK_SECONDS if hasattr(signal, "setitimer") else self.seconds)
        alarm = threading.Timer(end - time.monotonic(), self._process.kill)
        alarm.start()
        try:
            found = self._exchange(job)
        except (OSError, ValueError):  # it died before its reply, or within
            self.kill()
            died = self._process.returncode
            self._start()
            if died == -getattr(signal, "SIGPROF", 0) or time.monotonic() >= end:
                raise _SlowError from None
            raise UserError("uploaded image: the process that decoded it died; try another one") from None
        finally:
            alarm.cancel()
        if isinstance(found, str):
            raise UserError(found)
        return found

    def _exchange(self, job: _Job) -> Image.Image | str:
        """The image, or what is wrong with it."""
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        head = {"bytes": len(job.data), "max_pixels": job.max_pixels, "size": job.size, "seconds": self.seconds}
        _write(sink, head, job.data)
        reply = json.loads(source.readline())
        if "error" in reply:
            return str(reply["error"])
        width, height = reply["size"]
        return Image.frombytes("RGB", (width, height), source.read(width * height * 3))


def work() -> None:
    """Decode what comes in, until nothing more can come: the whole life of a decoding process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: if the server dies while an image is decoded
    with contextlib.suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        data = sys.stdin.buffer.read(job["bytes"])
        _allow(job["seconds"])
        reply, pixels = _decoded(data, job["max_pixels"], job["size"])
        _allow(0)
        _write(sys.stdout.buffer, reply, pixels)


def _decoded(data: bytes, max_pixels: int, size: tuple[int, int, int] | None) -> tuple[dict[str, Any], bytes]:
    try:
        image = open_image(data, max_pixels, SENT_FORMATS)
        image = image if size is None else fit(image, *size)
        return {"size": image.size}, image.tobytes()
    except UserError as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": "uploaded image: decoding it takes too much memory; make it smaller first"}, b""


def _allow(seconds: float) -> None:
    """Let the system end this process after so much processor time, whatever it does; 0: no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _write(pipe: IO[bytes], head: dict[str, Any], data: bytes) -> None:
    pipe.write(json.dumps(head).encode() + b"\n")
    pipe.write(data)
    pipe.flush()
