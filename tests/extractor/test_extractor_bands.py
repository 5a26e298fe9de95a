"""Large images are decoded by bands into a file, to the pixels that Pillow gives of them."""

import errno
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms

from extractor import images, spool
from extractor.bands import by_bands
from extractor.errors import ImageError, ImageTooLarge, NoRoom, TruncatedImage
from extractor.images import read_content, read_image, read_size, shrunk
from extractor.spool import spooled

WIDTH, HEIGHT = 130, 90
NOISE = np.random.default_rng(0).integers(0, 128, (HEIGHT, WIDTH, 3))
RGB = (NOISE + np.arange(WIDTH)[:, None] // 2 + np.arange(HEIGHT)[:, None, None] // 2).astype("u1")
GREY = RGB[..., 0]
PICTURES = {
    "1": Image.fromarray(GREY).convert("1"),
    "L": Image.fromarray(GREY),
    "LA": Image.fromarray(RGB).convert("LA"),
    "P": Image.fromarray(RGB).quantize(200),
    "RGB": Image.fromarray(RGB),
    "RGBA": Image.fromarray(np.dstack([RGB, GREY])),
    "CMYK": Image.fromarray(RGB).convert("CMYK"),
    "I;16": Image.fromarray(GREY.astype(np.uint16) * 257 + 3),
    "I": Image.fromarray(GREY.astype(np.int32) * 1000 - 7),
    "F": Image.fromarray(GREY.astype(np.float32) / 300),
}


@pytest.fixture
def small(monkeypatch):
    """Takes effect when called: from then on every image is a large one."""

    def lowered(pixels=0):
        monkeypatch.setattr(images, "LARGE", pixels)

    return lowered


def encoded(mode, form, **options):
    buffer = io.BytesIO()
    PICTURES[mode].save(buffer, form, **options)
    return buffer.getvalue()


def tiff(pixels, **options):
    kind = "srgb" if pixels.dtype == np.uint8 else None
    return pyvips.Image.new_from_array(pixels, interpretation=kind).tiffsave_buffer(**options)


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


EXTRA = struct.Struct("<HHIH")  # a field of a TIFF: tag, kind, count, value


def is_by_bands(content):
    file = io.BytesIO(content)
    with Image.open(file) as image:
        return by_bands(file, image) is not None


FILES = {
    **{
        f"JPEG {mode} {options}": encoded(mode, "JPEG", **options)
        for mode in ("L", "RGB", "CMYK")
        for options in ({}, {"progressive": True}, {"quality": 30})
    },
    "JPEG 4:4:4": encoded("RGB", "JPEG", subsampling=0),
    **{f"PNG {mode}": encoded(mode, "PNG") for mode in PICTURES if mode not in ("CMYK", "I", "F")},
    "PNG with a clear colour of the palette": encoded("P", "PNG", transparency=3),
    "PNG of 16 bits a colour": pyvips.Image.new_from_array(
        RGB.astype(np.uint16) * 251
    ).pngsave_buffer(),
    **{
        f"TIFF {mode} {compression}": encoded(mode, "TIFF", compression=compression)
        for mode in PICTURES
        if mode != "P"
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    **{
        f"TIFF {mode} jpeg": encoded(mode, "TIFF", compression="jpeg")
        for mode in ("L", "RGB", "CMYK")
    },
    "TIFF group4": encoded("1", "TIFF", compression="group4"),
    "TIFF of one strip": encoded("RGB", "TIFF", compression="tiff_lzw", tiffinfo={278: HEIGHT}),
    "TIFF of tiles": tiff(RGB, tile=True, tile_width=32, tile_height=16),
    "TIFF of tiles of JPEG in a pyramid": tiff(
        RGB, tile=True, tile_width=32, tile_height=32, pyramid=True, compression="jpeg"
    ),
    "TIFF where white is zero": tiff(GREY, miniswhite=True),
    "BigTIFF": tiff(RGB, bigtiff=True),
    "TIFF of 16 bits a colour": tiff(RGB.astype(np.uint16) * 251),
    "TIFF of signed 16 bits": tiff(GREY.astype(np.int16) * 100 - 9000),
    "TIFF with not a number": tiff(np.where(GREY > 99, np.nan, GREY / 150).astype(np.float32)),
    "JPEG of several pictures": encoded(
        "RGB", "MPO", save_all=True, append_images=[PICTURES["RGB"].rotate(90)]
    ),
    "JPEG with a profile": encoded(
        "RGB", "JPEG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    ),
    **{
        f"{form} of orientation {n}": encoded("RGB", form, exif=oriented(n))
        for n in range(2, 9)
        for form in ("JPEG", "PNG", "TIFF")
    },
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_large_image_has_the_pixels_that_it_would_have_as_a_small_one(content, small):
    assert is_by_bands(content)
    expected = read_image(content)
    small()
    found = read_image(content)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous
    assert found.flags.writeable
    assert read_size(content) == found.shape[1::-1]


OTHERS = {
    "GIF": encoded("P", "GIF"),
    "TIFF of planes": encoded("RGB", "TIFF", tiffinfo={284: 2}),
    "TIFF with its alpha multiplied in": tiff(np.dstack([RGB, GREY]), premultiply=True),
    "TIFF in a compression that libvips lacks": encoded("RGB", "TIFF", compression="zstd"),
    "TIFF of YCbCr": encoded("RGB", "TIFF", tiffinfo={262: 6}),
    "TIFF with a palette": encoded("P", "TIFF"),
    "TIFF with a fourth value that is no alpha": tiff(np.dstack([RGB, GREY])).replace(
        EXTRA.pack(338, 3, 1, 2), EXTRA.pack(338, 3, 1, 0)
    ),
    "TIFF of 16 bits where white is zero": tiff(GREY.astype(np.uint16) * 251, miniswhite=True),
    "TIFF with a field that libvips refuses": tiff(RGB).replace(
        EXTRA.pack(296, 3, 1, 2), EXTRA.pack(296, 3, 1, 0)
    ),
    "PNG with a key grey": encoded("L", "PNG", transparency=80),
    "PNG with a key colour": encoded("RGB", "PNG", transparency=tuple(RGB[5, 5].tolist())),
}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
def test_a_file_that_would_have_other_pixels_by_bands_is_decoded_as_a_whole(content, small):
    assert not is_by_bands(content)
    expected = read_image(content)
    small()
    np.testing.assert_array_equal(read_image(content), expected)


def big_endian(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, byteorder=">", compression="zlib", **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["int16", "int32", "float32"])
def test_a_compressed_big_endian_tiff_is_no_noise(kind):
    found = read_image(big_endian(GREY.astype(kind)))[..., 0].astype(int)
    assert np.abs(found - GREY).max() <= 1


def test_a_big_endian_tiff_that_only_pillow_reads_is_refused():
    planes = big_endian(np.zeros((2, 8, 8), np.float32), planarconfig="separate")
    with pytest.raises(ImageError, match="a file of the format TIFF, big-endian"):
        read_image(planes)


def test_tiles_that_are_larger_than_any_image_are_not_decoded():
    content = tiff(RGB, tile=True, tile_width=32, tile_height=16)
    for tag, value in ((322, 32), (323, 16)):
        content = content.replace(EXTRA.pack(tag, 3, 1, value), EXTRA.pack(tag, 3, 1, 24_000))
    with pytest.raises(ImageTooLarge, match="tiles of 24000 x 24000 pixels"):
        read_image(content, max_pixels=10**8)


def test_a_narrow_image_of_many_rows_is_read(small):
    column = Image.fromarray(np.arange(400_000, dtype=np.uint32).astype(np.uint8)[:, None])
    file = io.BytesIO()
    column.save(file, "PNG")
    small()
    assert is_by_bands(file.getvalue())
    np.testing.assert_array_equal(read_image(file.getvalue())[:, :, 0], np.asarray(column))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_a_large_image_that_is_cut_off_says_so(form, small, capfd):
    content = encoded("RGB", form)
    small()
    with pytest.raises(TruncatedImage, match=r"it is cut off.+: \S"):
        read_image(content[: len(content) * 2 // 3])
    assert capfd.readouterr() == ("", "")


def test_a_tile_that_cannot_be_decoded_is_no_black_one(small):
    whole = tiff(RGB, tile=True, tile_width=32, tile_height=16, compression="deflate")
    middle = len(whole) // 2
    content = whole[:middle] + bytes(500) + whole[middle + 500 :]
    with pytest.raises(TruncatedImage):
        read_image(content)
    small()
    assert is_by_bands(content)
    with pytest.raises(TruncatedImage, match="it is cut off or corrupt: "):
        read_image(content)


def test_a_tile_of_more_than_50_megabytes_is_read(small):
    grey = np.tile(GREY, (47, 33))[:4224, :4224]
    options = {"tile": True, "tile_width": 4224, "tile_height": 4224, "compression": "deflate"}
    content = tiff(np.dstack([grey, grey, grey]), **options)
    small()
    assert is_by_bands(content)
    np.testing.assert_array_equal(read_image(content)[..., 1], grey)


def test_a_large_image_of_more_pixels_than_allowed_is_refused(small):
    small()
    with pytest.raises(ImageTooLarge, match="PATCHSTORE_MAX_PIXELS"):
        read_image(encoded("RGB", "JPEG"), max_pixels=WIDTH * HEIGHT - 1)


def test_a_large_image_lies_in_a_file_without_a_name(small, tmp_path, monkeypatch):
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path))
    small()
    pixels = read_image(encoded("RGB", "JPEG"))
    assert f"{tmp_path}/" in Path("/proc/self/maps").read_text()
    assert not list(tmp_path.iterdir())
    del pixels
    assert f"{tmp_path}/" not in Path("/proc/self/maps").read_text()


def test_what_is_decoded_is_what_was_read_of_a_large_file(small, tmp_path):
    file = tmp_path / "picture.png"
    file.write_bytes(encoded("RGB", "PNG"))
    small()
    with file.open("r+b") as original, read_content(original) as content:
        original.truncate(100)
        assert content.read() == encoded("RGB", "PNG")
        np.testing.assert_array_equal(read_image(content), RGB)


def test_a_full_disk_is_told_before_it_ends_the_process(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(NoRoom, match=r"of 1,200 bytes in .* \(No space left on .*\); set TMPDIR"):
        spooled((10, 10, 3), np.float32)


def test_a_folder_of_temporary_files_that_is_gone_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(spool.tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(NoRoom, match=r"gone \(No such file or directory\); set TMPDIR"):
        spooled((10, 10, 3), np.float32)


def test_released_pixels_are_what_they_were(small):
    small()
    pixels = read_image(encoded("RGB", "PNG"))
    pixels[0, 0] = 7
    spool.release(pixels[3:])
    assert pixels[0, 0].tolist() == [7, 7, 7]
    np.testing.assert_array_equal(pixels[1:], RGB[1:])


def test_a_large_image_is_made_small_by_bands_as_at_once(small):
    pixels = np.tile(RGB, (8, 5, 1))
    expected = Image.fromarray(pixels).reduce(12)
    small(20_000)
    made = shrunk(pixels, 20)
    assert made.size == expected.size
    np.testing.assert_array_equal(np.asarray(made), np.asarray(expected))
