"""How glibc keeps memory between forward passes.

A forward pass takes and drops activations of tens of megabytes. By default glibc maps each from the
kernel and gives it back, so every pass pays for clearing the same pages again: 50,000 page faults
and a quarter of the time of a bf16 ResNet-18 batch of 32 on two cores. And each thread gets a heap
of its own, so that memory creeps up with the number of images. One heap that keeps what it has
cures both: docs/benchmarks.md has the figures. `mallopt(3)` describes the options.
"""

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
INT_MAX = 2**31 - 1


@cache
def keep_freed_memory() -> bool:
    """Makes this process reuse freed memory; call it before threads start. Idempotent.

    Returns:
        False where nothing was changed: another C library, or `MALLOC_*` set by whoever runs this.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    wanted = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, INT_MAX))
    return all(mallopt(option, value) == 1 for option, value in wanted)
