"""Carry out training runs in processes of their own and make trouble for each; prints how each process ended as JSON.

Usage: python runs_in_trouble.py RECIPE.yaml 'JSON list of troubles'. Each trouble is one process with the same recipe:
  {}                       none
  {"kill_at_file": n}      killed (-9) just before the n-th opening or renaming of a file in the output
  {"signal": s, "line": n} sent signal s once metrics.jsonl has n lines
  {"signal": s, "more": n, "wait": t} sent signal s t milliseconds after it has written n lines
  {"file_limit": n}        no file can grow beyond n bytes, as on a full disk
Ends are exit codes (0, 2 for a UserError, 130 for an interruption), or minus the signal that killed the process.
Processes are forked after the imports, which take most of the time of a tiny run.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import datasets  # noqa: F401
import matplotlib.figure  # noqa: F401

import minigpt4.generation
import minigpt4.minigpt4
import minigpt4.training.features
import minigpt4.training.loop
import minigpt4.training.report  # noqa: F401
from minigpt4.errors import UserError
from minigpt4.training.recipe import Recipe
from minigpt4.training.train import train


def kill_at_file(output: Path, count: int) -> None:
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.rename") and str(args[0]).startswith(str(output)):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(recipe: Recipe, trouble: dict[str, int]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may have been started without
    if "kill_at_file" in trouble:
        kill_at_file(recipe.output, trouble["kill_at_file"])
    if "file_limit" in trouble:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble["file_limit"], resource.RLIM_INFINITY))
    try:
        train(recipe)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        return 130
    return 0


def send_signal(pid: int, metrics: Path, trouble: dict[str, int]) -> None:
    """Send the signal at its moment, or not at all if the process has ended by then."""
    fewest = lines(metrics)  # a run that goes on drops the lines after its checkpoint
    while True:
        fewest = min(fewest, lines(metrics))
        if lines(metrics) >= (trouble["line"] if "line" in trouble else fewest + trouble["more"]):
            time.sleep(trouble.get("wait", 0) / 1000)
            break
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.001)
    os.kill(pid, trouble["signal"])  # until it is waited for, the number stays its own


def lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.is_file() else 0


def main() -> None:
    recipe = Recipe.load(sys.argv[1])
    ends = []
    for trouble in json.loads(sys.argv[2]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = child(recipe, trouble)
            finally:
                sys.stderr.flush()
                os._exit(code)
        if "signal" in trouble:
            send_signal(pid, recipe.output / "metrics.jsonl", trouble)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        if ends[-1] == 0:
            break
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
