"""The model of a run: loaded once a process, with a precision that has been checked."""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from contextvars import copy_context
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Engine

from db.settings import StoreSettings
from db.specs import StoredSpec, record_precision, recorded_precision
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.backbone import Backbone, load_backbone
from extractor.device import FLOAT32, Way, utilization
from extractor.errors import Abandoned, DeviceError, ImageError, one_line
from extractor.features import FeatureExtractor
from extractor.precision import check_kind, check_precision
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .stages import Busy, Clock

logger = logging.getLogger(__name__)

SAMPLE_PATCHES = 32
SAMPLE_IMAGES = 8

T = TypeVar("T")
Slot = Callable[[Callable[[], None]], AbstractContextManager[object]]

_load_lock = threading.Lock()


@lru_cache(maxsize=2)
def _load(digest: str, recipe: str, weights_source: str) -> Backbone:
    logger.info("loading weights %s", weights_source)
    exports = StoreSettings().resolved_home() / "networks"
    return load_backbone(FeatureSpec.model_validate_json(recipe), weights_source, exports)


def load(stored: StoredSpec) -> Backbone:
    """The network of a spec, loaded once a process. Raises WeightsError."""
    spec = FeatureSpec.model_validate(stored.recipe)
    with _load_lock:
        return _load(spec.digest, spec.canonical_json(), stored.weights_source)


def _sample(images: Sequence[DecodedImage]) -> list[DecodedImage]:
    """Patches of the first images to judge a precision by: 32, as many of each, or all of them."""
    sample: list[DecodedImage] = []
    left = SAMPLE_PATCHES
    among = min(len(images), SAMPLE_IMAGES)
    for number, image in enumerate(images):
        if left <= 0:
            break
        share = -(-left // max(1, among - number))  # what others have too few of, later ones give
        chosen = np.linspace(0, len(image.grid.boxes) - 1, share)
        rows = np.unique(chosen.astype(int))
        left -= len(rows)
        sample.append(DecodedImage(image.pixels, image.grid.take(rows)))
    return sample


class Model:
    """Computes the vectors of one run.

    With precision `auto` the first batch decides: the fastest way whose vectors agree with float32,
    unless the store knows the answer for this spec and kind of device already.

    Attributes:
        clock: how long the device was at work, `forward`; the check of precisions included.
    """

    def __init__(
        self,
        engine: Engine,
        stored: StoredSpec,
        precision: str,
        *,
        images: int,
        record: bool = True,
        slot: Slot = nullcontext,
        on_way: Callable[[Way], None] = lambda way: None,
    ) -> None:
        """Loads the network.

        Args:
            engine: the store.
            stored: the spec.
            precision: `auto`, or the name of an `extractor.device.Way`.
            images: how many are to be computed: what takes long to set up must repay.
            record: keep what `auto` finds in the store.
            slot: held while the device works; calls what it is given while it waits.
            on_way: told how the vectors are computed, before the first ones are.

        Raises:
            WeightsError, DeviceError.
        """
        self._record = record
        self._images = images
        self._slot = slot
        self._on_way = on_way
        self._auto = precision == "auto"
        self._way: Way | None = None
        self._engine = engine
        self._stored = stored
        self._spec = FeatureSpec.model_validate(stored.recipe)
        self._settings = ExtractorSettings()
        # One thread for all that torch does: every thread that calls it gets a team of OpenMP
        # threads, and with more of them than cores they all stop spinning at barriers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forward")
        self._backbone: Backbone = self._on_thread(load, stored)
        self._extractor: FeatureExtractor | None = None
        self._abandoned = False
        self.clock = Clock()
        self._forward = Busy(self.clock, "forward")
        if not self._auto:
            self._take(self._make(Way.parse(precision)))

    @property
    def way(self) -> Way | None:
        """How the first vectors were computed; None before the first batch under `auto`.

        Where that failed later, the others are nearer to float32.
        """
        return self._way

    def utilization(self) -> float | None:
        """The GPU's at this moment, 0 to 1; None where it is not known."""
        return utilization(self._extractor.device) if self._extractor else None

    def extract(self, images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        """The vectors of each image, in order. Several threads may ask at once."""
        if not images:
            return []
        with ExitStack() as at_work:
            extractor, results = self._on_thread(self._begin, images, at_work)
            try:
                return results()
            except Exception as error:
                self._on_thread(self._fall_back, extractor, error)
        return self.extract(images)

    def abandon(self) -> None:
        """Ends soon what is being computed, for the run has ended: `extract` raises Abandoned."""
        self._abandoned = True
        if self._extractor is not None:
            self._extractor.abandon()

    def _on_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        # With the caller's context, so that Prefect knows whose log lines these are.
        return self._thread.submit(copy_context().run, call, *arguments).result()

    def _begin(
        self, images: Sequence[DecodedImage], at_work: ExitStack
    ) -> tuple[FeatureExtractor, Callable[[], list[PatchFeatures | ImageError]]]:
        with self._slot(self._check_wanted):
            at_work.enter_context(self._forward)  # until the results are there
            if self._extractor is None:
                self._take(self._usable(self._choose(images)))
            extractor = self._extractor
            assert extractor is not None
            try:
                return extractor, extractor.begin(images)
            except Exception as error:
                extractor = self._fall_back(extractor, error)
                return extractor, extractor.begin(images)

    def _take(self, extractor: FeatureExtractor) -> None:
        if self._way is None:
            self._on_way(extractor.way)
            self._way = extractor.way
        self._extractor = extractor
        if self._abandoned:  # while it was made
            extractor.abandon()

    def _check_wanted(self) -> None:
        if self._abandoned:
            raise Abandoned("computing was stopped")

    def _fall_back(self, failed: FeatureExtractor, error: Exception) -> FeatureExtractor:
        """What computes once a way that `auto` chose has failed; else raises the error."""
        chosen = self._auto and failed.way != Way()
        if isinstance(error, ImageError | Abandoned) or not chosen:
            raise error
        if self._extractor is failed:  # nobody else has come to here first
            line = one_line(error)
            logger.warning(
                "computing in %s from now on, for %s failed: %s", FLOAT32, failed.way, line
            )
            self._take(self._make(Way()))
        assert self._extractor is not None
        return self._extractor

    def _usable(self, way: Way) -> FeatureExtractor:
        """An extractor of that way, or else of float32: what was found once may fail today."""
        try:
            return self._make(way)
        except DeviceError as error:
            logger.warning("computing in %s: %s", FLOAT32, error)
            return self._make(Way())

    def _make(self, way: Way) -> FeatureExtractor:
        return FeatureExtractor(
            self._spec,
            self._backbone,
            device=self._settings.device,
            precision=way.precision,
            runtime=way.runtime,
            batch_size=self._settings.batch_size,
            dense_tile=self._settings.dense_tile,
        )

    def _choose(self, images: Sequence[DecodedImage]) -> Way:
        device = self._settings.device
        patches = self._images * sum(len(image.grid) for image in images) // len(images)
        kind = check_kind(self._spec, self._backbone, device, patches)
        known = recorded_precision(self._engine, self._stored, kind)
        if known is not None:
            logger.info("computing in %s on %s, as checked before", known, kind)
            return Way.parse(known)
        sample = _sample(images)
        check = check_precision(
            self._spec, self._backbone, sample, device, patches, self._check_wanted
        )
        logger.info("computing in %s", check.detail)
        if not self._record or sum(len(image.grid) for image in sample) < SAMPLE_PATCHES:
            return check.way  # the next run may have more to judge by
        recorded = record_precision(
            self._engine,
            self._stored,
            device_kind=kind,
            precision=str(check.way),
            min_cosine=check.min_cosine,
            detail=check.detail,
        )
        return Way.parse(recorded)
