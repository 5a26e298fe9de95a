"""The pictures that are measured over: a person's own, or made up."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from extractor.errors import ImageError
from extractor.images import digest, read_image, read_size
from patchstore.errors import BenchError

from .home import find_images, spread

MADE_UP_SIZE = (640, 480)
QUALITY = 92  # of JPEG


@dataclass(frozen=True)
class Pictures:
    """The images of a benchmark.

    Attributes:
        files: they.
        folder: that has them and nothing else.
        warm_up: a folder with another one, for what is done once.
        sizes: width and height of each.
    """

    files: Sequence[Path]
    folder: Path
    warm_up: Path
    sizes: Sequence[tuple[int, int]]

    @property
    def decoded_mb(self) -> float:
        """Their pixels, 3 bytes each."""
        return sum(width * height * 3 for width, height in self.sizes) / 1e6


def copied(original: Path, limit: int, work: Path) -> Pictures:
    """Copies of pictures of a folder, in a folder below `work`.

    Broken ones are left out, and so are those with the content of another: patchstore alone would
    compute it once.

    Raises BenchError where there are none.
    """
    folder = _folder(work, "pictures")
    found = find_images(original)
    seen: set[bytes] = set()
    for number, file in enumerate(spread(found, limit)):
        try:
            read_image(file)
            with file.open("rb", buffering=0) as opened:
                content = digest(opened)
        except (ImageError, OSError):
            continue
        if content in seen:
            continue
        seen.add(content)
        shutil.copyfile(file, folder / f"{number:06}{file.suffix}")
    if not any(folder.iterdir()):
        reason = "no image of it can be read" if found else "there are no images"
        raise BenchError(f"{original}: {reason}; give a folder with some, or none")
    return _pictures(folder, work)


def made_up(count: int, work: Path) -> Pictures:
    """Clouds of colour, the same ones each time."""
    folder = _folder(work, "pictures")
    for number in range(count):
        _cloud(number).save(folder / f"{number:06}.jpg", quality=QUALITY)
    return _pictures(folder, work)


def cut_out(pictures: Pictures, side: int, count: int, work: Path) -> Pictures:
    """Pictures of one patch each, cut at random out of others."""
    folder = _folder(work, f"{count}-of-one-patch")
    random = np.random.default_rng(count)
    for number in range(count):
        if number % 32 == 0:  # a picture gives some, for it is decoded each time
            pixels = _at_least(read_image(pictures.files[number // 32 % len(pictures.files)]), side)
        y, x = (int(random.integers(0, extent - side + 1)) for extent in pixels.shape[:2])
        patch = Image.fromarray(pixels[y : y + side, x : x + side])
        patch.save(folder / f"{number:06}.jpg", quality=QUALITY)
    return _pictures(folder, work)


def _at_least(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((max(side, width), max(side, height))))


def _cloud(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(MADE_UP_SIZE, Image.Resampling.BICUBIC)


def _folder(work: Path, name: str) -> Path:
    folder = work / name
    folder.mkdir()
    return folder


def _pictures(folder: Path, work: Path) -> Pictures:
    warm_up = work / "warm-up"
    if not warm_up.exists():
        warm_up.mkdir()
        _cloud(-1 & 0xFFFF).save(warm_up / "cloud.jpg", quality=QUALITY)
    files = sorted(folder.iterdir())
    return Pictures(files, folder, warm_up, [read_size(file) for file in files])
