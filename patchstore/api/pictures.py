"""Pictures of stored images and patches as small JPEGs, cut from the originals."""

import hashlib
import io
import threading
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from cachetools import LRUCache, cachedmethod
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine

from db.browse import ImageRow, get_image, get_patch_row
from db.search import Box
from extractor.arrays import Region
from extractor.errors import ImageChanged, ImageError
from extractor.files import file_status
from extractor.images import read_stored, shrunk
from extractor.settings import ExtractorSettings

from .pixels import PixelBudget
from .problems import Problem

QUALITY = 85
_ORIGINALS, _JPEGS = 256_000_000, 64_000_000  # bytes that are kept
_GONE = "picture_gone"


@dataclass(frozen=True)
class _File:
    """An original as it lies there now: a changed file is read again.

    Attributes:
        extent: its (width, height) in pixels; 0 where it could never be read.
    """

    uri: str
    sha256: str
    extent: tuple[int, int]
    mark: str

    @classmethod
    def at(cls, image: ImageRow) -> "_File":
        try:
            mark = file_status(image.uri).mark
        except OSError as error:
            raise _unread(image.uri, error) from error
        extent = image.width or 0, image.height or 0
        return cls(image.uri, image.sha256, extent, mark)


@dataclass(frozen=True)
class Picture:
    """A picture that has a name before it is read: what a browser has already costs no reading.

    Attributes:
        file: the original.
        box: the part of it that is shown; None: all of it.
        side: its longer side at most, in pixels.
    """

    file: _File
    box: Box | None
    side: int

    @property
    def etag(self) -> str:
        """Strong: equal for equal bytes, for the content's hash is part of it."""
        name = f"{self.file.sha256} {self.box} {self.side} {QUALITY}"
        return f'"{hashlib.sha256(name.encode()).hexdigest()[:32]}"'


class Pictures:
    """Makes the small pictures of one service, and keeps what it made and read last."""

    def __init__(self, engine: Engine, budget: PixelBudget) -> None:
        self._engine = engine
        self._budget = budget
        self._jpegs: LRUCache[object, bytes] = LRUCache(_JPEGS, getsizeof=len)
        # A page of hits asks for many patches of few images, all at once. An image that is larger
        # is kept alone.
        self._originals: LRUCache[object, NDArray[np.uint8]] = LRUCache(
            _ORIGINALS, getsizeof=lambda pixels: min(pixels.nbytes, _ORIGINALS)
        )
        self._made, self._read = threading.Condition(), threading.Condition()

    def of_image(self, image_id: int, side: int) -> Picture:
        """A whole image. Raises NotFound; Problem where the original is gone."""
        return Picture(_File.at(get_image(self._engine, image_id)), None, side)

    def of_patch(self, patch_id: int, side: int) -> Picture:
        """A patch. Raises NotFound; Problem where the original is gone."""
        patch = get_patch_row(self._engine, patch_id)
        return Picture(_File.at(get_image(self._engine, patch.image_id)), patch.box, side)

    @cachedmethod(attrgetter("_jpegs"), condition=attrgetter("_made"))
    def jpeg(self, picture: Picture) -> bytes:
        """The encoded picture. Raises Problem where the original is gone or another one now."""
        with self._budget.hold(picture.file.extent):
            pixels = self._original(picture.file)
            part = pixels if picture.box is None else Region(pixels, picture.box).pixels
            return _encoded(shrunk(part, picture.side), picture.side)

    @cachedmethod(attrgetter("_originals"), condition=attrgetter("_read"))
    def _original(self, file: _File) -> NDArray[np.uint8]:
        """The pixels of a stored image; only of exactly the content that was stored."""
        limit = ExtractorSettings().max_pixels
        try:
            return read_stored(file.uri, bytes.fromhex(file.sha256), max_pixels=limit)
        except OSError as error:
            raise _unread(file.uri, error) from error
        except ImageError as error:
            rule = _GONE if isinstance(error, ImageChanged) else "picture_unreadable"
            raise Problem(rule, f"{file.uri} cannot be shown: {error}") from error


def _encoded(shown: Image.Image, side: int) -> bytes:
    shown.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _unread(uri: str, error: OSError) -> Problem:
    """Gone for who asks; or just now, by a fault of the storage or of this machine."""
    gone = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
    rule = _GONE if gone else "picture_unavailable"
    return Problem(rule, f"{uri} cannot be read: {error.strerror}")
