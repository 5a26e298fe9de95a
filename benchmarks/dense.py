"""The mode dense beside the mode exact: how fast at which stride, and how good the vectors are.

- Speed: patches a second of the extractor alone over --at-once images of noise of --size pixels, at
  strides of 1, 1/2, 1/4 and 1/8 of a patch, both computed in --way, in turn. Exact only up to
  1/4: it takes as long a patch at any stride.
- Quality: for every folder of --labelled, whose subfolders are classes, the accuracy of a k-NN vote
  over patches (cosine, k = 10, weighted by similarity), where no patch of the same image may vote.
  Asked for: dense within one point of exact, or better.

    python -m benchmarks.dense --backbone resnet18 --weights random:0
    python -m benchmarks.dense --labelled FOLDER --weights FILE --patch-size 112 --stride 56
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from extractor.arrays import DecodedImage, PatchFeatures
from extractor.backbone import resolve
from extractor.device import Way
from extractor.features import FeatureExtractor
from extractor.grid import spec_grid
from patchstore.bench import home as homes
from patchstore.bench.bare import decode
from patchstore.bench.report import table

K = 10
ROUNDS = 5
IMAGES_AT_ONCE = 16


def main() -> None:
    """Prints the tables."""
    parser = homes.parser(__doc__, images_required=False)
    parser.add_argument("--size", type=int, nargs=2, default=(1536, 1024), metavar=("W", "H"))
    parser.add_argument("--at-once", type=int, default=4, help="images a call, as a run has many")
    parser.add_argument("--way", type=Way.parse, default=Way(), help="such as: bf16 by openvino")
    parser.add_argument("--labelled", type=Path, nargs="*", default=[], metavar="FOLDER")
    arguments = parser.parse_args()
    options = homes.spec_options(arguments)
    print(
        table(
            ("stride", "patches", "exact, s", "dense, s", "dense, patches/s", "times"),
            [
                _speed(options, part, tuple(arguments.size), arguments.way, arguments.at_once)
                for part in (1, 2, 4, 8)
            ],
        ),
        end="\n\n",
    )
    lines = []
    for folder in arguments.labelled:
        for mode in ("exact", "dense"):
            lines.append([folder.name, mode, *_quality(folder, options, mode)])
    if lines:
        print(table(("pictures", "mode", "patches", "seconds", f"{K}-NN accuracy"), lines))


def _extractor(options: homes.SpecOptions, mode: str, way: Way) -> FeatureExtractor:
    resolved = resolve(replace(options, mode=mode).recipe())
    return FeatureExtractor(
        resolved.spec, resolved.backbone, precision=way.precision, runtime=way.runtime
    )


def _speed(
    options: homes.SpecOptions, part: int, size: tuple[int, int], way: Way, at_once: int
) -> list[str]:
    options = replace(options, stride=options.patch_size // part)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    modes = ("exact", "dense") if part < 8 else ("dense",)
    extractors = {mode: _extractor(options, mode, way) for mode in modes}
    image = DecodedImage(noise, spec_grid(extractors["dense"].spec, *size))
    images = [image] * at_once
    patches = len(image.grid) * at_once
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    for extractor in extractors.values():
        extractor.extract(images)
    for _ in range(ROUNDS):
        for mode, extractor in extractors.items():
            begun = time.perf_counter()
            extractor.extract(images)
            seconds[mode].append(time.perf_counter() - begun)
    dense = float(np.median(seconds["dense"]))
    exact = float(np.median(seconds["exact"])) if "exact" in seconds else None
    return [
        f"1/{part}",
        f"{patches:,}",
        f"{exact:.2f}" if exact else "",
        f"{dense:.2f}",
        f"{patches / dense:.0f}",
        f"{exact / dense:.1f}" if exact else "",
    ]


def _quality(folder: Path, options: homes.SpecOptions, mode: str) -> list[str]:
    extractor = _extractor(options, mode, Way())
    pictures = [
        (file.parent.name, image)
        for file in homes.image_files(folder)
        for image in decode([file], extractor.spec)
    ]
    classes = sorted({name for name, _ in pictures})
    vectors, owners, labels = [], [], []
    begun = time.perf_counter()
    for start in range(0, len(pictures), IMAGES_AT_ONCE):
        some = pictures[start : start + IMAGES_AT_ONCE]
        results = extractor.extract([image for _, image in some])
        for number, ((name, _), found) in enumerate(zip(some, results, strict=True), start):
            if isinstance(found, PatchFeatures):
                vectors.append(found.vectors)
                owners += [number] * len(found.vectors)
                labels += [classes.index(name)] * len(found.vectors)
    seconds = time.perf_counter() - begun
    share = accuracy(np.concatenate(vectors), np.array(owners), np.array(labels))
    return [f"{len(owners):,}", f"{seconds:.0f}", f"{share:.1%}"]


def accuracy(
    vectors: NDArray[np.float32], owners: NDArray[np.int64], labels: NDArray[np.int64]
) -> float:
    """The share of unit vectors (N, D) whose K nearest of other images vote for its class."""
    every, owner, label = map(torch.from_numpy, (vectors, owners, labels))
    right = 0
    for start in range(0, len(every), 1000):
        rows = slice(start, start + 1000)
        similar = every[rows] @ every.T
        similar[owner[rows, None] == owner] = -torch.inf
        nearest = similar.topk(K)
        votes = torch.zeros(len(nearest.indices), int(label.max()) + 1)
        votes.scatter_add_(1, label[nearest.indices], nearest.values)
        right += int((votes.argmax(1) == label[rows]).sum())
    return right / len(every)


if __name__ == "__main__":
    main()
