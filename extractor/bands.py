"""Pixels of large files a few rows at a time, where Pillow decodes an image as a whole.

By libvips (https://www.libvips.org), whose decoders of JPEG, PNG and TIFF give the same values as
Pillow's. What is large and of another kind, Pillow decodes.
"""

from __future__ import annotations

import io
import logging
from functools import cache
from types import ModuleType
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    TiffImageFile,
)

from .colour import WHITE_IS_ZERO
from .errors import TruncatedImage

log = logging.getLogger(__name__)

_LOADERS = {
    "JPEG": "jpegload_source",
    "MPO": "jpegload_source",  # of which the first picture is read
    "PNG": "pngload_source",
    "TIFF": "tiffload_source",
}
# By Pillow's mode and how many values a pixel has for libvips, which looks palettes up: the mode of
# a band.
_MODES = {
    ("1", 1): "L",
    ("L", 1): "L",
    ("LA", 2): "LA",
    ("P", 3): "RGB",
    ("P", 4): "RGBA",
    ("RGB", 3): "RGB",
    ("RGBA", 4): "RGBA",
    ("CMYK", 4): "CMYK",
    ("I;16", 1): "I;16",
    ("I;16B", 1): "I;16",
    ("I", 1): "I",
    ("F", 1): "F",
}
_NUMBERS = {
    "uchar": np.uint8,
    "ushort": np.uint16,
    "short": np.int16,
    "int": np.int32,
    "float": np.float32,
}
_WIDE = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
# The numbers of libvips that the values of a mode may be made of.
_BYTES = {"uchar", "ushort"}
_MADE_OF = {"I;16": {"ushort"}, "I": {"short", "int"}, "F": {"float"}}
_COMPRESSIONS = {
    "raw",
    "tiff_lzw",
    "tiff_deflate",
    "tiff_adobe_deflate",
    "packbits",
    "jpeg",
    "tiff_ccitt",
    "group3",
    "group4",
}
# Values of a TIFF's tags: of its colours, its planes and its extra samples.
_YCBCR, _TOGETHER, _ALPHA = 6, 1, (2,)


def by_bands(file: IO[bytes], image: Image.Image) -> BandedImage | None:
    """A file that Pillow has opened and not loaded, to be decoded by bands.

    None where libvips does not give what Pillow gives of such a file.
    """
    try:
        return BandedImage(file, image)
    except ValueError as error:
        log.debug("decoded as a whole: %s", error)
        return None


def is_misread(image: Image.Image) -> bool:
    """Whether Pillow would take the bytes of a file's numbers in the wrong order.

    It does so with big-endian TIFFs of integers and floats that are compressed, for libtiff has
    turned them already.
    """
    return (
        isinstance(image, TiffImageFile)
        and image.mode in ("I", "F")
        and image.tag_v2.prefix == b"MM"
        and image.info.get("compression") != "raw"
    )


class BandedImage:
    """An image that is decoded from the top down while its bands are asked for.

    Attributes:
        mode: of a band, as Pillow names it.
        width: as it is stored, not turned upright, in pixels.
        height: likewise.
        info: what Pillow found beside the pixels.
    """

    def __init__(self, file: IO[bytes], image: Image.Image) -> None:
        """Reads the header. Raises ValueError, see `by_bands`."""
        if image.format not in _LOADERS or not _is_plain(image):
            raise ValueError(f"a {image.format} that is not read by bands")
        self._file = file
        self._kind = image.format
        opened = self._open()
        self.mode = _MODES.get((image.mode, opened.bands), "")
        self._format, made_of = opened.format, _MADE_OF.get(self.mode, _BYTES)
        self.width, self.height = opened.width, opened.height
        # Pillow has turned the size of a TIFF already.
        same_size = sorted((self.width, self.height)) == sorted(image.size)
        if not self.mode or self._format not in made_of or not same_size:
            raise ValueError(f"{opened.bands} values of {self._format} for {image.mode}")
        self.info = {key: value for key, value in image.info.items() if key != "transparency"}
        self._region, self._next = _vips().Region.new(opened), 0
        try:
            self._fetch(0, 1)  # what is wrong with a header may be told only now
        except _vips().Error as error:
            raise ValueError(_reason(error)) from error

    def crop(self, box: tuple[int, int, int, int]) -> Image.Image:
        """A band over the whole width; one above the last is decoded from the top on.

        Raises:
            TruncatedImage: it cannot be decoded.
        """
        _, top, width, bottom = box
        try:
            if top < self._next:
                self._region = _vips().Region.new(self._open())
            raw = self._fetch(top, bottom)
        except _vips().Error as error:
            raise TruncatedImage(f"it is cut off or corrupt: {_reason(error)}") from error
        self._next = bottom
        return self._band(np.frombuffer(raw, _NUMBERS[self._format]), (width, bottom - top))

    def _fetch(self, top: int, bottom: int) -> Any:
        _vips().vips_lib.vips_error_clear()  # what others have left there
        return self._region.fetch(0, top, self.width, bottom - top)

    def _band(self, values: NDArray[Any], size: tuple[int, int]) -> Image.Image:
        if self.mode in _WIDE:
            band = Image.fromarray(values.reshape(size[::-1]).astype(_WIDE[self.mode]))
        else:
            octets = values >> 8 if values.dtype == np.uint16 else values
            band = Image.frombytes(self.mode, size, octets.astype(np.uint8).tobytes())
        band.info = dict(self.info)
        return band

    def _open(self) -> Any:
        vips = _vips()
        if isinstance(self._file, io.BytesIO):
            source = vips.Source.new_from_memory(self._file.getvalue())
        else:
            self._file.seek(0)
            source = vips.Source.new_from_descriptor(self._file.fileno())
        options: dict[str, Any] = {"fail_on": "error"}
        if self._kind == "TIFF":
            # Of a tile that it cannot decode it only warns, and gives a black one. And it reads no
            # strip or tile of more than 50 MB, unless it is told to.
            options = {"fail_on": "warning", "unlimited": True}
        try:
            load = getattr(vips.Image, _LOADERS[self._kind])
            return load(source, access="sequential", **options)
        except vips.Error as error:
            raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The last line: before it, libvips tells what it has met since its last error."""
    return str(error).strip().splitlines()[-1].strip()


def _is_plain(image: Image.Image) -> bool:
    """Whether both decoders take a file's values the same way, as far as tests have shown."""
    if not isinstance(image, TiffImageFile):
        return image.mode == "P" or "transparency" not in image.info
    tags, compression = image.tag_v2, image.info.get("compression")
    colours = tags.get(PHOTOMETRIC_INTERPRETATION)
    return (
        compression in _COMPRESSIONS
        and image.mode != "P"
        and (colours != _YCBCR or compression == "jpeg")
        and (colours != WHITE_IS_ZERO or image.mode in ("1", "L"))
        and (image.mode != "I;16" or tags.get(BITSPERSAMPLE) == (16,))
        and tags.get(PLANAR_CONFIGURATION, _TOGETHER) == _TOGETHER
        and tags.get(EXTRASAMPLES, ()) == (_ALPHA if image.mode in ("LA", "RGBA") else ())
    )


@cache
def _vips() -> ModuleType:
    """Its import takes a while, and few images need it."""
    import pyvips

    pyvips.cache_set_max(0)  # it would keep files open that have been read
    logging.getLogger("pyvips").setLevel(logging.CRITICAL)  # it warns of what it raises as well
    return cast(ModuleType, pyvips)
