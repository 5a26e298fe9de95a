"""A picture's file by its URI: on this machine, or an object of a store that fsspec knows.

fsspec (https://filesystem-spec.readthedocs.io) brings S3, Google Cloud Storage, Azure and others,
each by a package of its own, which reads its credentials from the environment.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import one_line
from .uris import is_remote, path_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from fsspec import AbstractFileSystem

# By which of what it lists a store tells that an object has changed, the surest first.
_MARKS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class FileStatus:
    """What a file is like without opening it. `mark` changes whenever its content may have."""

    size_bytes: int
    mark: str


def object_store(uri: str) -> tuple[AbstractFileSystem, str]:
    """The store of a remote URI, and what the object is called in it.

    Raises OSError: there is no such store, or its package is not installed.
    """
    import fsspec

    if "::" in uri:
        raise OSError(errno.ENOTSUP, "a chain of stores is not read; give one of them")
    with storage_errors():
        # A listing that is kept would hide from the next scan what has changed.
        store, path = fsspec.url_to_fs(uri, use_listings_cache=False)
        return store, str(path)


@contextmanager
def open_file(uri: str) -> Iterator[BufferedReader[Any]]:
    """A file, to be read from its start. Raises OSError."""
    with _open_object(uri) if is_remote(uri) else _open_local(path_of(uri)) as file:
        yield file


def _open_local(path: Path) -> BufferedReader[Any]:
    # To open a pipe would wait for somebody who writes, and a device may have no end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOTSUP, "not a regular file")
    return open(descriptor, "rb")  # noqa: PTH123  a descriptor has no path


def _open_object(uri: str) -> BufferedReader[Any]:
    store, path = object_store(uri)
    with storage_errors():
        return BufferedReader(_Object(store.open(path, "rb")))


class _Object(RawIOBase):
    """An open object; whatever its package throws comes as OSError."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        with storage_errors():
            content = self._file.read(len(view))
        view[: len(content)] = content
        return len(content)

    def readall(self) -> bytes:
        with storage_errors():
            return self._file.read()

    def close(self) -> None:
        self._file.close()
        super().close()


def file_status(uri: str) -> FileStatus:
    """Size and mark of a file. Raises OSError."""
    if not is_remote(uri):
        return status_of(path_of(uri).stat())
    with storage_errors():
        store, path = object_store(uri)
        return object_status(store.info(path))


def status_of(found: os.stat_result) -> FileStatus:
    """Of a local file."""
    # The inode's change time cannot be set back by copying with preserved times, and its number
    # tells files apart whose folders, or a link to them, have changed places.
    times = f"{found.st_mtime_ns}-{found.st_ctime_ns}"
    return FileStatus(found.st_size, f"{times}-{found.st_size}-{found.st_ino}")


def object_status(info: Mapping[str, Any]) -> FileStatus:
    """Of an object, as its store lists it. Raises OSError where that does not tell of changes."""
    size = int(info.get("size") or 0)
    for key in _MARKS:
        if value := info.get(key):
            return FileStatus(size, f"{value}-{size}".replace('"', ""))
    raise OSError(errno.ENOTSUP, "its store does not tell when an object was changed")


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns whatever the packages of stores throw into OSErrors that say why."""
    try:
        yield
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            # As of a web server that cannot be reached: what is in it is not gone.
            raise OSError(errno.EIO, one_line(cause)) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise
        raise OSError(errno.EIO, one_line(error)) from error
