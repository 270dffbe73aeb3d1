"""How long something takes, the device's work included."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(action: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
