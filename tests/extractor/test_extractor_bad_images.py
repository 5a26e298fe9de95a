"""Files that can never be read are refused by type, with a reason in one line."""

import contextlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from benchmarks.fuzz.uploads import as_icns, as_ico
from extractor.errors import (
    EmptyImageFile,
    ImageError,
    ImageTooLarge,
    NotAnImage,
    TruncatedImage,
)
from extractor.images import image_suffixes, read_image, read_size

RAMP = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    path = tmp_path / "empty.jpg"
    path.touch()
    for source in (b"", path):
        for read in (read_image, read_size):
            with pytest.raises(EmptyImageFile, match="0 bytes"):
                read(source)


def test_text_named_jpg_is_not_an_image(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("shopping list: milk")
    for read in (read_image, read_size):
        with pytest.raises(NotAnImage, match="shopping"):
            read(path)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\0\0\0\x18ftypheic", "a HEIC, .* convert it to JPEG"),
        (b"<svg xmlns=", "an SVG, a web page .* convert it to PNG"),
        (b"\n<!DOCTYPE html>", "an SVG, a web page "),
    ],
)
def test_what_phones_and_browsers_write_is_called_by_its_name(start, said):
    with pytest.raises(NotAnImage, match=said):
        read_image(start + bytes(100))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
def test_a_picture_cut_off_in_the_middle_is_truncated(kind):
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    with pytest.raises(TruncatedImage) as refusal:
        read_image(data[: len(data) // 2])
    assert "\n" not in str(refusal.value)


def test_a_picture_cut_off_in_its_header_is_truncated():
    for kind in ("PNG", "JPEG", "TIFF"):
        with pytest.raises(TruncatedImage, match="cut off"):
            read_image(encoded(Image.fromarray(RAMP), kind)[:20])


@pytest.mark.parametrize("start", [b"abc", b"\xff\xd8\xff", b"\0\0\1\0", b"icns"])
def test_a_file_shorter_than_any_header_is_said_to_be_short(start):
    with pytest.raises(TruncatedImage, match=r"its header is too short$"):
        read_image(start)


def test_a_decompression_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    )
    for read in (read_image, read_size):
        with pytest.raises(ImageTooLarge, match=r"PATCHSTORE_MAX_PIXELS"):
            read(bomb)


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [(as_ico, "PNG"), (as_ico, "DIB"), (as_icns, "PNG"), (as_icns, "JPEG2000")],
)
def test_a_large_picture_inside_a_small_icon_is_refused_before_it_is_decoded(
    wrap, kind, monkeypatch
):
    icon = wrap(encoded(Image.new("RGB", (200, 100)), kind))

    def decode(self):
        raise AssertionError(f"{self.format} was decoded")

    for plugin in (PngImagePlugin.PngImageFile, ImageFile.ImageFile):
        monkeypatch.setattr(plugin, "load", decode)
    for read in (read_image, read_size):
        with pytest.raises(ImageTooLarge, match="200 x 100 pixels, more than the limit of 10000"):
            read(icon, max_pixels=10_000)


@pytest.mark.parametrize("wrap", [as_ico, as_icns])
def test_a_picture_that_no_icon_has_is_refused_however_many_pixels_are_allowed(wrap):
    icon = wrap(encoded(Image.new("1", (2100, 2000)), "PNG"))
    for read in (read_image, read_size):
        with pytest.raises(ImageTooLarge, match="2100 x 2000 pixels in it, larger than any icon"):
            read(icon)


@pytest.mark.parametrize("options", [{}, {"bitmap_format": "bmp"}])
@pytest.mark.parametrize("kind", ["ICO", "ICNS"])
def test_icons_are_read(kind, options):
    icon = encoded(Image.new("RGB", (64, 64), "red"), kind, **options)
    assert read_image(icon)[5, 5].tolist() == [255, 0, 0]


def test_the_limit_of_pixels_is_the_callers():
    data = encoded(Image.fromarray(RAMP))
    assert read_image(data, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageTooLarge, match="30 x 20 pixels, more than the limit of 599"):
        read_image(data, max_pixels=599)


def test_a_limit_above_pillows_own_is_honoured(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(encoded(Image.fromarray(RAMP)), max_pixels=600).shape == (20, 30, 3)


def test_formats_that_start_a_program_are_refused():
    with pytest.raises(NotAnImage, match="EPS"):
        read_image(encoded(Image.fromarray(RAMP), "EPS"))


def test_a_file_that_is_not_there_is_no_image_error(tmp_path):
    for read in (read_image, read_size):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "gone.jpg")
        with pytest.raises(IsADirectoryError):
            read(tmp_path)


def test_a_failing_disk_is_no_image_error(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RAMP)))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", fail)
    with pytest.raises(OSError, match="Input/output") as failure:
        read_size(path)
    assert not isinstance(failure.value, ImageError)


def test_decoders_write_nothing_to_standard_error(capfd):
    rng = np.random.default_rng(0)
    fax = encoded(Image.fromarray(rng.random((64, 64)) > 0.5), "TIFF", compression="group4")
    bent = fax[:20] + bytes(20) + fax[40:]
    with contextlib.suppress(ImageError):
        read_image(bent)
    assert capfd.readouterr().err == ""


def test_suffixes_are_those_of_readable_formats():
    suffixes = image_suffixes()
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".mpo"} <= suffixes
    assert not {".eps", ".pdf", ".wmf", ".mpg", ".h5", ".txt"} & suffixes
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)


@pytest.mark.weights
def test_every_odd_file_gives_pixels_or_a_reason(beside):
    folder = beside / "odd-images"
    if not folder.is_dir():
        pytest.skip("the odd images lie beside a developer's checkout only")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(2) as threads:
            results = list(threads.map(read_or_reason, files))
    assert sum(not isinstance(result, str) for result in results) > len(files) * 0.75
    assert all("\n" not in result for result in results if isinstance(result, str))


def read_or_reason(path):
    """The size of an image's pixels, or why there are none."""
    try:
        pixels = read_image(path)
    except ImageError as error:
        return str(error)
    size = pixels.shape[1], pixels.shape[0]
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    assert read_size(path) == size
    return size
