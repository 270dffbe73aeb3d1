"""The command line in processes of its own, which fork from one that has read what commands read.

Importing torch and transformers takes most of the time of a short command. Here one process does it once, and each
command is a fork of it: with its own memory, arguments, folder and streams.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

START = "from minigpt4.cli import main; main()"


def run(*arguments: object, stdin: str = "", cwd: Any = None, timeout: float = 600, **more: Any) -> Any:
    """What `minigpt4 ARGUMENTS` does, as `subprocess.run` returns it with text.

    With an environment of its own (`env`) or other settings of `subprocess.run` it is a new process, not a fork.
    """
    command = [sys.executable, "-c", START, *map(str, arguments)]
    if more or threading.active_count() > 50:
        return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, text=True, timeout=timeout, **more)
    pipes = [os.pipe() for _ in range(3)]
    (child_in, to_child), (from_child, child_out), (errors_from_child, child_errors) = pipes
    server = _server()
    request = {"arguments": [str(argument) for argument in arguments], "cwd": str(cwd or Path.cwd())}
    request["environment"] = dict(os.environ)
    socket.send_fds(server, [json.dumps(request).encode()], [child_in, child_out, child_errors])
    for descriptor in (child_in, child_out, child_errors):
        os.close(descriptor)
    pid = int.from_bytes(server.recv(8), "big")
    said: dict[int, bytes] = {}

    def read(descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as stream:
            said[descriptor] = stream.read()

    readers = [threading.Thread(target=read, args=(end,), daemon=True) for end in (from_child, errors_from_child)]
    for reader in readers:
        reader.start()
    with contextlib.suppress(BrokenPipeError), os.fdopen(to_child, "w") as stream:
        stream.write(stdin)
    server.settimeout(timeout)
    try:
        code = int.from_bytes(server.recv(8), "big", signed=True)
    except TimeoutError:
        os.kill(pid, 9)
        server.settimeout(None)
        server.recv(8)
        raise subprocess.TimeoutExpired(command, timeout) from None
    finally:
        server.settimeout(None)
    for reader in readers:
        reader.join(10)
    out, errors = (said.get(end, b"").decode() for end in (from_child, errors_from_child))
    return subprocess.CompletedProcess(command, code, out, errors)


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
    )
    theirs.close()
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork for each request until the other end is closed."""
    import minigpt4.cli
    import minigpt4.minigpt4  # noqa: F401

    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 2**20, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            _become(json.loads(message), descriptors)
        requests.send(pid.to_bytes(8, "big"))
        for descriptor in descriptors:
            os.close(descriptor)
        status = os.waitpid(pid, 0)[1]
        requests.send(os.waitstatus_to_exitcode(status).to_bytes(8, "big", signed=True))


def _become(request: dict[str, Any], descriptors: array.array[int]) -> None:
    """Run a command with the streams of the one who asked for it, and end."""
    from minigpt4.cli import main

    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    # Made anew, for streams remember whether what they were opened on is a pipe.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = ["minigpt4", *request["arguments"]]
    code: Any = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
