"""Pictures of stored images and patches as small JPEGs, cut from the originals."""

import hashlib
import io
import threading
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache, cached
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import Engine

from db.browse import ImageRow, get_image, get_patch_row
from db.search import Box
from extractor.arrays import Region
from extractor.errors import ImageError
from extractor.images import read_image
from extractor.settings import ExtractorSettings
from extractor.uris import path_of

from .problems import Problem

QUALITY = 85
# A page of hits asks for many patches of few images, all at once. One that is larger is kept alone.
_ORIGINALS = 256_000_000
_originals: LRUCache[object, NDArray[np.uint8]] = LRUCache(
    _ORIGINALS, getsizeof=lambda pixels: min(pixels.nbytes, _ORIGINALS)
)
_pictures: LRUCache[object, bytes] = LRUCache(64_000_000, getsizeof=len)


class Picture:
    """A picture that has a name before it is read: what a browser has already costs no reading.

    Raises Problem where the original is gone.
    """

    def __init__(self, image: ImageRow, box: Box | None, side: int) -> None:
        self._file = _File.at(image)
        self._image = image
        self._box = box
        self._side = side

    @property
    def etag(self) -> str:
        """Strong: equal for equal bytes, for the content's hash is part of it."""
        name = f"{self._image.sha256} {self._box} {self._side} {QUALITY}"
        return f'"{hashlib.sha256(name.encode()).hexdigest()[:32]}"'

    def jpeg(self) -> bytes:
        """The encoded picture. Raises Problem where the original is gone or another one now."""
        return _jpeg(self._file, self._box, self._side)


@dataclass(frozen=True)
class _File:
    """An original as it lies there now: a changed file is read again."""

    uri: str
    sha256: str
    size: int
    mtime_ns: int

    @classmethod
    def at(cls, image: ImageRow) -> "_File":
        try:
            status = path_of(image.uri).stat()
        except OSError as error:
            raise _gone(image.uri, error) from error
        return cls(image.uri, image.sha256, status.st_size, status.st_mtime_ns)


def _gone(uri: str, error: OSError) -> Problem:
    return Problem("picture_gone", f"{uri} cannot be read: {error.strerror}")


def image_picture(engine: Engine, image_id: int, side: int) -> Picture:
    """A whole image, its longer side at most `side` pixels. Raises NotFound, Problem."""
    return Picture(get_image(engine, image_id), None, side)


def patch_picture(engine: Engine, patch_id: int, side: int) -> Picture:
    """A patch, its longer side at most `side` pixels. Raises NotFound, Problem."""
    patch = get_patch_row(engine, patch_id)
    return Picture(get_image(engine, patch.image_id), patch.box, side)


@cached(_pictures, condition=threading.Condition())
def _jpeg(file: _File, box: Box | None, side: int) -> bytes:
    pixels = _original(file)
    picture = Image.fromarray(pixels if box is None else Region(pixels, box).pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


@cached(_originals, condition=threading.Condition())
def _original(file: _File) -> NDArray[np.uint8]:
    """The pixels of a stored image; only of exactly the content that was stored."""
    try:
        content = path_of(file.uri).read_bytes()
    except OSError as error:
        raise _gone(file.uri, error) from error
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise Problem("picture_gone", f"{file.uri} has changed since it was ingested")
    try:
        return read_image(content, max_pixels=ExtractorSettings().max_pixels)
    except ImageError as error:
        raise Problem("picture_gone", f"{file.uri} cannot be read: {error}") from error
