"""The network of a spec by itself, over patches that are ready: the ceiling of every way."""

import copy
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extractor.allocator import keep_freed_memory
from extractor.arrays import DecodedImage
from extractor.backbone import Backbone, resolve
from extractor.compiled import compiled
from extractor.device import COMPILED, DTYPES, EXPORTED, Way, arithmetic, choose_device
from extractor.errors import ImageError
from extractor.grid import spec_grid
from extractor.images import read_image
from extractor.network import cast_once
from extractor.onnx import ExportedNetwork
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .energy import Energy
from .home import SpecOptions
from .peak import flops_a_patch, peak_flops, wait_for

PREPARED_BATCHES = 8
WARM_UP_BATCHES = 3
MAX_DRIFT = 0.1  # of the bare pass, from the beginning to the end
MIN_CORES_SHARE = 0.9

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Pass:
    """One measurement of the bare forward pass: what it did, processor cores in use, and joules."""

    patches: int
    seconds: float
    cores: float
    joules: float | None

    @property
    def rate(self) -> float:
        """Patches a second."""
        return self.patches / self.seconds


@dataclass(frozen=True)
class Bare:
    """The network by itself, with patches ready to be computed."""

    network: Callable[[Tensor], Tensor]
    batches: list[Tensor]
    way: Way
    device: torch.device

    def measure(self, seconds: float) -> Pass:
        """Runs the prepared batches round and round for at least so long."""
        patches = sum(map(len, self.batches))
        with torch.inference_mode(), arithmetic(self.way, self.device):
            run(self.network, self.batches[:WARM_UP_BATCHES])
            wait_for(self.device)
            energy = Energy()
            done, begun, used = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - begun < seconds:
                run(self.network, self.batches)
                wait_for(self.device)
                done += patches
            wall = time.perf_counter() - begun
            return Pass(done, wall, (time.process_time() - used) / wall, energy.joules())


def run(network: Callable[[Tensor], Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
    """The vectors of batches of one size, in order; an exported network runs several at once."""
    if not isinstance(network, ExportedNetwork):
        return [network(batch) for batch in batches]
    size = network.share(len(batches[0]))
    parts = [part for batch in batches for part in torch.split(batch, size)]
    return list(network.map(lambda part: part, parts))


def decode(files: Sequence[Path], spec: FeatureSpec) -> list[DecodedImage]:
    """Reads images as the flow does; broken ones are left out."""
    decoded = []
    for file in files:
        try:
            pixels = read_image(file)
            height, width = pixels.shape[:2]
            grid = spec_grid(spec, width, height)
        except ImageError:
            continue
        decoded.append(DecodedImage(pixels, grid))
    return decoded


def prepare(
    spec: FeatureSpec, backbone: Backbone, sample: Sequence[DecodedImage], way: Way
) -> Bare:
    """Makes full batches of normalised patches of the sample's images, for the plain network.

    Raises ImageError where no patch of the sample is as large as the network's input.
    """
    settings = ExtractorSettings()
    device = choose_device(settings.device)
    inside = [
        patch
        for image in sample
        for patch in cut(image.pixels, image.grid.windows.tolist(), spec.side)
    ]
    if not inside:
        raise ImageError(f"no patch of {spec.side} x {spec.side} pixels in {len(sample)} images")
    wanted = settings.batch_size * PREPARED_BATCHES
    prepared = normalised([inside[i % len(inside)] for i in range(wanted)], spec).to(device)
    prepared = prepared.contiguous(memory_format=torch.channels_last)
    batches = list(torch.split(prepared, settings.batch_size))
    return Bare(backbone.network.to(device), batches, way, device)


def as_the_flow_runs_it(bare: Bare, spec: FeatureSpec, backbone: Backbone) -> Bare:
    """The same pass by the runtime of its way, batch norms folded, its weights converted once."""
    if bare.way.runtime in EXPORTED:
        return replace(bare, network=backbone.exported(spec.side, bare.way.runtime))
    folded = copy.deepcopy(backbone.folded(spec.side)).to(bare.device)
    if bare.way.precision in DTYPES:
        cast_once(folded, DTYPES[bare.way.precision])
    return replace(bare, network=compiled(folded) if bare.way.runtime == COMPILED else folded)


def cores_to_use(device: torch.device) -> int:
    """Those that a forward pass asks for; 0 where a GPU runs it."""
    if device.type == "cuda":
        return 0
    return min(torch.get_num_threads(), len(os.sched_getaffinity(0)))


def cut(pixels: Array, windows: Sequence[Sequence[int]], side: int) -> Iterator[Array]:
    """The windows that lie inside the image and need no resize."""
    for x, y, width, height in windows:
        patch = pixels[y : y + height, x : x + width]
        if patch.shape == (side, side, 3):
            yield patch


def normalised(patches: Sequence[Array], spec: FeatureSpec) -> Tensor:
    """float32 (N, 3, S, S) of uint8 patches (S, S, 3), as torchvision normalises them."""
    pixels = torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    return (pixels - mean) / std


@dataclass(frozen=True)
class Alone:
    """A bare pass, and its share of the device's arithmetic peak, 0 to 1."""

    done: Pass
    of_peak: float


def run_alone(
    files: Sequence[Path], options: SpecOptions, name: str, as_it_is: bool, seconds: float
) -> Alone:
    """Prepares patches of images and measures one way; `as_it_is`: as torchvision has the network.

    Raises:
        DeviceError: the way does not work here.
        ImageError: no patch is as large as the network's input.
    """
    keep_freed_memory()
    resolved = resolve(options.recipe())
    spec, backbone = resolved.spec, resolved.backbone
    bare = prepare(spec, backbone, decode(files, spec), Way.parse(name))
    flops = flops_a_patch(backbone.network, spec.side)
    if not as_it_is:
        bare = as_the_flow_runs_it(bare, spec, backbone)
    done = bare.measure(seconds)
    return Alone(done, done.rate * flops / peak_flops(bare.way, bare.device))
