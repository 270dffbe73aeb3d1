"""How glibc hands out memory for CPU tensors, tuned for loading a model and then for training it.

Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes

#: glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, and their values here, in bytes.
MMAP_THRESHOLD, OWN_PAGES, SHARED_PAGES = -3, 2 * 2**20, 32 * 2**20
TRIM_THRESHOLD, NEVER = -1, 2**30


def free_large_tensors_at_once() -> None:
    """Return the memory of large CPU tensors to the system as soon as they are freed: for loading and encoding.

    By default glibc raises its threshold to 32 MiB at the first large tensor; smaller tensors then leave holes that
    nothing fits in.
    """
    _set({MMAP_THRESHOLD: OWN_PAGES})


def keep_freed_memory() -> None:
    """Keep the memory of freed CPU tensors for the next ones, which every training step allocates anew.

    Getting it from the system each time takes a fifth of a small model's step.
    """
    _set({MMAP_THRESHOLD: SHARED_PAGES, TRIM_THRESHOLD: NEVER})


def _set(values: dict[int, int]) -> None:
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter, value in values.items():
            libc.mallopt(parameter, value)
