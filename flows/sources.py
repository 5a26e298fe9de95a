"""Where images come from. A source lists its files and reads one by its URI."""

import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from extractor.images import image_suffixes, read_content
from extractor.uris import absolute, path_of, uri_of

from .errors import SourceError

# First bytes of the formats that archives keep without a suffix: JPEG, PNG, GIF, TIFF, WebP, BMP.
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\x00", b"MM\x00*", b"RIFF", b"BM")


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


class FolderSource:
    """A folder and everything below it.

    Hidden files and folders are left out; links to files are followed, links to folders are not.

    Attributes:
        root: the absolute path, by which the store knows this source.
        gone: the folder does not exist any more.
        others: files that are no images, counted while listing.
        unlisted: folders that could not be listed, with the reason; `scan` adds an emptied source.
    """

    def __init__(self, folder: str | Path, *, may_be_gone: bool = False) -> None:
        """A path or a URI. Raises SourceError unless it is a folder that can be listed.

        One that does not exist is as good as an empty one where it `may_be_gone`.
        """
        if not str(folder).strip():
            raise SourceError("the name of the folder with images is empty")
        path = absolute(path_of(str(folder)))
        self.root = uri_of(path)
        self._path = path
        self.others = 0
        self.unlisted: list[str] = []
        self.gone = may_be_gone and not path.exists()
        if self.gone:
            return
        if not path.exists():
            raise SourceError(f"{folder} does not exist; expected a folder with images")
        if not path.is_dir():
            raise SourceError(f"{folder} is a file; give the folder that holds it")
        try:
            os.scandir(path).close()
        except OSError as error:
            raise SourceError(f"{folder} cannot be listed: {error.strerror}") from error

    def files(self) -> Iterator[FoundFile]:
        """Every image file, in a stable order, without opening any that has a suffix."""
        self.others = 0
        self.unlisted = []
        if self.gone:
            return
        suffixes = image_suffixes()
        for folder, subfolders, names in os.walk(self._path, onerror=self._note_unlisted):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder, name)
                try:
                    if name.startswith(".") or not looks_like_image(path, suffixes):
                        self.others += 1
                    else:
                        yield _found(path)
                except OSError as error:
                    reason = f"cannot be read: {error.strerror}"
                    yield FoundFile(uri_of(path), 0, "", reason, doubtful=True)

    def open(self, uri: str) -> BufferedReader:
        """A file, to be read from its start. Raises OSError."""
        return path_of(uri).open("rb")

    def read(self, uri: str, max_pixels: int) -> bytes:
        """The bytes of a file. Raises OSError; ImageTooLarge, as `read_content`."""
        return read_content(path_of(uri), max_pixels=max_pixels)

    def _note_unlisted(self, error: OSError) -> None:
        self.unlisted.append(f"{uri_of(Path(error.filename))}: {error.strerror}")


def looks_like_image(path: Path, suffixes: frozenset[str]) -> bool:
    """Whether a file counts as an image: by its suffix, or by its first bytes if it has none.

    A suffix that stands for an image which cannot be read (HEIC, SVG) counts: it must fail with a
    reason rather than be passed over in silence. Raises OSError where a file without one cannot be
    opened.
    """
    suffix = path.suffix.lower()
    if suffix:
        kind = mimetypes.types_map.get(suffix, "")
        return suffix in suffixes or kind.startswith("image/")
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4).startswith(MAGIC)
    except FileNotFoundError:  # gone since it was listed
        return False


def _found(path: Path) -> FoundFile:
    uri = uri_of(path)
    try:
        stat = path.stat()
    except OSError as error:
        return FoundFile(uri, 0, "", f"cannot be read: {error.strerror}")
    if not path.is_file():
        return FoundFile(uri, 0, "", "not a regular file")
    # The inode's change time cannot be set back by copying with preserved times.
    return FoundFile(uri, stat.st_size, f"{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_size}")
