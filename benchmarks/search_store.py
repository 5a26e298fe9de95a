"""The store that searches are measured on: real patch vectors, then copies, slightly off."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.browse import set_metadata_many
from db.catalog import SeenFile, finish_scan, open_source, record_files, start_scan
from db.ledger import LeaseLimits, finish_run, lease_batch, start_run
from db.specs import StoredSpec
from db.writer import ImagePatches, replace_patches
from extractor.arrays import PatchFeatures
from extractor.backbone import resolve
from extractor.features import FeatureExtractor
from extractor.precision import check_precision
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec
from patchstore.bench import home as homes
from patchstore.bench.bare import decode

HELD_OUT = 20  # every so many-th image is not stored
BATCH_IMAGES = 32
JITTER = 0.1  # length of the noise, of the vector's own
SHARES = {"half": 0.5, "tenth": 0.1, "hundredth": 0.01, "thousandth": 0.001}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """All patches of a folder, image by image.

    Attributes:
        digest: of the spec.
        vectors: float32 (N, D).
        boxes: int32 (N, 4).
        owners: int64 (N,), which image; ascending.
    """

    digest: str
    vectors: Floats
    boxes: NDArray[np.int32]
    owners: NDArray[np.int64]

    def of(self, owner: int) -> slice:
        """Where an image's patches are."""
        return slice(*np.searchsorted(self.owners, [owner, owner + 1]))

    def held_out(self) -> NDArray[np.int64]:
        """Which patches are of images that are not stored, to be asked about."""
        return np.flatnonzero(self.owners % HELD_OUT == 0)


@dataclass(frozen=True)
class Picture:
    """An image to store: the original, or its copy of this number."""

    owner: int
    copy: int

    @property
    def uri(self) -> str:
        """Where the picture seems to be."""
        return f"benchmark:///{self.copy:03}/{self.owner:08}"

    def vectors(self, known: Vectors) -> Floats:
        """Its vectors: a copy's point a little elsewhere and are as long."""
        own: Floats = known.vectors[known.of(self.owner)]
        if not self.copy:
            return own
        noise = np.random.default_rng((self.copy, self.owner)).normal(size=own.shape)
        lengths = np.linalg.norm(own, axis=1, keepdims=True)
        moved = own + JITTER * lengths / np.sqrt(own.shape[1]) * noise
        moved *= lengths / np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(moved, np.float32)


def store_parser(description: str | None, rows: int) -> argparse.ArgumentParser:
    """A parser with the options of the benchmarks over stored patch vectors."""
    parser = homes.parser(description)
    parser.set_defaults(patch_size=112, stride=28)
    parser.add_argument("--rows", type=int, default=rows)
    parser.add_argument("--cache", type=Path, metavar="FILE.npz")
    return parser


def known_vectors(
    options: homes.SpecOptions, images: Path, cache: Path | None, rows: int
) -> Vectors:
    """The cached vectors where they are of this spec, else computed ones.

    Args:
        options: the spec.
        images: folder.
        cache: a file to read, or to write where it is missing.
        rows: how many are to be stored; some more are computed, to ask about.
    """
    resolved = resolve(options.recipe())
    if cache is not None and cache.exists():
        with np.load(cache) as stored:
            found = Vectors(
                str(stored["digest"]), stored["vectors"], stored["boxes"], stored["owners"]
            )
        if found.digest == resolved.spec.digest:
            return found
        raise SystemExit(f"{cache} holds vectors of another spec; delete it or name another file")
    settings = ExtractorSettings()
    files = homes.image_files(images)
    sample = decode(homes.spread(files, 4), resolved.spec)
    way = check_precision(resolved.spec, resolved.backbone, sample, settings.device).way
    extractor = FeatureExtractor(
        resolved.spec,
        resolved.backbone,
        device=settings.device,
        precision=way.precision,
        runtime=way.runtime,
        batch_size=settings.batch_size,
    )
    wanted = rows * HELD_OUT // (HELD_OUT - 1) * 11 // 10
    computed = _compute(extractor, files, resolved.spec, wanted)
    if cache is not None:
        np.savez(
            cache,
            digest=np.array(computed.digest),
            vectors=computed.vectors,
            boxes=computed.boxes,
            owners=computed.owners,
        )
    return computed


def _compute(
    extractor: FeatureExtractor, files: Sequence[Path], spec: FeatureSpec, wanted: int
) -> Vectors:
    """Computes images, evenly from the whole list, until there are so many patches."""
    order = np.random.default_rng(0).permutation(len(files)).tolist()
    found: list[PatchFeatures] = []
    done = 0
    for start in range(0, len(order), BATCH_IMAGES):
        images = decode([files[i] for i in order[start : start + BATCH_IMAGES]], spec)
        results = [r for r in extractor.extract(images) if isinstance(r, PatchFeatures)]
        found += results
        done += sum(len(result.boxes) for result in results)
        if done >= wanted:
            break
    return Vectors(
        spec.digest,
        np.concatenate([result.vectors for result in found]),
        np.concatenate([result.boxes for result in found]),
        np.repeat(np.arange(len(found)), [len(result.boxes) for result in found]),
    )


def pictures(known: Vectors, rows: int) -> list[Picture]:
    """Whole images until there are `rows` patches: the originals, then copies of all of them."""
    counts = np.bincount(known.owners).tolist()
    chosen: list[Picture] = []
    stored = 0
    for picture in _endless([owner for owner in range(len(counts)) if owner % HELD_OUT]):
        if stored >= rows:
            break
        chosen.append(picture)
        stored += counts[picture.owner]
    return chosen


def count_rows(known: Vectors, chosen: Sequence[Picture]) -> int:
    """How many patches the pictures have."""
    counts = np.bincount(known.owners)
    return sum(int(counts[picture.owner]) for picture in chosen)


def _endless(owners: Sequence[int]) -> Iterator[Picture]:
    copy = 0
    while True:
        for owner in owners:
            yield Picture(owner, copy)
        copy += 1


def store(
    engine: Engine, spec: StoredSpec, known: Vectors, chosen: Sequence[Picture]
) -> dict[Picture, int]:
    """Stores images as a run does, with metadata that filters keep shares of; returns their ids."""
    source = open_source(engine, "benchmark:///")
    started = start_scan(engine)
    by_uri = {picture.uri: picture for picture in chosen}
    files = [
        SeenFile(uri, 1, "", n.to_bytes(32, "big"), None, None) for n, uri in enumerate(by_uri)
    ]
    record_files(engine, source, spec, files, started)
    finish_scan(engine, source, spec, started, complete=True)
    run = start_run(engine, source, spec)
    ids: dict[Picture, int] = {}
    limits = LeaseLimits(BATCH_IMAGES, 1, 3600.0)
    while leases := lease_batch(engine, spec, source, run, limits):
        results = []
        for lease in leases:
            picture = by_uri[lease.uri]
            ids[picture] = lease.image_id
            boxes = known.boxes[known.of(picture.owner)]
            scales = np.ones(len(boxes), np.float32)
            results.append(ImagePatches(lease, boxes, scales, picture.vectors(known)))
        replace_patches(engine, spec, results)
    finish_run(engine, run, "completed", None)
    set_metadata_many(engine, list(zip(by_uri, _metadata(len(by_uri)), strict=True)))
    return ids


def _metadata(images: int) -> list[dict[str, bool]]:
    """For each image, which of the SHARES it belongs to."""
    place = (np.random.default_rng(2).permutation(images) + 0.5) / images
    # The smallest share is never empty.
    wide = {name: max(share, 1 / images) for name, share in SHARES.items()}
    return [{name: True for name, share in wide.items() if p <= share} for p in place.tolist()]
