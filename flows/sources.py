"""Where images come from. A source lists its files and reads one by its URI."""

import mimetypes
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader
from operator import itemgetter
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from db.ledger import UNREAD
from extractor.files import (
    object_status,
    object_store,
    open_file,
    status_of,
    storage_errors,
)
from extractor.images import Content, image_suffixes, read_content
from extractor.uris import absolute, is_remote, path_of, uri_of

from .errors import SourceError
from .settings import FlowSettings

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Of cameras; no table of types has them.
RAW = {".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"}
# How the formats begin that archives keep without a suffix: JPEG, PNG, GIF, TIFF, WebP, BMP.
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|II\*\0|MM\0\*|RIFF....WEBP|BM....\0\0\0\0", re.DOTALL
)
MAGIC_BYTES = 12
IN_A_ROW = 3  # unreadable files before the source itself is in doubt: each may take minutes

_EMPTY_PART = f"{UNREAD}what is below a name with an empty part, //, is not read; rename it"
_FOR_GOOD = " (one that was ingested and is gone for good: patchstore forget)"


@dataclass(frozen=True)
class FoundFile:
    """A file that looks like an image. `mark` changes whenever its content may have changed.

    A `doubtful` one has no suffix and cannot be opened: an image only where it was one before.
    """

    uri: str
    size_bytes: int
    mark: str
    error: str | None = None
    doubtful: bool = False


class Source(ABC):
    """A place with images.

    Attributes:
        root: by which the store knows it: a folder's absolute path, or a store's URL.
        readers: how many of its files are best read at a time.
        gone: there is nothing of that name any more.
        others: files that are no images, hidden ones aside, counted while listing.
        unlisted: folders that could not be listed, with the reason; `scan` adds an emptied source.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.readers = 1
        self.gone = False
        self.others = 0
        self.unlisted: list[str] = []

    def files(self) -> Iterator[FoundFile]:
        """Every image file, in a stable order, without opening any that has a suffix.

        Hidden files and folders are left out.
        """
        self.others = 0
        self.unlisted = []
        return iter(()) if self.gone else self._walk()

    @abstractmethod
    def check(self) -> None:
        """Raises SourceError unless it is there and can be listed at this moment."""

    @abstractmethod
    def _walk(self) -> Iterator[FoundFile]: ...

    def open(self, uri: str) -> AbstractContextManager[BufferedReader]:
        """A file, to be read from its start. Raises OSError."""
        return open_file(uri)

    def read(self, uri: str, max_pixels: int) -> Content:
        """The bytes of a file. Raises OSError; ImageTooLarge, as `read_content`."""
        with self.open(uri) as file:
            return read_content(file, max_pixels=max_pixels)


class Doubt:
    """Asks a source whether it is still there when some of its files in a row cannot be read."""

    def __init__(self, source: Source) -> None:
        """No file was read yet."""
        self._source = source
        self._in_a_row = 0

    def saw(self, *, unreadable: bool) -> None:
        """Counts a file. Raises SourceError where it is the source that does not answer."""
        self._in_a_row = self._in_a_row + 1 if unreadable else 0
        if self._in_a_row == IN_A_ROW:
            self._in_a_row = 0
            self._source.check()


def source_at(place: str | Path, *, may_be_gone: bool = False) -> Source:
    """The source at a path or a URL. Raises SourceError unless it is one that can be listed.

    One that does not exist is as good as an empty one where it `may_be_gone`.
    """
    if not str(place).strip():
        raise SourceError("the name of the folder with images is empty")
    kind = StoreSource if is_remote(str(place)) else FolderSource
    return kind(str(place), may_be_gone=may_be_gone)


def root_of(place: str | Path) -> str:
    """By which name the store knows a source. Raises SourceError for a store that is none."""
    if not is_remote(str(place)):
        return uri_of(absolute(path_of(str(place))))
    store, path = _store_of(str(place))
    return str(store.unstrip_protocol(path))


class FolderSource(Source):
    """A folder and everything below it: links to files are followed, links to folders are not."""

    def __init__(self, folder: str | Path, *, may_be_gone: bool = False) -> None:
        """See `source_at`."""
        super().__init__(root_of(folder))
        self._name = folder
        self._path = path_of(self.root)
        self.gone = may_be_gone and not self._path.exists()
        if not self.gone:
            self.check()

    def check(self) -> None:
        """See `Source.check`."""
        name, path = self._name, self._path
        if not path.exists():
            raise SourceError(f"{name} does not exist; expected a folder with images{_FOR_GOOD}")
        if not path.is_dir():
            raise SourceError(f"{name} is a file; give the folder that holds it")
        try:
            os.scandir(path).close()
        except OSError as error:
            raise SourceError(f"{name} cannot be listed: {error.strerror}") from error

    def _walk(self) -> Iterator[FoundFile]:
        for folder, subfolders, names in os.walk(self._path, onerror=self._note_unlisted):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            # A set, for a file that is replaced meanwhile may be listed twice (POSIX, readdir).
            for name in sorted({name for name in names if not name.startswith(".")}):
                path = Path(folder, name)
                try:
                    if not looks_like_image(path):
                        self.others += 1
                    else:
                        yield _found(path)
                except OSError as error:
                    yield _unreadable(uri_of(path), error, doubtful=True)

    def _note_unlisted(self, error: OSError) -> None:
        if isinstance(error, FileNotFoundError) and Path(error.filename) != self._path:
            return  # removed since its parent was listed: what was in it has vanished
        self.unlisted.append(f"{uri_of(Path(error.filename))}: {error.strerror}")


class StoreSource(Source):
    """What begins with a URL in an object store, by fsspec: `s3://bucket/photos`.

    An object without a suffix costs a request in every scan, for its first bytes tell whether it is
    an image.
    """

    def __init__(self, url: str, *, may_be_gone: bool = False) -> None:
        """See `source_at`."""
        self._store, self._path = _store_of(url)
        if not self._path.strip("/"):
            raise SourceError(f"{url} is a whole store; give a bucket of it, or what begins in one")
        super().__init__(self._store.unstrip_protocol(self._path))
        self.readers = FlowSettings().read_threads
        self._name = url
        self.gone = not self._exists()
        if self.gone and not may_be_gone:
            raise self._missing()

    def check(self) -> None:
        """See `Source.check`."""
        if not self._exists():
            raise self._missing()

    def _missing(self) -> SourceError:
        return SourceError(
            f"{self._name} does not exist or holds nothing; expected images{_FOR_GOOD}"
        )

    def _exists(self) -> bool:
        try:
            with storage_errors():
                is_file = self._store.info(self._path)["type"] == "file"
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SourceError(f"{self._name} cannot be listed: {error.strerror}") from error
        if is_file:
            raise SourceError(f"{self._name} is a file; give what comes before its last /")
        return True

    def _walk(self) -> Iterator[FoundFile]:
        folders = [self._path]
        while folders:
            folder = folders.pop()
            below = []
            for entry in self._listed(folder):
                path = entry["name"].rstrip("/")
                name = path.rpartition("/")[2]
                if entry["type"] == "directory" and path == folder != entry["name"]:
                    uri = f"{self._store.unstrip_protocol(folder)}//"
                    yield FoundFile(uri, 0, "", _EMPTY_PART)
                if path == folder or name.startswith("."):
                    continue
                if entry["type"] == "directory":
                    below.append(path)
                elif entry["name"].endswith("/"):  # by which some tools keep empty folders
                    continue
                else:
                    yield from self._found(path, name, entry)
            folders += reversed(below)

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        """What is in a folder. Never part of a listing: what is missing there counts as gone."""
        try:
            with storage_errors():
                try:
                    entries = self._store.ls(folder, detail=True)
                except FileNotFoundError:  # an object store has no empty folders
                    self._store.info(self._path)  # but the source is still there
                    return []
        except OSError as error:
            self.unlisted.append(f"{self._store.unstrip_protocol(folder)}: {error.strerror}")
            return []
        # Some stores repeat at the begin of a page what ended the last one.
        return sorted({entry["name"]: entry for entry in entries}.values(), key=itemgetter("name"))

    def _found(self, path: str, name: str, entry: Mapping[str, Any]) -> Iterator[FoundFile]:
        uri = self._store.unstrip_protocol(path)
        is_image = is_image_by_suffix(PurePosixPath(name))
        try:
            if is_image is None and entry.get("size") != 0:
                with storage_errors():
                    is_image = begins_as_image(self._store.cat_file(path, start=0, end=MAGIC_BYTES))
            if not is_image:
                self.others += 1
                return
            status = object_status(entry)
        except OSError as error:
            yield _unreadable(uri, error, doubtful=is_image is None)
        else:
            yield FoundFile(uri, status.size_bytes, status.mark)


def _store_of(url: str) -> "tuple[AbstractFileSystem, str]":
    from fsspec.implementations.local import LocalFileSystem

    try:
        store, path = object_store(url)
        if isinstance(store, LocalFileSystem):
            raise SourceError(f"{url} is a folder of this machine; give its path, {path}")
        again = _options_of(str(store.unstrip_protocol(path)))
    except OSError as error:
        raise SourceError(f"{url} cannot be opened: {error.strerror}") from error
    if again != store.storage_options:
        # Its images are read by their own URLs, and those of two servers would be the same.
        raise SourceError(
            f"{url} names a server or an account that the URLs of its images do not; only stores "
            "of buckets are read, with whatever else they need from the environment"
        )
    return store, path


def _options_of(url: str) -> dict[str, Any] | None:
    try:
        return dict(object_store(url)[0].storage_options)
    except OSError:  # it needs what the URL does not say
        return None


def is_image_by_suffix(name: PurePath) -> bool | None:
    """Whether a file is an image by its name; None where it has no suffix.

    A suffix that stands for an image which cannot be read (HEIC, SVG, a camera's raw file) counts:
    it must fail with a reason rather than be passed over in silence.
    """
    suffix = name.suffix.lower()
    if not suffix:
        return None
    kind = mimetypes.types_map.get(suffix, "")
    return suffix in image_suffixes() or suffix in RAW or kind.startswith("image/")


def begins_as_image(start: bytes) -> bool:
    """Whether a file that begins so is an image of a common format."""
    return MAGIC.match(start) is not None


def looks_like_image(path: Path) -> bool:
    """Whether a file counts as an image: by its suffix, or by its first bytes if it has none.

    Raises OSError where a file without one cannot be opened.
    """
    by_suffix = is_image_by_suffix(path)
    if by_suffix is not None:
        return by_suffix
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return begins_as_image(file.read(MAGIC_BYTES))
    except FileNotFoundError:  # gone since it was listed
        return False


def _unreadable(uri: str, error: OSError, *, doubtful: bool = False) -> FoundFile:
    return FoundFile(uri, 0, "", f"{UNREAD}{error.strerror}", doubtful)


def _found(path: Path) -> FoundFile:
    uri = uri_of(path)
    try:
        stat = path.stat()
    except FileNotFoundError:  # what it showed is not to be had by looking again
        return FoundFile(uri, 0, "", "no such file: a link that leads nowhere, or deleted just now")
    except OSError as error:
        return _unreadable(uri, error)
    if not path.is_file():
        return FoundFile(uri, 0, "", "not a regular file")
    status = status_of(stat)
    return FoundFile(uri, status.size_bytes, status.mark)
