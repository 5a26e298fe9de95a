"""Decoders of JPEG side by side: what reading a picture costs, and whether pixels are the same.

`read_image` is what runs; Pillow by itself is what it stands on; torchvision's decoder is the other
one that is installed anyway. Draft mode is Pillow's way to decode fewer pixels of a JPEG: at the
scale that patches are cut from it decodes as always, and at any other the pixels are others. One
thread, milliseconds a picture, each way once a round in turn; the fastest round counts.

    python -m benchmarks.decode --images FOLDER
"""

import io
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from extractor.images import read_image
from patchstore.bench import home as homes
from patchstore.bench.report import table

ROUNDS = 7
PICTURES = 100

Pixels = NDArray[np.uint8]


def main() -> None:
    """Measures and prints."""
    arguments = homes.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    jpegs = [file for file in homes.image_files(arguments.images) if file.suffix == ".jpg"]
    contents = [file.read_bytes() for file in homes.spread(jpegs, PICTURES)]
    ways: dict[str, Callable[[bytes], Pixels]] = {
        "read_image": read_image,
        "Pillow": by_pillow,
        "torchvision": by_torchvision,
    }
    fastest = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, decode in ways.items():
            begun = time.perf_counter()
            for content in contents:
                decode(content)
            fastest[name] = min(fastest[name], time.perf_counter() - begun)
    expected = [read_image(content) for content in contents]
    lines = []
    for name, decode in ways.items():
        same = sum(
            np.array_equal(decode(content), pixels)
            for content, pixels in zip(contents, expected, strict=True)
        )
        lines.append((name, f"{1000 * fastest[name] / len(contents):.2f}", f"{same}"))
    print(table(("decoder", "ms a picture", "of the same pixels"), lines))
    pixels = sum(pixels.size for pixels in expected) / 3e6 / len(expected)
    print(f"\n{len(contents)} JPEG files of {pixels:.2f} megapixels on average")


def by_pillow(content: bytes) -> Pixels:
    """Without orientation, limits and clear errors."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def by_torchvision(content: bytes) -> Pixels:
    """As RGB, (H, W, 3)."""
    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels: Pixels = decode_jpeg(encoded, mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
    return pixels


if __name__ == "__main__":
    main()
