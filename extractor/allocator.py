"""How glibc keeps memory between forward passes.

A forward pass takes and drops activations of tens of megabytes. By default glibc maps each from the
kernel and gives it back, so every pass pays for clearing the same pages again: 50,000 page faults
and a quarter of the time of a bf16 ResNet-18 batch of 32 on two cores. And each thread gets a heap
of its own, so that memory creeps up with the number of images. One heap that keeps what it has
cures both: docs/benchmarks.md has the figures. `mallopt(3)` describes the options.

Its pages may be large ones (`madvise(2)`), which the processor finds sooner: a pass of few patches
reads all weights for them. Batches of many are slower by it.
"""

import ctypes
import mmap
import os
from functools import cache

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
M_ARENA_MAX = -8
INT_MAX = 2**31 - 1

_LARGE_PAGES = 2**30  # bytes of the heap that may lie in them; what nobody uses costs nothing
_LARGE_PAGE = 2**21


@cache
def keep_freed_memory(*, large_pages: bool = False) -> bool:
    """Makes this process reuse freed memory; call it before threads start. Idempotent.

    Args:
        large_pages: for passes of few patches, where the kernel has such pages to give.

    Returns:
        False where nothing was changed: another C library, or `MALLOC_*` set by whoever runs this.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc
        return False
    wanted = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, INT_MAX))
    kept = all(libc.mallopt(option, value) == 1 for option, value in wanted)
    if kept and large_pages:
        _take_large_pages(libc)
    return kept


def _take_large_pages(libc: ctypes.CDLL) -> None:
    """Grow the heap, which stays as large from here on: `madvise` is about what is there.

    glibc's own way, `glibc.malloc.hugetlb`, has to be set before the process starts.
    """
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = libc.malloc(_LARGE_PAGES)
    if begin is None:  # a limit on the process's memory
        return
    first = -(-begin // _LARGE_PAGE) * _LARGE_PAGE
    libc.madvise(first, begin + _LARGE_PAGES - first, mmap.MADV_HUGEPAGE)
    libc.free(begin)
