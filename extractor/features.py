"""Decoded images -> feature vectors."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import DecodedImage, PatchFeatures, Region
from .backbone import Backbone
from .checks import check_pixels, normalised
from .compiled import compiled, filled_up
from .dense import DensePass, Rectangles
from .device import (
    COMPILED,
    DTYPES,
    EXPORTED,
    FLOAT32,
    TEAMS,
    TORCH,
    Way,
    arithmetic,
    check_device_precision,
    check_runtime,
    choose_device,
    is_out_of_memory,
    share_cores,
)
from .errors import Abandoned, DegenerateFeatures, DeviceError, ImageError, SpecError, one_line
from .grid import PatchGrid, window_of
from .network import CutNetwork, DenseNetwork, cast_once, main_part, noise
from .onnx import ExportedNetwork
from .packed import packed
from .patches import PatchCutter
from .spec import FeatureSpec
from .spool import release, spooled
from .transfer import Transfers, late
from .windows import Windows, is_large, needed_rows

_Results = list[PatchFeatures | ImageError]

log = logging.getLogger(__name__)


class FeatureExtractor:
    """A spec on a device.

    Threads may share one: forward passes take turns, `teams` of them at a time.

    Attributes:
        spec: whose vectors these are.
        device: that computes.
        way: in which precision it computes, and what runs the network.
        batch_size: patches that are computed at once, in one pass or in several side by side;
            halved for good when the device's memory runs out, and so are the tiles of a dense spec.
        teams: how many threads may compute at the same time.
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
        small_passes: bool = False,
    ) -> None:
        """Bring a network to its device; the backbone itself is left as it is.

        Args:
            spec: whose vectors are computed.
            backbone: its network.
            device: see `choose_device`.
            precision: see `candidates`.
            runtime: see `exported_ways`.
            batch_size: patches that are computed at once.
            dense_tile: side of the largest square that a dense network is given, in pixels.
            small_passes: passes of few patches are to be fast, too, as questions bring them; on a
                CPU takes the memory of the network's weights once more, and passes may be computed
                by two threads at a time.

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
        check_runtime(self.way, self.device, spec.mode)
        self.batch_size = batch_size
        plain = precision == FLOAT32 or runtime in EXPORTED
        shared = self.device.type == "cpu" and plain
        folded = backbone.folded(spec.side)
        network = folded if shared else copy.deepcopy(folded)
        self._network = cast(CutNetwork, network.to(self.device))
        if not plain:
            cast_once(self._network, DTYPES[precision])
        self._cutter = PatchCutter(spec, self.device)
        self._transfers = Transfers(self.device)
        small_passes = small_passes and shared and runtime == TORCH and spec.mode == "exact"
        self.teams = TEAMS if small_passes else 1
        self._turn = threading.Semaphore(self.teams)
        self._wanted = True
        self._run = main_part(self._network)
        if runtime in EXPORTED:
            self._run = backbone.exported(spec.side, runtime)
        if small_passes:
            share_cores(1)  # as a question has them that comes alone
            self._run = packed(self._network, noise(batch_size, spec.side))
        self._dense = self._dense_pass(backbone, dense_tile) if spec.mode == "dense" else None
        if runtime == COMPILED:
            self._compile()

    def extract(self, images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        """Compute the vectors of several images, their patches packed into full batches.

        Returns:
            One result an image, same order; `DegenerateFeatures` for an image whose vectors
            cannot be stored, which leaves the others as they are.

        Raises:
            ImageError: when pixels are not of this shape, dtype, or their grid's size.
            Exception: of the runtime's own, as where there is no memory for a single patch.
        """
        return self.begin(images)()

    def begin(self, images: Sequence[DecodedImage]) -> Callable[[], _Results]:
        """Begin what `extract` does; what is returned waits for the results, on any thread.

        An exported network computes in exact mode on threads of its own: whoever begins with the
        next images before the last ones' results are there leaves no stream idle in between.
        Otherwise everything is done in this call.

        Raises:
            As `extract`; an error of a pass, when the results are asked for.
        """
        if not images:
            return list
        for image in images:
            check_pixels(image.pixels, image.grid)
        counts = [len(image.grid) for image in images]
        vectors = self._begin(
            Windows(
                [image.pixels for image in images],
                np.repeat(np.arange(len(images)), counts),
                np.concatenate([self._cuts(image.grid) for image in images]),
            )
        )

        def results() -> _Results:
            rows = np.split(vectors(), np.cumsum(counts)[:-1])
            return [self._result(image, own) for image, own in zip(images, rows, strict=True)]

        return results

    def abandon(self) -> None:
        """End at its next pass what is being computed, and whatever is begun later: `Abandoned`."""
        self._wanted = False

    def _check_wanted(self) -> None:
        if not self._wanted:
            raise Abandoned("computing was stopped")

    def _cuts(self, grid: PatchGrid) -> NDArray[np.int32]:
        """Windows, which may reach beyond the image, or the boxes inside it that are pooled."""
        return grid.windows if self._dense is None else grid.boxes

    def embed(self, region: Region) -> NDArray[np.float32]:
        """Compute the vector of one region, as if it were a patch.

        Exact: a region of another size than the patch is resized to the network's input, whatever
        its proportions; what the spec would have cut at an edge is cut so, see `window_of`. Dense:
        it is pooled from its picture as it is.

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

    def embed_many(
        self, regions: Sequence[Region], *, teams: int | None = None
    ) -> list[NDArray[np.float32] | ImageError]:
        """Compute the vectors of several regions in shared batches, each as `embed` does.

        Args:
            regions: of which pictures.
            teams: how many threads share the cores now, each with a call like this one; by default
                this one goes on with those it has.

        Returns:
            One vector a region, same order; `DegenerateFeatures` where it cannot be compared.

        Raises:
            ImageError: when one of them is not RGB uint8 (H, W, 3).
        """
        if not regions:
            return []
        for region in regions:
            check_pixels(region.picture)
        if teams is not None:
            share_cores(teams)
        if self._dense is None:
            windows = self._alone(regions)
        else:
            pictures = {id(region.picture): region.picture for region in regions}
            at = {key: i for i, key in enumerate(pictures)}
            owner = np.array([at[id(region.picture)] for region in regions], dtype=np.int64)
            boxes = np.array([region.box for region in regions], dtype=np.int32)
            windows = Windows(list(pictures.values()), owner, boxes)
        return [self._vector(row) for row in self._begin(windows)()]

    def _alone(self, regions: Sequence[Region]) -> Windows:
        """Regions by themselves: of its picture each needs no more than is cut for it."""
        pixels: list[NDArray[np.uint8]] = []
        boxes: list[Sequence[int]] = []
        for region in regions:
            height, width = region.picture.shape[:2]
            window = window_of(self.spec, width, height, region.box)
            if tuple(window) == tuple(region.box):
                pixels.append(region.pixels)
                boxes.append((0, 0, *region.box[2:]))
            else:
                pixels.append(region.picture)
                boxes.append(window)
        return Windows(pixels, np.arange(len(boxes)), np.array(boxes, dtype=np.int32))

    def _vector(self, raw: NDArray[np.float32]) -> NDArray[np.float32] | ImageError:
        try:
            vector: NDArray[np.float32] = normalised(raw[None], self.spec)[0]
        except DegenerateFeatures as error:
            return error
        return vector

    def _result(
        self, image: DecodedImage, vectors: NDArray[np.float32]
    ) -> PatchFeatures | ImageError:
        try:
            vectors = normalised(vectors, self.spec)
        except DegenerateFeatures as error:
            return error
        return PatchFeatures(image.grid.boxes, image.grid.scales, vectors)

    def _begin(self, windows: Windows) -> Callable[[], NDArray[np.float32]]:
        """Begin to run windows to raw vectors (N, D)."""
        if windows.are_of_large_image:
            vectors = self._by_parts(windows)
            return lambda: vectors
        return self._begin_at_once(windows)

    def _begin_at_once(self, windows: Windows) -> Callable[[], NDArray[np.float32]]:
        if self._dense is not None:
            vectors = self._dense_vectors(self._dense, windows)
        elif isinstance(self._run, ExportedNetwork):
            return self._streamed(self._run, windows)
        else:
            vectors = np.empty((len(windows), self.spec.dim), dtype=np.float32)
            for batch, fetched in late(self._passes(windows)):
                vectors[batch] = fetched()
        return lambda: vectors

    def _by_parts(self, windows: Windows) -> NDArray[np.float32]:
        """Run windows of a large image, part by part: neither its pixels nor its vectors need to be
        in memory as a whole."""
        vectors: NDArray[np.float32] = spooled((len(windows), self.spec.dim), np.float32)
        for rows, part in windows.parts(self.spec.dim, whole_images=self._dense is not None):
            vectors[rows] = self._begin_at_once(part)()
            release(part.images[0])
            release(vectors)
        return vectors

    def _streamed(
        self, network: ExportedNetwork, windows: Windows
    ) -> Callable[[], NDArray[np.float32]]:
        """Begin several passes at once, each cut where it is computed."""
        tensors = [self._transfers.to_device(pixels) for pixels in windows.images]

        def cut(batch: slice) -> Tensor:
            self._check_wanted()
            owners = windows.owner[batch].tolist()
            return self._cutter.cut([tensors[i] for i in owners], windows.boxes[batch].tolist())

        at_once = self.batch_size
        size = network.share(at_once)
        passes = [
            network.start(cut, slice(start, start + size)) for start in range(0, len(windows), size)
        ]

        def fetched() -> NDArray[np.float32]:
            try:
                return np.concatenate([each.result().numpy() for each in passes])
            except Exception as error:
                with self._turn:
                    if self.batch_size == at_once:  # not halved since
                        self._shrink(error, at_once)
            finally:  # where one failed, nobody waits for the others
                for each in passes:
                    each.cancel()
            return self._streamed(network, windows)()

        return fetched

    def _passes(
        self, windows: Windows
    ) -> Iterator[tuple[slice, Callable[[], NDArray[np.float32]]]]:
        """Queue the passes over windows, in order: which, and what waits for their vectors."""
        held: dict[int, Tensor] = {}  # each image is moved to the device once
        start = 0
        while start < len(windows):
            with self._turn:
                self._check_wanted()
                batch = slice(start, start + self.batch_size)
                owners = windows.owner[batch].tolist()
                try:
                    held = {
                        i: held[i] if i in held else self._transfers.to_device(windows.images[i])
                        for i in dict.fromkeys(owners)
                    }
                    boxes = windows.boxes[batch].tolist()
                    patches = self._cutter.cut([held[i] for i in owners], boxes)
                    fetched = self._transfers.to_host(self.forward(patches))
                except Exception as error:
                    self._shrink(error, self._size(len(owners)))
                    continue
            yield batch, fetched
            start = batch.stop

    @torch.inference_mode()
    def _dense_vectors(self, dense: DensePass, windows: Windows) -> NDArray[np.float32]:
        assert isinstance(self._network, DenseNetwork)
        while True:
            with self._turn:
                try:
                    # In float32: autocast would round the share of a cell that a box covers.
                    pooled = dense.pooled(windows.images, windows.owner, windows.boxes)
                    with self._arithmetic():
                        vectors: NDArray[np.float32] = self._network.vectors(pooled).cpu().numpy()
                except Exception as error:
                    if not (is_out_of_memory(error) and dense.shrink()):
                        raise
                    log.warning("%s is out of memory, tiles are now of %d", self.device, dense.tile)
                    self._free()
                else:
                    return vectors
                finally:
                    self._transfers.forget()

    def _maps(self, batches: Iterable[Rectangles]) -> Iterator[Tensor]:
        """The feature maps of each batch of rectangles of one size, float32 (N, C, h, w)."""
        if isinstance(self._run, ExportedNetwork):
            yield from self._run.map(self._take, batches)
            return
        for batch in batches:
            with self._arithmetic():  # and not around what is done with the maps
                maps = self._run(self._take(batch)).float()
            yield maps

    def _take(self, batch: Rectangles) -> Tensor:
        self._check_wanted()
        bands, at = [], []
        for image, pixels in zip(*batch, strict=True):
            top, bottom = 0, len(image)
            if is_large(image):
                top, bottom = needed_rows(pixels.y, pixels.height, bottom)
            bands.append(self._transfers.rows_to_device(image, top, bottom))
            at.append((pixels.x, pixels.y - top, pixels.width, pixels.height))
        return self._cutter.take(bands, at)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """Run a normalised batch, (N, 3, S, S), to raw vectors float32 (N, D); the bare pass."""
        with self._arithmetic():
            vectors = self._run(filled_up(batch, self._size(len(batch))))
        return vectors[: len(batch)].float()

    def _size(self, patches: int) -> int:
        """How many patches a pass is of that is to compute so many."""
        return self.batch_size if self.way.runtime == COMPILED else patches

    def _compile(self) -> None:
        """Compile the network, and run it once: what cannot be compiled is told now."""
        self._run = compiled(self._network)
        black = np.zeros((self.spec.side, self.spec.side, 3), dtype=np.uint8)
        window = np.array([[0, 0, self.spec.side, self.spec.side]], dtype=np.int32)
        try:
            self._begin(Windows([black], np.zeros(1, dtype=np.int64), window))()
        except Exception as error:  # of the network, the compilers, or the device
            raise DeviceError(f"{COMPILED} cannot run this network: {one_line(error)}") from error

    def _dense_pass(self, backbone: Backbone, tile: int) -> DensePass:
        patches = self.batch_size
        if isinstance(self._run, ExportedNetwork):
            patches = self._run.share(patches)
        return DensePass(
            self.spec.pooling,
            backbone.field,
            backbone.smallest,
            self._maps,
            backbone.cells,
            tile,
            patches * self.spec.side * self.spec.side,
            self.device,
        )

    def _arithmetic(self) -> AbstractContextManager[object]:
        return arithmetic(self.way, self.device)

    def _shrink(self, error: Exception, patches: int) -> None:
        """Halve the batch after a pass over `patches` ran out of memory; else raise the error."""
        if patches <= 1 or not is_out_of_memory(error):
            raise error
        self.batch_size = max(1, patches // 2)
        log.warning("%s is out of memory, batch_size is now %d", self.device, self.batch_size)
        self._free()

    def _free(self) -> None:
        """Give back what is kept between passes, so that a smaller one finds room."""
        self._cutter.forget()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
