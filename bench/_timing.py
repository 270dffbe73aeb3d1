"""How long something takes, the device's work included."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(
    action: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start
