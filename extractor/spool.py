"""Arrays that lie in a file instead of memory, for images of any size.

The file is in the folder of temporary files (`TMPDIR`), has no name and ends with the array, or
with the process. What of it has been read or written, the system may drop from memory at any time.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from io import FileIO
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import NoRoom

LARGE = 2**26  # pixels: 200 MB decoded, and 470 MB while Pillow decodes them


def spooled(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros in such a file. Raises NoRoom."""
    with spool_file(math.prod(shape) * np.dtype(dtype).itemsize) as file:
        return np.asarray(np.memmap(file, dtype, "r+", shape=shape))


def release(array: NDArray[Any]) -> None:
    """Let what was touched of a spooled array leave this process's memory; others are left."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def spool_file(size: int) -> FileIO:
    """Such a file of zeros, at its start. Raises NoRoom.

    A full disk would otherwise end the process where it touches a page that has no room.
    """
    try:
        # Without a buffer, which would not notice that somebody else reads by the descriptor.
        file = tempfile.TemporaryFile(buffering=0, prefix="patchstore-")  # noqa: SIM115  returned
    except OSError as error:
        raise _no_room(size, error) from error
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        file.close()
        raise _no_room(size, error) from error
    return file


def _no_room(size: int, error: OSError) -> NoRoom:
    folder = tempfile.tempdir or os.environ.get("TMPDIR", "the folder of temporary files")
    return NoRoom(
        error.errno,
        f"no temporary file of {size:,} bytes in {folder} ({error.strerror}); set TMPDIR to a "
        "folder on a large disk",
    )
