"""Image bytes -> upright RGB pixels, whatever real files bring."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import IcnsImagePlugin, IcoImagePlugin, Image, UnidentifiedImageError, _imaging
from PIL.ContainerIO import ContainerIO
from PIL.TiffImagePlugin import TiffImageFile

from .bands import by_bands, is_misread
from .colour import Bands, rgb_bands
from .errors import (
    EmptyImageFile,
    ImageChanged,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    TruncatedImage,
    one_line,
)
from .files import open_file
from .spool import LARGE, release, spool_file, spooled

DEFAULT_MAX_PIXELS = 178_956_970  # Pillow's own line between a large picture and a bomb
# They start a program (Ghostscript), draw by the operating system, or are stubs without pixels.
_REFUSED = frozenset({"EPS", "WMF", "EMF", "MPEG", "GRIB", "HDF5", "BUFR", "PDF"})
_ORIENTATION = 0x0112
_BYTES_A_PIXEL = 16  # four floats: no file of an image has more, but for its metadata
_COPIED = 2**20  # bytes at once
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_LARGEST_TILE = 2**24  # pixels that a tile may have whatever the limit of the image
_LARGEST_ICON = 2**22  # four times what Apple's largest has
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BY_A_QUARTER = (5, 6, 7, 8)  # orientations under which rows become columns
_BACKWARDS = (3, 4, 6, 7)  # under which the first row becomes the last
_PILLOW = re.compile(r"PIL\.")

Content = io.BytesIO | io.FileIO


def read_image(
    source: bytes | Path | BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode an image to what a person sees: upright, in sRGB, its first frame, on white.

    Safe to call from many threads at once. A large JPEG, PNG or TIFF is decoded by bands into a
    temporary file, see `spooled`.

    Args:
        source: the encoded bytes, the path of a file, or what `read_content` gives.
        max_pixels: what the header may claim before nothing is decoded.

    Returns:
        RGB uint8 (H, W, 3), C-contiguous, writable.

    Raises:
        ImageError: when these bytes can never be read; the text is the reason.
        OSError: when the file cannot be read now; the same call may succeed later.
    """
    if isinstance(source, Path):
        with source.open("rb") as own, read_content(own, max_pixels=max_pixels) as content:
            return read_image(content, max_pixels=max_pixels)
    with (
        _opened(source) as file,
        _pillow_errors(max_pixels),
        _open(file, max_pixels) as image,
    ):
        large, misread = image.width * image.height > LARGE, is_misread(image)
        if large or misread:
            orientation = _orientation(image, file)  # before somebody else reads the file
            if bands := by_bands(file, image):
                return _upright(bands, orientation, spooled if large else np.empty)
        if misread:
            raise NotAnImage("a file of the format TIFF, big-endian and of a kind that is not read")
        image.load()
        _check_size(image.size, max_pixels)  # an icon's frame may differ from its header
        return _upright(image, _orientation(image), np.empty)


def read_content(file: BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Content:
    """Take the bytes of an image's open file, unless there are more than any image has.

    Returns:
        They are in memory, or many of them in a temporary file: what is decoded is what its digest
        was taken of, whatever becomes of the file meanwhile.

    Raises:
        ImageTooLarge: more than `max_pixels` could take: reading them might take all memory.
        OSError: when the file cannot be read now.
    """
    size = file.seek(0, os.SEEK_END)
    if size > _BYTES_A_PIXEL * max_pixels:
        raise ImageTooLarge(
            f"the file has {size:,} bytes, more than an image of {max_pixels} pixels takes; "
            "raise PATCHSTORE_MAX_PIXELS if it is one"
        )
    file.seek(0)
    if size <= LARGE:
        return io.BytesIO(file.read())
    content = spool_file(size)
    try:
        shutil.copyfileobj(file, content, _COPIED)
    except BaseException:
        content.close()
        raise
    content.seek(0)
    return content


def digest(content: Content) -> bytes:
    """SHA-256 of what `read_content` gives."""
    content.seek(0)
    return hashlib.file_digest(content, "sha256").digest()


def read_stored(
    uri: str, sha256: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> NDArray[np.uint8]:
    """Decode the file of a stored image, as `read_image`, if it still is that image.

    Raises:
        ImageChanged: its SHA-256 is another one now.
        ImageError, OSError: as `read_image`.
    """
    with open_file(uri) as file:
        content = read_content(file, max_pixels=max_pixels)
    with content:
        if digest(content) != sha256:
            raise ImageChanged("it has changed since it was ingested")
        return read_image(content, max_pixels=max_pixels)


def shrunk(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    """Pixels as a picture that is still to be resized to a `side`, of a large image by bands.

    Returns:
        All of them; of a large image the means of equal squares, with at least three for a pixel of
        what is to come, as Pillow's `reducing_gap` has them.
    """
    height, width = pixels.shape[:2]
    factor = max(height, width) // (3 * side)
    if height * width <= LARGE or factor < 2:
        return Image.fromarray(pixels)
    rows = factor * max(1, LARGE // 16 // (factor * width))
    picture = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, rows):
        band = Image.fromarray(pixels[top : top + rows]).reduce(factor)
        picture.paste(band, (0, top // factor))
        release(pixels)
    return picture


def read_size(
    source: bytes | Path | BinaryIO, *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[int, int]:
    """Read the upright (width, height) in pixels from the header; no pixel is decoded.

    Args:
        source: the encoded bytes, the path of a file, or the file itself, which stays open.
        max_pixels: what the header may claim.

    Raises:
        ImageError: when the header can never be read, or claims more than `max_pixels`.
        OSError: when the file cannot be read now.
    """
    with (
        _opened(source) as file,
        _pillow_errors(max_pixels),
        _open(file, max_pixels) as image,
    ):
        # Pillow gives the size of a turned TIFF as upright already.
        turned = image.format != "TIFF" and _orientation(image, file) in _BY_A_QUARTER
        return (image.height, image.width) if turned else image.size


def _opened(source: bytes | Path | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, Path):
        return source.open("rb")
    source.seek(0)
    return nullcontext(source)


@lru_cache(maxsize=1)
def image_suffixes() -> frozenset[str]:
    """Name the file suffixes of the formats that are read, in lower case, with the dot."""
    formats = {*_formats(), "MPO"}  # a JPEG of several frames, opened as a JPEG
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in formats)


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _REFUSED)


def _open(file: IO[bytes], max_pixels: int) -> Image.Image:
    start = file.read(16)
    if not start:
        raise EmptyImageFile("the file is empty (0 bytes)")
    file.seek(0)
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > 2 * Image.MAX_IMAGE_PIXELS:
        # Pillow refuses above twice its own limit: lift that once where a user asked for more.
        Image.MAX_IMAGE_PIXELS = max_pixels // 2 + 1
    _check_inside_icon(file, max_pixels)
    try:
        image = Image.open(file, formats=_formats())
    except UnidentifiedImageError:
        raise _unidentified(start) from None
    _check_size(image.size, max_pixels)
    if isinstance(image, TiffImageFile):
        _check_tiles(image, max_pixels)
    return image


def _check_tiles(image: TiffImageFile, max_pixels: int) -> None:
    """Refuse a TIFF whose tiles are larger than any image: they are decoded as a whole."""
    width, height = (image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_HEIGHT))
    if width * height > max(max_pixels, _LARGEST_TILE):
        raise ImageTooLarge(_too_large(f"tiles of {width} x {height}", max_pixels))


def _check_inside_icon(file: IO[bytes], max_pixels: int) -> None:
    """Refuse a picture inside an icon that is larger than any icon.

    Pillow decodes it before its size can be asked for, an ICO while that is opened; of an ICNS it
    tells what the icon's kind claims.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"\0\0\1\0":
        offsets = [entry.offset for entry in IcoImagePlugin.IcoFile(file).entry[:1]]
    elif start == b"icns":
        icon = IcnsImagePlugin.IcnsFile(file)
        codes = [code for code, _ in icon.SIZES[icon.bestsize()] if code in icon.dct]
        offsets = [icon.dct[code][0] for code in codes]
    else:
        return
    length = file.seek(0, io.SEEK_END)
    for offset in offsets:
        inside = ContainerIO(file, offset, length - offset)
        with (
            suppress(UnidentifiedImageError),  # pixels without a header, as large as it says
            Image.open(inside, formats=("PNG", "JPEG2000", "DIB")) as picture,
        ):
            _check_size(picture.size, max_pixels)
            if picture.width * picture.height > _LARGEST_ICON:
                raise ImageTooLarge(
                    f"the icon has a picture of {picture.width} x {picture.height} pixels in it, "
                    "larger than any icon; save it as a PNG"
                )
    file.seek(0)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise TruncatedImage(f"the header claims {width} x {height} pixels; the file is corrupt")
    if width * height > max_pixels:
        raise ImageTooLarge(_too_large(f"{width} x {height}", max_pixels))


def _too_large(claimed: str, limit: int) -> str:
    return (
        f"the header claims {claimed} pixels, more than the limit of {limit}; raise "
        "PATCHSTORE_MAX_PIXELS if you trust the file"
    )


def _unidentified(start: bytes) -> ImageError:
    for name, (_, accept) in Image.OPEN.items():
        if accept is None or accept(start) is not True:
            continue
        if name in _REFUSED:
            return NotAnImage(f"a file of the format {name}, which is not read; convert it to PNG")
        return TruncatedImage(
            f"it begins as {name}, but is of a kind that is not read, or its header is cut off or "
            "corrupt"
        )
    if start[4:8] == b"ftyp":
        return NotAnImage("a HEIC, AVIF or film, which is not read; convert it to JPEG")
    if start.lstrip().startswith((b"<", b"\xef\xbb\xbf<")):
        return NotAnImage("an SVG, a web page or other XML, which is not read; convert it to PNG")
    return NotAnImage(f"no image format that is read begins with {start[:8]!r}")


@contextmanager
def _pillow_errors(max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow throws at a bad file into one of our types, and keep it quiet."""
    _silence_pillow()
    _silence_libtiff()
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        claimed = next(iter(re.findall(r"\d+", str(error))), "too many")
        raise ImageTooLarge(_too_large(claimed, max_pixels)) from error
    except MemoryError as error:
        raise ImageTooLarge("decoding it needs more memory than there is") from error
    except Exception as error:  # a decoder meets hostile bytes: Pillow promises no closed list
        # EINVAL: a seek to a negative offset that a corrupt header asked for.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        # What `struct` says is of bytes that it wanted, and nothing of the file.
        why = "its header is too short" if isinstance(error, struct.error) else one_line(error)
        raise TruncatedImage(
            f"it is cut off, corrupt or of a kind that is not read: {why}"
        ) from error


def _silence_pillow() -> None:
    """Ignore the warnings and the log of Pillow's modules in this process.

    `warnings.catch_warnings` is not safe in threads, so this is one standing rule, put back in
    front only where something (a test, a library) has laid another over it.
    """
    rule = ("ignore", None, Warning, _PILLOW, 0)
    if not warnings.filters or warnings.filters[0] != rule:
        warnings.filterwarnings("ignore", category=Warning, module=_PILLOW.pattern)
        logging.getLogger("PIL").setLevel(logging.CRITICAL)  # TIFF logs what it raises as well


@cache
def _silence_libtiff() -> None:
    """Keep libtiff, which Pillow is linked with, from writing to standard error by itself.

    What it has to say comes as an exception, too; between the lines of a progress bar it is noise.
    """
    with suppress(OSError, AttributeError):  # a Pillow without it, or one that hides it
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _upright(
    image: Bands,
    orientation: int,
    make: Callable[[tuple[int, ...], type[np.uint8]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """An image in RGB and turned, band by band, in an array that is made for it."""
    height, width = image.height, image.width
    by_a_quarter = orientation in _BY_A_QUARTER
    pixels = make((width, height, 3) if by_a_quarter else (height, width, 3), np.uint8)
    turn = _UPRIGHT.get(orientation)
    for rows, band in rgb_bands(image):
        if orientation in _BACKWARDS:
            rows = slice(height - rows.stop, height - rows.start)
        at = (slice(None), rows) if by_a_quarter else rows
        pixels[at] = np.asarray(band if turn is None else band.transpose(turn))
        release(pixels)
    return pixels


def _orientation(image: Image.Image, file: IO[bytes] | None = None) -> int:
    """By the image's EXIF; of a PNG that is not loaded it may lie behind the pixels in its file."""
    if file is not None and image.format == "PNG" and "exif" not in image.info:
        _find_late_exif(image, file)
    try:
        # The base class: PNG's own method decodes the pixels to look for EXIF behind them.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # broken EXIF costs the turn, never the picture
        return 1


def _find_late_exif(image: Image.Image, file: IO[bytes]) -> None:
    """Look for an eXIf chunk behind the pixels of a PNG, jumping from chunk to chunk."""
    at = 8
    while True:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[:4], "big")
        if len(head) < 8 or head[4:] == b"IEND":
            return
        if head[4:] == b"eXIf":
            image.info["exif"] = b"Exif\x00\x00" + file.read(length)
            return
        at += 12 + length
