"""The tutorial's way, end to end: what people write first, and what patchstore is compared with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import psycopg
import torch
from pgvector import Vector
from pgvector.psycopg import register_vector
from torch import nn

from extractor.device import choose_device
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .bare import Array, normalised


@dataclass(frozen=True)
class Tutorial:
    """What the tutorial's way did in how long."""

    images: int
    patches: int
    seconds: float


def run_tutorial(
    url: str, files: Sequence[Path], spec: FeatureSpec, network: nn.Module
) -> Tutorial:
    """Reads, cuts, computes and inserts as tutorials do; images smaller than a patch give none."""
    from skimage.io import imread
    from skimage.util import view_as_windows

    device = choose_device(ExtractorSettings().device)
    network = network.to(device).to(memory_format=torch.contiguous_format)
    size, stride = spec.patch_size, spec.stride
    patches = 0
    with psycopg.connect(url, autocommit=True) as connection, torch.inference_mode():
        register_vector(connection)
        connection.execute(
            "CREATE TABLE tutorial (id bigserial PRIMARY KEY, uri text, x integer, y integer, "
            f"embedding vector({spec.dim}))"
        )
        begun = time.perf_counter()
        for file in files:
            pixels = cast(Array, imread(file))
            if pixels.ndim != 3 or min(pixels.shape[:2]) < size:
                continue
            windows = view_as_windows(pixels[..., :3], (size, size, 3), (stride, stride, 3))
            for row, column in np.ndindex(windows.shape[:2]):
                patch = normalised([windows[row, column, 0]], spec).to(device)
                vector = network(patch).flatten().cpu().numpy()
                connection.execute(
                    "INSERT INTO tutorial (uri, x, y, embedding) VALUES (%s, %s, %s, %s)",
                    (str(file), column * stride, row * stride, Vector(vector)),
                )
                patches += 1
        return Tutorial(len(files), patches, time.perf_counter() - begun)
