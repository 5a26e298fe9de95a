"""One batch of leased images on its way through the three steps.

The batch holds the arrays: the tasks hand over this object and return numbers only, so Prefect
neither hashes, stores nor keeps a pixel. Each step can be tried again; what an earlier try has
finished is not done twice.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context

from sqlalchemy import Engine

from db.ledger import SUSPECT, UNREAD, Lease, fail_image, release_image
from db.specs import StoredSpec
from db.writer import ImagePatches, replace_patches
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.errors import Abandoned, ImageError, one_line
from extractor.grid import spec_grid
from extractor.images import digest, read_image
from extractor.spec import FeatureSpec

from .contact_sheet import ContactSheet
from .errors import FlowError, SourceError, TransientReadError, is_transient
from .sources import Doubt, Source
from .stages import Clock

logger = logging.getLogger(__name__)

TRANSACTION_ROWS = 4096  # 8 MB of vectors of 512 dimensions

Extract = Callable[[Sequence[DecodedImage]], list[PatchFeatures | ImageError]]


class Batch:
    """Images of one task run; every lease ends as failed, released or written.

    No dataclass: Prefect looks into those for futures, while another thread is filling this one.
    """

    def __init__(self, number: int, leases: list[Lease]) -> None:
        """A batch of leased images, none of them read yet."""
        self.number = number
        self.leases = leases
        self.decoded: dict[int, DecodedImage] = {}
        self.sizes: dict[int, tuple[int, int]] = {}  # where the store does not know them
        self.features: dict[int, PatchFeatures] = {}
        self.failed: dict[int, str] = {}
        self.released: set[int] = set()
        self.written: set[int] = set()
        self.patches = 0
        self.clock = Clock()
        self.computed_at = 0.0  # of time.monotonic

    def __str__(self) -> str:
        return f"batch {self.number} of {len(self.leases)} images"

    @property
    def is_suspect(self) -> bool:
        """Whether it is of an image that may have killed its worker before."""
        return any(lease.attempts > SUSPECT for lease in self.leases)

    def unread(self) -> list[Lease]:
        """Leases that no try has read so far."""
        known = self.decoded.keys() | self.features.keys() | self.failed.keys() | self.released
        return [lease for lease in self.leases if lease.image_id not in known]


def extract_patches(
    batch: Batch, source: Source, spec: FeatureSpec, max_pixels: int, *, last_try: bool
) -> int:
    """Reads and decodes the batch and lays the grid; returns how many patches there are.

    Raises:
        TransientReadError: some files could not be read; on the last try they fail instead.
        SourceError: on the last try, the source itself does not answer any more.
    """
    troubled: list[str] = []
    doubt = Doubt(source)
    try:
        with _decoding(source, batch.unread(), spec, max_pixels) as images:
            for lease, image in images:
                error = _take(batch, lease, image)
                doubt.saw(unreadable=error is not None)
                if error is None:
                    continue
                reason = f"{UNREAD}{error.strerror or error}"
                # No waiting mends a permission; the next run looks again.
                if last_try or isinstance(error, PermissionError):
                    batch.failed[lease.image_id] = reason
                else:
                    troubled.append(f"{lease.uri} {reason}")
    except SourceError as error:
        if last_try:
            raise
        raise TransientReadError(str(error)) from error
    if troubled:
        raise TransientReadError(f"{len(troubled)} files, first: {troubled[0]}")
    return sum(len(image.grid.boxes) for image in batch.decoded.values())


def compute_features(batch: Batch, extract: Extract, sheet: ContactSheet) -> int:
    """Computes the batch's vectors and lets its pixels go; returns how many vectors there are.

    What is computed takes part in the contact sheet.
    """
    ids = list(batch.decoded)
    images = [batch.decoded[i] for i in ids]
    for image_id, result in zip(ids, _extract_each(extract, images), strict=True):
        if isinstance(result, PatchFeatures):
            batch.features[image_id] = result
            sheet.offer(batch.decoded[image_id].pixels, result.boxes)
        else:
            batch.failed[image_id] = one_line(result, 500)
    batch.decoded.clear()
    batch.computed_at = time.monotonic()
    return sum(len(features.boxes) for features in batch.features.values())


def upsert_features(
    batch: Batch, engine: Engine, spec: StoredSpec, on_image: Callable[[int, int, bool], None]
) -> int:
    """Writes every image's outcome; returns how many rows were stored.

    Args:
        batch: after `compute_features`.
        engine: the store.
        spec: the store's entry of the spec.
        on_image: called after each image with its id, patches stored, and whether it failed.
    """
    waiting = [lease for lease in batch.leases if lease.image_id not in batch.written]
    computed = [lease for lease in waiting if lease.image_id in batch.features]
    for lease in waiting:
        if lease.image_id not in batch.features:
            _give_back(batch, lease, engine)
            _note(batch, lease, 0, on_image)
    for group in _groups(batch, computed):
        lost = replace_patches(engine, spec, group)
        for image in group:
            if image.lease in lost:
                logger.warning("%s belongs to another worker now: dropped", image.lease.uri)
            stored = 0 if image.lease in lost else len(image.boxes)
            _note(batch, image.lease, stored, on_image)
    batch.features.clear()
    return batch.patches


def _groups(batch: Batch, leases: Sequence[Lease]) -> Iterator[list[ImagePatches]]:
    """The results that are written in one transaction each: few enough that a lock is short."""
    group: list[ImagePatches] = []
    rows = 0
    for lease in leases:
        found = batch.features[lease.image_id]
        if group and rows + len(found.boxes) > TRANSACTION_ROWS:
            yield group
            group, rows = [], 0
        size = batch.sizes.get(lease.image_id)
        group.append(ImagePatches(lease, found.boxes, found.scales, found.vectors, size))
        rows += len(found.boxes)
    if group:
        yield group


def _note(
    batch: Batch, lease: Lease, stored: int, on_image: Callable[[int, int, bool], None]
) -> None:
    batch.written.add(lease.image_id)
    batch.patches += stored
    on_image(lease.image_id, stored, lease.image_id in batch.failed)


def _give_back(batch: Batch, lease: Lease, engine: Engine) -> None:
    reason = batch.failed.get(lease.image_id)
    if reason is None:
        release_image(engine, lease)
    else:
        fail_image(engine, lease, reason)


@contextmanager
def _decoding(
    source: Source, leases: Sequence[Lease], spec: FeatureSpec, max_pixels: int
) -> Iterator[Iterator[tuple[Lease, "Future[DecodedImage | None]"]]]:
    """Images in order, as many at a time as is best for the source; those not begun are let go."""
    pool = ThreadPoolExecutor(source.readers, thread_name_prefix="read")
    try:
        # With the task's context, so that Prefect knows whose log lines these are.
        images = [
            pool.submit(copy_context().run, _decoded, source, lease, spec, max_pixels)
            for lease in leases
        ]
        yield zip(leases, images, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _decoded(
    source: Source, lease: Lease, spec: FeatureSpec, max_pixels: int
) -> DecodedImage | None:
    """A leased image with its grid; None where its file is another one now."""
    with source.read(lease.uri, max_pixels) as content:
        if digest(content) != lease.sha256:
            return None
        pixels = read_image(content, max_pixels=max_pixels)
    height, width = pixels.shape[:2]
    return DecodedImage(pixels, spec_grid(spec, width, height))


def _take(batch: Batch, lease: Lease, image: "Future[DecodedImage | None]") -> OSError | None:
    """Notes what has become of an image; returns why its file could not be read just now."""
    try:
        decoded = image.result()
    except ImageError as error:
        batch.failed[lease.image_id] = str(error)
    except FileNotFoundError:
        batch.released.add(lease.image_id)  # the next scan finds it vanished
    except OSError as error:
        return error
    except MemoryError:  # others had it just now
        return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    except Exception as error:  # a decoder's bug: this image fails, the batch goes on
        logger.exception("%s: unexpected error while decoding", lease.uri)
        reason = f"cannot be decoded: {type(error).__name__}: {error}"
        batch.failed[lease.image_id] = reason
    else:
        if decoded is None:
            batch.released.add(lease.image_id)  # the next scan finds it changed
        else:
            batch.decoded[lease.image_id] = decoded
            if not lease.is_sized:
                height, width = decoded.pixels.shape[:2]
                batch.sizes[lease.image_id] = width, height
    return None


def _is_of_no_image(error: Exception) -> bool:
    return isinstance(error, Abandoned | FlowError) or is_transient(error)


def _extract_each(
    extract: Extract, images: Sequence[DecodedImage]
) -> Sequence[PatchFeatures | Exception]:
    """The whole batch at once; image by image where that fails, to find the one that does it."""
    try:
        return extract(images)
    except Exception as error:
        if _is_of_no_image(error):
            raise
        logger.exception("the batch failed as a whole; computing image by image")
    results: list[PatchFeatures | Exception] = []
    for image in images:
        try:
            results.extend(extract([image]))
        except Exception as error:
            if _is_of_no_image(error):
                raise
            results.append(error)
    if not any(isinstance(result, PatchFeatures | ImageError) for result in results):
        raise next(result for result in results if isinstance(result, Exception))
    return results  # where every single one fails, the device is to blame and not an image
