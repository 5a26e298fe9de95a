"""Any Pillow mode -> RGB, as a person would see it."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

_WIDE = ("I", "F")  # I;16 and its kin begin with I, too
_BAND_PIXELS = 2**20
_BAND_ROWS = 4096  # libvips takes the square of the time for the double
WHITE_IS_ZERO = 0  # of a TIFF's photometric interpretation

_Range = tuple[float, float]


class Bands(Protocol):
    """An image of which bands can be had, each over the whole width."""

    @property
    def mode(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def info(self) -> dict[Any, Any]: ...
    def crop(self, box: tuple[int, int, int, int], /) -> Image.Image: ...


def rgb_bands(image: Bands) -> Iterator[tuple[slice, Image.Image]]:
    """Bring an image down to 8-bit sRGB; transparent parts are laid on white.

    Grey of more than 8 bits is scaled, never clipped: 16 bits by 255 / 65535. Integers of 32 bits
    and floats declare no range, so it is the smallest usual one that holds the values: 0..1
    (floats), 0..255, 0..65535, else their own minimum to maximum; NaN and infinities are black. A
    TIFF may say that its highest value is black.

    An embedded ICC profile is applied (relative colorimetric with black point compensation); one
    that is broken or of another colour space is ignored.

    Goes band by band: what lies between the two would be several times an image's size.

    Yields:
        Which rows a band has, from the top down, and the band, of mode RGB.
    """
    grey = _grey_range(image) if image.mode.startswith(_WIDE) else None
    for rows, band in _bands(image):
        yield rows, _rgb(band, grey)


def _bands(image: Bands) -> Iterator[tuple[slice, Image.Image]]:
    rows = min(max(1, _BAND_PIXELS // image.width), _BAND_ROWS)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _rgb(image: Image.Image, grey: _Range | None) -> Image.Image:
    if grey is not None:
        return _with_profile(_narrowed(image, *grey), image)
    if image.mode == "LAB":
        return _apply(image, _lab_to_srgb())
    image, alpha = _split_alpha(image)
    rgb = _with_profile(image, image)
    if alpha is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb, mask=alpha)
    return canvas


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    profile = image.info.get("icc_profile")
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    elif image.mode == "PA" or (image.mode in ("1", "L", "P", "RGB") and _has_key_colour(image)):
        image = image.convert("RGBA")
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode in ("1", "LA") else "RGB")
        image.info["icc_profile"] = profile
    return image, alpha


def _has_key_colour(image: Image.Image) -> bool:
    return image.info.get("transparency") is not None


def _grey_range(image: Bands) -> _Range:
    """Which values of wide grey become black and white."""
    low, high = _declared_range(image) or _usual_range(image)
    is_negative = _tags(image).get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    return (high, low) if is_negative else (low, high)


def _declared_range(image: Bands) -> _Range | None:
    if image.mode.startswith("I;16"):
        # Pillow gives the 12 of a TIFF as they are.
        bits = _tags(image).get(BITSPERSAMPLE, (16,))[0]
        return 0.0, 2.0**bits - 1
    if image.mode == "I" and getattr(image, "format", None) == "PPM":
        return 0.0, 65535.0  # to which Pillow has scaled whatever maximum the file declares
    return None


def _tags(image: Bands) -> Mapping[int, Any]:
    """Those of a TIFF; libvips is given none that says anything of the range."""
    return getattr(image, "tag_v2", {})


def _usual_range(image: Bands) -> _Range:
    numbers = (values[finite] for values, finite in (_finite(band) for _, band in _bands(image)))
    extremes = [(float(each.min()), float(each.max())) for each in numbers if each.size]
    lowest = min((low for low, _ in extremes), default=0.0)
    highest = max((high for _, high in extremes), default=0.0)
    usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    for top in usual:
        if lowest >= 0 and highest <= top:
            return 0.0, top
    return lowest, highest


def _finite(image: Image.Image) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Wide grey with 0 for whatever is no number, and where there is one."""
    values: NDArray[np.float32] = np.asarray(image).astype(np.float32)
    finite = np.isfinite(values)
    values[~finite] = 0
    return values, finite


def _narrowed(image: Image.Image, black: float, white: float) -> Image.Image:
    """Wide grey in 8 bits."""
    values, finite = _finite(image)
    # In float64 where the span itself is beyond float32 (float TIFFs of +-1e38).
    wide = values.astype(np.float64) if abs(white - black) > 1e38 else values
    wide -= black
    wide *= 255 / (white - black or 1.0)
    wide[~finite] = 0
    key = image.info.get("transparency")
    if isinstance(key, int):
        wide[np.asarray(image) == key] = 255
    return Image.fromarray(np.rint(wide).clip(0, 255).astype(np.uint8))


def _with_profile(image: Image.Image, source: Image.Image) -> Image.Image:
    profile = source.info.get("icc_profile")
    transform = _to_srgb(profile, image.mode) if isinstance(profile, bytes) and profile else None
    if transform is not None:
        return _apply(image, transform)
    return image if image.mode == "RGB" else image.convert("RGB")


def _apply(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    rgb = ImageCms.applyTransform(image, transform)
    assert rgb is not None  # only None when in place
    return rgb


@lru_cache(maxsize=16)  # a folder's photographs share a handful of profiles
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the way from a profile to sRGB; None where there is none to go."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if _changes_nothing(transform, mode) else transform
    except Exception:  # broken, or of another colour space than the pixels
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether a profile is sRGB by what it does: most are, and skipping it saves 20 ns/px."""
    if mode != "RGB":
        return False
    steps = np.linspace(0, 255, 16).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(64, 64, 3)
    seen = np.asarray(_apply(Image.fromarray(cube), transform)).astype(np.int16)
    return bool(np.abs(seen - cube).max() <= 1)


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )
