"""Pictures are read as a person sees them."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from extractor import colour
from extractor.errors import ImageTooLarge
from extractor.images import read_image, read_size

RAMP = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
STORED = {  # how a camera held so stores an upright picture
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_turned_upright(orientation, kind):
    upright = Image.fromarray(np.kron(RAMP[:4, :6], np.ones((16, 16, 1), np.uint8)))
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(stored, kind, exif=oriented(orientation), **options.get(kind, {}))
    pixels = read_image(data)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).max() <= (4 if kind == "JPEG" else 0)
    assert read_size(data) == upright.size == pixels.shape[1::-1]


def test_exif_behind_the_pixels_of_a_png_turns_it_as_well():
    plain = encoded(Image.fromarray(RAMP))
    late = plain[:-12] + chunk(b"eXIf", oriented(6).tobytes()[6:]) + plain[-12:]
    assert read_size(late) == (20, 30)
    assert (read_image(late) == np.rot90(RAMP, -1)).all()


def test_broken_exif_costs_the_turn_and_not_the_picture():
    data = encoded(Image.fromarray(RAMP), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f")
    assert (read_image(data) == RAMP).all()
    assert read_size(data) == (30, 20)


def test_rgb_comes_back_as_it_is_and_may_be_written_to():
    pixels = read_image(encoded(Image.fromarray(RAMP)))
    assert (pixels == RAMP).all()
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_a_path_is_read_as_its_bytes_are(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(RAMP)))
    assert (read_image(path) == RAMP).all()
    assert read_size(path) == (30, 20)


def test_a_palette_is_looked_up():
    image = Image.fromarray(RAMP).quantize(16)
    assert (read_image(encoded(image)) == np.asarray(image.convert("RGB"))).all()


def test_a_transparent_colour_of_a_palette_is_white():
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 10, 10])
    image.putpixel((0, 0), 0)
    for data in (encoded(image, transparency=0), encoded(image, "GIF", transparency=0)):
        pixels = read_image(data)
        assert pixels[0, 0].tolist() == [255, 255, 255]
        assert pixels[1, 1].tolist() == [200, 10, 10]


def test_a_palette_with_degrees_of_transparency_is_laid_on_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    assert read_image(encoded(image, transparency=bytes([255, 128])))[0, :, 0].tolist() == [0, 127]


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_alpha_is_laid_on_white(mode):
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (90, 90, 90, 0))
    assert read_image(encoded(image.convert(mode)))[0, :, 1].tolist() == [0, 127, 255]


def test_a_transparent_colour_of_grey_and_rgb_is_white():
    grey = read_image(encoded(Image.fromarray(RAMP[..., 0]), transparency=9))
    assert (grey[RAMP[..., 0] == 9] == 255).all()
    rgb = read_image(encoded(Image.fromarray(RAMP), transparency=tuple(RAMP[0, 0].tolist())))
    assert (rgb[0, 0] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind):
    ink = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = read_image(encoded(ink, kind)).reshape(-1, 3).mean(0)
    assert red[0] > 250 and red[1] < 5 and red[2] < 5


def test_black_and_white_and_grey_become_rgb():
    assert set(read_image(encoded(Image.new("1", (3, 3), 1))).ravel().tolist()) == {255}
    assert (read_image(encoded(Image.fromarray(RAMP[..., 0]))) == RAMP[..., :1]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_are_scaled_and_not_clipped(kind):
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    pixels = read_image(encoded(Image.fromarray(values), kind))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_sixteen_bits_of_which_the_highest_value_is_black_are_turned():
    file = io.BytesIO()
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    tifffile.imwrite(file, values, photometric="miniswhite")
    assert read_image(file.getvalue())[0, :, 0].tolist() == [255, 254, 127, 0]


def test_twelve_bits_of_grey_are_scaled_by_what_twelve_bits_hold():
    """As microscopes write them; by hand, for no library here does."""
    packed = bytes([0x00, 0x00, 0x10, 0x80, 0x0F, 0xFF])  # 0, 16, 2048, 4095
    one, two = struct.Struct("<HHIHxx"), struct.Struct("<HHII")
    fields = [
        *(one.pack(256, 3, 1, 4), one.pack(257, 3, 1, 1), one.pack(258, 3, 1, 12)),
        *(one.pack(259, 3, 1, 1), one.pack(262, 3, 1, 1), two.pack(273, 4, 1, 8)),
        *(one.pack(277, 3, 1, 1), one.pack(278, 3, 1, 1), two.pack(279, 4, 1, len(packed))),
    ]
    directory = struct.pack("<H", len(fields)) + b"".join(fields) + bytes(4)
    data = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed + directory
    assert read_image(data)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(("most", "value", "expected"), [(65535, 200, 1), (1000, 500, 128)])
def test_a_pgm_is_scaled_by_the_maximum_that_it_declares(most, value, expected):
    data = b"P5 1 1 %d\n" % most + struct.pack(">H", value)
    assert read_image(data)[0, 0, 0] == expected


def test_a_transparent_value_of_sixteen_bits_is_white():
    plain = encoded(Image.fromarray(np.array([[0, 500]], dtype=np.uint16)))
    data = plain[:33] + chunk(b"tRNS", struct.pack(">H", 0)) + plain[33:]
    assert read_image(data)[0, :, 0].tolist() == [255, 2]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([np.nan, np.inf, 1.0], [0, 0, 255]),
        ([np.nan, 1e5, 2e5], [0, 0, 255]),
        ([np.nan, np.inf, np.nan], [0, 0, 0]),
        ([7e9, 7e9, 7e9], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_the_smallest_usual_range(values, expected):
    data = encoded(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF")
    assert read_image(data)[0, :, 0].tolist() == expected


def test_wide_integers_are_scaled_by_the_smallest_usual_range():
    for values, expected in [
        ([0, 100, 255], [0, 100, 255]),
        ([0, 257, 65535], [0, 1, 255]),
        ([-(2**31), 0, 2**31 - 1], [0, 128, 255]),
    ]:
        data = encoded(Image.fromarray(np.array([values], dtype=np.int32)), "TIFF")
        assert read_image(data)[0, :, 0].tolist() == expected


def test_the_limit_that_is_told_is_the_one_that_was_given():
    header = io.BytesIO()
    Image.new("1", (40_000, 10_000)).save(header, "PNG")
    with pytest.raises(ImageTooLarge, match="more than the limit of 5000;"):
        read_image(header.getvalue(), max_pixels=5000)


def test_lab_becomes_rgb():
    lab = Image.new("LAB", (4, 4), (255, 128, 128))  # white
    assert read_image(encoded(lab, "TIFF")).min() > 245


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "LAB", "I;16", "I", "F"]
)
def test_bands_do_not_show(mode, orientation, monkeypatch):
    wide = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in wide:  # of a range that no band has
        image = Image.fromarray((RAMP[..., 0] * 200.0 - 99 * (mode != "I;16")).astype(wide[mode]))
    elif mode == "LAB":
        image = Image.frombytes("LAB", (30, 20), RAMP.tobytes())
    else:
        image = Image.fromarray(RAMP).convert("RGBA").convert(mode)
    if mode == "L":
        image.info["icc_profile"] = linear_grey_profile()
    kind = "TIFF" if mode in ("LAB", "CMYK", "I", "F", "PA") else "PNG"
    data = encoded(image, kind, exif=oriented(orientation))
    whole = read_image(data)
    monkeypatch.setattr(colour, "_BAND_PIXELS", 100)
    assert (read_image(data) == whole).all()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(read_image(data).astype(int) - [255, 0, 0]).max() <= 2


def test_an_icc_profile_is_brought_to_srgb():
    grey = Image.new("L", (4, 4), 128)
    linear = linear_grey_profile()
    pixels = read_image(encoded(grey, icc_profile=linear))
    assert 180 < pixels[0, 0, 0] < 195  # 0.5 of the light is 188 in sRGB


def test_an_srgb_profile_leaves_every_value():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (read_image(encoded(Image.fromarray(RAMP), icc_profile=profile)) == RAMP).all()


@pytest.mark.parametrize("profile", [b"rubbish", b"\0" * 200])
def test_a_broken_icc_profile_is_ignored(profile):
    assert (read_image(encoded(Image.fromarray(RAMP), icc_profile=profile)) == RAMP).all()


def test_a_profile_of_another_colour_space_is_ignored():
    data = encoded(Image.fromarray(RAMP), icc_profile=linear_grey_profile())
    assert (read_image(data) == RAMP).all()


def linear_grey_profile():
    """A grey profile whose values are amounts of light, built by hand."""
    curve = b"curv" + struct.pack(">II", 0, 0) + b"\0" * 4
    white = b"XYZ " + struct.pack(">IIII", 0, 0xF6D6, 0x10000, 0xD32D)
    tags = [(b"wtpt", white), (b"kTRC", curve)]
    table, body, at = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", 0, b"lcms", 0x04000000, b"mntr", b"GRAY", b"XYZ ")
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    head += struct.pack(">III", 0xF6D6, 0x10000, 0xD32D) + b"\0" * 48
    profile = head + table + body
    return struct.pack(">I", len(profile)) + profile[4:]
