"""Strangers' images are decoded in processes with little time and memory; slow images hold up only each other."""

import contextlib
import ctypes
import json
import os
import queue
import resource
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
from minigpt4.images import SENT_FORMATS, Size, fit, open_image

#: Seconds of processor time that an image may take among the quick, and among the slow.
QUICK_SECONDS, SECONDS = 0.5, 5.0
CLOCK_SECONDS = 10.0  # by the clock, if the processors are busy with other things
MEMORY = 1 << 30  # bytes that a decoder may allocate: enough for 64 million pixels, but not in every format
#: What a decoder runs. It imports what this process would, and nothing from the directory that it is started in.
_CODE = "import sys; sys.path[:] = {path!r}; from minigpt4.app.decoder import work; work()"
#: The parts of NumPy that calculate in threads are not used here; each thread would count as memory.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, eq=False)
class _Job:
    """An encoded image, what `open_image` and `fit` take with it, and what it will be."""

    data: bytes
    max_pixels: int
    size: Size | None
    image: Future[Image.Image] = field(default_factory=Future)


_Jobs = queue.SimpleQueue[_Job | None]


class Decoder:
    """Opens images in two quick processes, and the slow ones in one more; first come, first served."""

    def __init__(self) -> None:
        self._jobs: _Jobs = queue.SimpleQueue()
        slow: _Jobs = queue.SimpleQueue()
        quick = [_Worker(self._jobs, QUICK_SECONDS, slow) for _ in range(2)]
        self._workers = [*quick, _Worker(slow, SECONDS, None)]

    def submit(self, data: bytes, max_pixels: int, size: Size | None = None) -> Future[Image.Image]:
        """The image to be, brought to `size` by `fit` if there is one. It fails with a UserError; cancel it at will."""
        job = _Job(data, max_pixels, size)
        self._jobs.put(job)
        return job.image

    def open(self, data: bytes, max_pixels: int, seconds: float = 60.0) -> Image.Image:
        """What `open_image` gives for the bytes. Raises UserError, also if it isn't there after so many seconds."""
        image = self.submit(data, max_pixels)
        try:
            return image.result(seconds)
        except FutureTimeoutError:
            image.cancel()
            raise UserError("too many images are being opened; try again later") from None

    def close(self) -> None:
        """End the processes; an image that waits or is being opened fails."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.join()


class _Worker(threading.Thread):
    """Has a process decode images, each within `seconds`: else it goes on to `slower`, or is refused without that."""

    def __init__(self, jobs: _Jobs, seconds: float, slower: _Jobs | None) -> None:
        super().__init__(name="minigpt4-decode", daemon=True)
        self.jobs, self.seconds, self.slower = jobs, seconds, slower
        self._process: Any = None
        self._ending = False
        self.start()

    def end(self) -> None:
        self._ending = True
        self.jobs.put(None)
        if self._process is not None:
            self._process.kill()

    def run(self) -> None:
        self._process = _started()  # here, because it ends with the thread that starts it
        while (job := self.jobs.get()) is not None:
            if job.image.cancelled():
                continue
            try:
                found = "the server ends" if self._ending else self._open(job)
            except OSError as error:
                found = f"no process can be started to decode it ({error.strerror})"
            if found is None and self.slower is not None and not self._ending:
                self.slower.put(job)
                continue
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                if isinstance(found, Image.Image):
                    job.image.set_result(found)
                else:
                    late = f"decoding it takes more than {SECONDS:g} s; save it simpler"
                    job.image.set_exception(UserError(found or late))
        self._process.kill()
        self._process.wait()

    def _open(self, job: _Job) -> Image.Image | str | None:
        """The image, what is wrong with it, or None if it took too long."""
        if self._process.poll() is not None:  # killed by somebody while it had nothing to do
            self._process = _started()
        end = time.monotonic() + CLOCK_SECONDS
        alarm = threading.Timer(CLOCK_SECONDS, self._process.kill)
        alarm.start()
        try:
            limits = {"max_pixels": job.max_pixels, "size": job.size, "seconds": self.seconds}
            _write(self._process.stdin, {"bytes": len(job.data), **limits}, job.data)
            reply = json.loads(self._process.stdout.readline())
            if "error" in reply:
                return str(reply["error"])
            width, height = reply["size"]
            return Image.frombytes("RGB", (width, height), self._process.stdout.read(width * height * 3))
        except (OSError, ValueError):  # it died before its reply, or within
            self._process.kill()
            died = self._process.wait()
            self._process = _started()
            late = died == -signal.SIGPROF or time.monotonic() >= end
            return None if late else "the process that decoded it died; try another one"
        finally:
            alarm.cancel()


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CODE.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT}, start_new_session=True,  # Ctrl-C is for the server
    )  # fmt: skip


def work() -> None:
    """Decode what comes in, until nothing more can come: the whole life of a decoding process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: if the server dies while an image is decoded
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    while line := sys.stdin.buffer.readline():
        job = json.loads(line)
        data = sys.stdin.buffer.read(job["bytes"])
        # The system ends this process after so much processor time, whatever it does.
        signal.setitimer(signal.ITIMER_PROF, job["seconds"])
        reply, pixels = _decoded(data, job["max_pixels"], job["size"])
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(sys.stdout.buffer, reply, pixels)


def _decoded(data: bytes, max_pixels: int, size: Size | None) -> tuple[dict[str, Any], bytes]:
    try:
        image = open_image(data, max_pixels, SENT_FORMATS)
        image = image if size is None else fit(image, *size)
        return {"size": image.size}, image.tobytes()
    except UserError as error:
        return {"error": str(error).removeprefix("uploaded image: ")}, b""
    except MemoryError:
        return {"error": "decoding it takes too much memory; make it smaller first"}, b""


def _write(pipe: IO[bytes], head: dict[str, Any], data: bytes) -> None:
    pipe.write(json.dumps(head).encode() + b"\n")
    pipe.write(data)
    pipe.flush()
