"""Decoded images -> feature vectors."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from .arrays import DecodedImage, PatchFeatures, Region
from .backbone import Backbone
from .dense import DensePass, Pixels
from .device import DTYPES, FLOAT32, ONNX, TORCH, Way, check_device_precision, choose_device
from .errors import DegenerateFeatures, DeviceError, ImageError, SpecError
from .grid import PatchGrid
from .network import CutNetwork, DenseNetwork
from .spec import FeatureSpec

log = logging.getLogger(__name__)

_LARGEST_HALF = 65504.0  # the store's index is of halves


class FeatureExtractor:
    """A spec on a device.

    Threads may share one: forward passes take turns.

    Attributes:
        spec: whose vectors these are.
        device: that computes.
        way: in which precision it computes, and what runs the network.
        batch_size: patches a forward pass; halved for good when the device's memory runs out, and
            so are the tiles of a dense spec.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        backbone: Backbone,
        *,
        device: str = "auto",
        precision: str = FLOAT32,
        runtime: str = TORCH,
        batch_size: int = 32,
        dense_tile: int = 2048,
    ) -> None:
        """Bring a network to its device; the backbone itself is left as it is.

        Raises:
            DeviceError: when device or precision are not there, or the runtime cannot be used.
            SpecError: when `batch_size` is below 1.
        """
        if batch_size < 1:
            raise SpecError(f"batch_size is {batch_size}; give at least 1 patch")
        self.spec = spec
        self.device = choose_device(device)
        check_device_precision(precision, self.device)
        self.way = Way(precision, runtime)
        self.batch_size = batch_size
        shared = self.device.type == "cpu" and precision == FLOAT32
        folded = backbone.folded(spec.side)
        network = folded if shared else copy.deepcopy(folded)
        self._network = cast(CutNetwork, network.to(self.device))
        if precision != FLOAT32:
            _cast_once(self._network, DTYPES[precision])
        # (x / 255 - mean) / std as one product and one sum, for the values of a row of pixels.
        mean, std = (np.tile(values, spec.side) for values in (spec.mean, spec.std))
        self._factor = torch.from_numpy(1 / (255 * std)).float().to(self.device)
        self._offset = torch.from_numpy(-mean / std).float().to(self.device)
        self._buffer: Tensor | None = None
        self._turn = threading.Lock()
        self._dense = self._dense_pass(backbone, dense_tile) if spec.mode == "dense" else None
        self._run: Callable[[Tensor], Tensor] = self._network
        if runtime == ONNX:
            if self.device.type != "cpu" or precision != FLOAT32 or spec.mode == "dense":
                raise DeviceError(f"{ONNX} runs the mode exact on the CPU in float32 only")
            self._run = backbone.by_onnx(spec.side)

    def extract(self, images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        """Compute the vectors of several images, their patches packed into full batches.

        Returns:
            One result an image, same order; `DegenerateFeatures` for an image whose vectors
            cannot be stored, which leaves the others as they are.

        Raises:
            ImageError: when pixels are not of this shape, dtype, or their grid's size.
            torch.OutOfMemoryError: when the device cannot hold a single patch.
        """
        if not images:
            return []
        for image in images:
            _check_pixels(image.pixels, image.grid)
        counts = [len(image.grid) for image in images]
        vectors = self._vectors(
            [image.pixels for image in images],
            np.repeat(np.arange(len(images)), counts),
            np.concatenate([self._cuts(image.grid) for image in images]),
        )
        rows = np.split(vectors, np.cumsum(counts)[:-1])
        return [self._result(image, own) for image, own in zip(images, rows, strict=True)]

    def _cuts(self, grid: PatchGrid) -> NDArray[np.int32]:
        """Windows, which may reach beyond the image, or the boxes inside it that are pooled."""
        return grid.windows if self._dense is None else grid.boxes

    def embed(self, region: Region) -> NDArray[np.float32]:
        """Compute the vector of one region, as if it were a patch.

        Exact: a region of another size than the patch is resized to the network's input, whatever
        its proportions. Dense: it is pooled from its picture as it is.

        Returns:
            float32 (D,), normalised as the spec's vectors are.

        Raises:
            DegenerateFeatures: when the vector cannot be compared.
            ImageError: when these are not such pixels.
        """
        (vector,) = self.embed_many([region])
        if isinstance(vector, ImageError):
            raise vector
        return vector

    def embed_many(self, regions: Sequence[Region]) -> list[NDArray[np.float32] | ImageError]:
        """Compute the vectors of several regions in shared batches, each as `embed` does.

        Returns:
            One vector a region, same order; `DegenerateFeatures` where it cannot be compared.

        Raises:
            ImageError: when one of them is not RGB uint8 (H, W, 3).
        """
        if not regions:
            return []
        for region in regions:
            _check_pixels(region.picture)
        boxes = np.array([region.box for region in regions], dtype=np.int32).reshape(-1, 4)
        if self._dense is None:  # a patch by itself needs nothing of its picture but its own pixels
            boxes[:, :2] = 0
            raw = self._vectors([region.pixels for region in regions], np.arange(len(boxes)), boxes)
        else:
            pictures = {id(region.picture): region.picture for region in regions}
            at = {key: i for i, key in enumerate(pictures)}
            owner = np.array([at[id(region.picture)] for region in regions], dtype=np.int64)
            raw = self._vectors(list(pictures.values()), owner, boxes)
        return [self._vector(row) for row in raw]

    def _vector(self, raw: NDArray[np.float32]) -> NDArray[np.float32] | ImageError:
        try:
            vector: NDArray[np.float32] = _normalised(raw[None], self.spec)[0]
        except DegenerateFeatures as error:
            return error
        return vector

    def _result(
        self, image: DecodedImage, vectors: NDArray[np.float32]
    ) -> PatchFeatures | ImageError:
        try:
            vectors = _normalised(vectors, self.spec)
        except DegenerateFeatures as error:
            return error
        return PatchFeatures(image.grid.boxes, image.grid.scales, vectors)

    def _vectors(
        self,
        images: Sequence[NDArray[np.uint8]],
        owner: NDArray[np.int64],
        windows: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """Run windows (N, 4), each of the image `owner` (N,), to raw vectors (N, D)."""
        if self._dense is not None:
            return self._dense_vectors(self._dense, images, owner, windows)
        vectors = np.empty((len(windows), self.spec.dim), dtype=np.float32)
        held: dict[int, Tensor] = {}  # each image is moved to the device once
        start = 0
        while start < len(windows):
            with self._turn:
                batch = slice(start, start + self.batch_size)
                owners = owner[batch].tolist()
                try:
                    held = {
                        i: held[i] if i in held else self._on_device(images[i])
                        for i in dict.fromkeys(owners)
                    }
                    patches = self._cut([held[i] for i in owners], windows[batch].tolist())
                    vectors[batch] = self.forward(patches).cpu().numpy()
                except torch.OutOfMemoryError:
                    self._shrink(len(owners))
                else:
                    start = batch.stop
        return vectors

    @torch.inference_mode()
    def _dense_vectors(
        self,
        dense: DensePass,
        images: Sequence[NDArray[np.uint8]],
        owner: NDArray[np.int64],
        windows: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        assert isinstance(self._network, DenseNetwork)
        while True:
            with self._turn:
                try:
                    # In float32: autocast would round the share of a cell that a box covers.
                    pooled = dense.pooled([self._on_device(p) for p in images], owner, windows)
                    with self._arithmetic():
                        vectors: NDArray[np.float32] = self._network.vectors(pooled).cpu().numpy()
                except torch.OutOfMemoryError:
                    if dense.tile // 2 < dense.smallest_tile:
                        raise
                    dense.tile //= 2
                    log.warning("%s is out of memory, tiles are now of %d", self.device, dense.tile)
                else:
                    return vectors

    def _maps(self, images: Sequence[Tensor], rectangles: Sequence[Pixels]) -> Tensor:
        """The feature maps of rectangles of one size, each of one image, float32 (N, C, h, w)."""
        regions = [
            _region(image, (at.x, at.y, at.width, at.height))
            for image, at in zip(images, rectangles, strict=True)
        ]
        batch = torch.stack(regions).float()
        rows = batch.view(*batch.shape[:2], -1)
        factor, offset = (row[:3].repeat(batch.shape[2]) for row in (self._factor, self._offset))
        torch.addcmul(offset, rows, factor, out=rows)
        with self._arithmetic():
            return self._network.features(batch.permute(0, 3, 1, 2)).float()

    def _on_device(self, pixels: NDArray[np.uint8]) -> Tensor:
        # torch warns of arrays it may not write to.
        return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device)

    def _cut(self, images: Sequence[Tensor], windows: Sequence[Sequence[int]]) -> Tensor:
        """Cut one window of each image into a normalised batch, float32 (n, 3, S, S).

        The pixels of an image lie channels last, and so does the batch. It is valid until the next
        call: a fresh one costs as much in page faults as everything else here (3 ms a batch of 32).
        """
        side = self.spec.side
        if self._buffer is None or len(self._buffer) < len(windows):
            self._buffer = torch.empty((len(windows), side, side, 3), device=self.device)
        batch = self._buffer[: len(windows)]
        for patch, image, window in zip(batch, images, windows, strict=True):
            region = _region(image, window)
            patch.copy_(region if region.shape == patch.shape else _resized(region, side))
        # Broadcasting over whole rows of pixels takes a fifth of the time of triples.
        rows = batch.view(len(windows), side, side * 3)
        torch.addcmul(self._offset, rows, self._factor, out=rows)
        return batch.permute(0, 3, 1, 2)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """Run a normalised batch, (N, 3, S, S), to raw vectors float32 (N, D); the bare pass."""
        with self._arithmetic():
            vectors = self._run(batch)
        return vectors.float()

    def _dense_pass(self, backbone: Backbone, tile: int) -> DensePass:
        shapes = copy.deepcopy(backbone.network).to("meta")
        side = self.spec.side

        @lru_cache(maxsize=1024)
        def count(length: int) -> int:
            probe = torch.empty(1, 3, side, length, device="meta")
            return int(cast(DenseNetwork, shapes).features(probe).shape[3])

        pixels = self.batch_size * side * side
        return DensePass(
            self.spec.pooling,
            backbone.field,
            backbone.smallest,
            self._maps,
            count,
            tile,
            pixels,
            self.device,
        )

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.way.precision != FLOAT32:
            return torch.autocast(self.device.type, DTYPES[self.way.precision])
        if self.device.type == "cuda":
            # By default cuDNN rounds float32 convolutions to TF32: 1e-3 off.
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return ExitStack()

    def _shrink(self, patches: int) -> None:
        """Halve the batch after a pass over `patches` ran out of memory; called while handling."""
        if patches <= 1:
            raise
        self.batch_size = max(1, patches // 2)
        self._buffer = None
        log.warning("%s is out of memory, batch_size is now %d", self.device, self.batch_size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _cast_once(network: nn.Module, dtype: torch.dtype) -> None:
    """Keep the weights that autocast would convert in every pass as it would have them."""
    for module in network.modules():
        # Exactly these: attention reads the weights of its own kind of Linear itself.
        if type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)


def reflect(start: int, length: int, limit: int) -> NDArray[np.int64]:
    """Index `length` pixels from `start` on along an axis of `limit`, reflected at its ends.

    The same as `np.pad(mode="reflect")`, for any length: the edge pixel is not repeated.

    Returns:
        int64 (length,), each in 0..limit - 1.
    """
    if limit == 1:
        return np.zeros(length, dtype=np.int64)
    period = 2 * (limit - 1)
    at = np.arange(start, start + length, dtype=np.int64) % period
    return np.minimum(at, period - at)


def _check_pixels(pixels: NDArray[np.uint8], grid: PatchGrid | None = None) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError(
            f"pixels are {pixels.dtype} {pixels.shape}, not RGB uint8 (H, W, 3); use read_image"
        )
    if grid is not None and (grid.height, grid.width) != pixels.shape[:2]:
        raise ImageError(
            f"pixels are {pixels.shape[1]} x {pixels.shape[0]}, their grid is of {grid.width} x "
            f"{grid.height}; make it of the image's own size"
        )


def _region(image: Tensor, window: Sequence[int]) -> Tensor:
    x, y, width, height = window
    region = image[y : y + height, x : x + width]
    if region.shape[:2] == (height, width):
        return region
    rows = torch.from_numpy(reflect(y, height, image.shape[0])).to(image.device)
    columns = torch.from_numpy(reflect(x, width, image.shape[1])).to(image.device)
    return image.index_select(0, rows).index_select(1, columns)


def _resized(region: Tensor, side: int) -> Tensor:
    """Resize uint8 (h, w, 3) to float32 (side, side, 3), in floats and without aliasing."""
    floats = region.permute(2, 0, 1)[None].float()
    resized = F.interpolate(
        floats, size=(side, side), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].permute(1, 2, 0)


def _normalised(vectors: NDArray[np.float32], spec: FeatureSpec) -> NDArray[np.float32]:
    """Scale raw vectors (N, D) as the spec's metric asks, in place.

    Raises:
        DegenerateFeatures: when one of them is not finite, zero, or beyond a half.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        kind = "a vector of zeros" if norms[bad[0]] == 0 else "a vector that is not finite"
        raise DegenerateFeatures(
            f"the network gave {kind} for {len(bad)} of {len(vectors)} patches; use the precision "
            "float32 if it was lower, or another layer"
        )
    if spec.metric == "cosine":
        vectors /= norms
    elif (largest := float(np.abs(vectors).max())) > _LARGEST_HALF:
        raise DegenerateFeatures(
            f"the network gave a value of {largest:g}, more than the {_LARGEST_HALF:g} that can be "
            "indexed; use the metric cosine"
        )
    return vectors
