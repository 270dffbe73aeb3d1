"""Carry out one step again and again, each time in a process that is killed (-9) at its n-th statement to the ledger.

Usage: python steps_in_trouble.py STEP PROJECT DATA OUT. n grows until the step ends by itself; prints how many died.
Processes are forked after the imports, which take most of the time.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from minigpt4.curation import dataset, filters
from minigpt4.curation.describe import add_dataset
from minigpt4.curation.ledger import Ledger
from minigpt4.curation.review import ReviewDesk
from minigpt4.curation.select import select


def carry_out(step: str, ledger: Ledger, data: Path, out: Path) -> None:
    if step == "import":
        add_dataset(ledger, data)
    elif step == "filter":
        filters.filter_items(ledger, {**filters.DEFAULTS, "too_short": 18})
    elif step == "select":
        select(ledger, 3)
    elif step == "export":
        dataset.write_dataset(ledger, out, "cc_sbu_align")
    elif step == "review":
        desk = ReviewDesk(ledger, shared=0)
        while (index := desk.next("Ann")) is not None:
            desk.decide("Ann", index, desk.items[index].source.seq, "reject" if index % 2 else "accept")


def main() -> None:
    step, project, data, out = sys.argv[1], *map(Path, sys.argv[2:])
    killed = 0
    while True:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with Ledger(project, create=True) as ledger:
                    left = 3 * killed + 1

                    def count(_: object) -> None:
                        nonlocal left
                        left -= 1
                        if not left:
                            os.kill(os.getpid(), signal.SIGKILL)

                    ledger._db.set_trace_callback(count)
                    if step == "export":  # it only reads the ledger, so it is killed between files as well
                        sys.addaudithook(lambda event, args: count(args) if event in ("open", "os.rename") else None)
                    carry_out(step, ledger, data, out)
                code = 0
            finally:
                sys.stderr.flush()
                os._exit(code)
        end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if end == 0:
            break
        assert end == -signal.SIGKILL, end
        killed += 1
    print(killed)


main()
