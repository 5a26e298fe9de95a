"""What a run would do and cost, without doing it."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import Engine

from db.catalog import (
    KnownFile,
    ScanCounts,
    SeenFile,
    compare_files,
    contents_done,
    files_due,
    known_files,
    live_files,
)
from db.index import count_rows
from db.reports import source_id
from db.settings import StoreSettings
from db.specs import StoredSpec
from db.storage import estimate_bytes
from extractor.arrays import DecodedImage
from extractor.errors import ImageError
from extractor.grid import count_patches, spec_grid
from extractor.images import read_image
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec
from flows.models import Model
from flows.scan import CHUNK, add, chunks, images_of, is_unchanged, look, note_emptied
from flows.settings import FlowSettings
from flows.sources import FoundFile, Source

SAMPLE_PATCHES = 256
SAMPLE_S = 5.0


@dataclass(frozen=True)
class Plan:
    """What a run would do. Sizes are of the new rows, in Postgres, index included."""

    found: int
    new: int
    changed: int
    moved: int
    unchanged: int
    vanished: int
    images: int
    copies: int
    unreadable: int
    patches: int
    patches_per_second: float
    seconds: float
    gigabytes: float
    unlisted: list[str]

    def as_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)

    def text(self) -> str:
        """The plan for a person."""
        unlisted = "".join(f"not listed: {folder}\n" for folder in self.unlisted)
        copies = f"; {self.copies} more are copies" if self.copies else ""
        pace = f"about {self.seconds:,.0f} s at {self.patches_per_second:,.1f} patches/s"
        if self.patches and not self.patches_per_second:
            pace = "a time that no image here could tell"
        return (
            f"{unlisted}found {self.found} images: {self.new} new, {self.changed} changed, "
            f"{self.moved} moved, {self.unchanged} unchanged; {self.vanished} vanished\n"
            f"a run would compute {self.images} images "
            f"(likely to fail: {self.unreadable}{copies}), {self.patches:,} patches\n"
            f"in {pace}, "
            f"and add {self.gigabytes:.3f} GB to Postgres\n"
            "no vector was stored"
        )


def estimate(
    engine: Engine,
    stored: StoredSpec,
    source: Source,
    precision: str,
    *,
    allow_empty: bool = False,
) -> Plan:
    """Looks at names, marks and headers, and measures the forward pass on a few images.

    What is due is what a run would find so: new and changed files, and known ones that this spec
    has not computed; not those whose content is computed under another name.
    """
    spec = FeatureSpec.model_validate(stored.recipe)
    found = _survey(engine, stored, source, allow_empty=allow_empty)
    sizes = [_patches(seen, spec) for _, seen in found.due]
    patches = sum(sizes)
    readable = [file for (file, _), count in zip(found.due, sizes, strict=True) if count]
    rate = _measure(engine, stored, source, readable, precision) if readable else 0.0
    unindexed = max(0, StoreSettings().index_threshold - count_rows(engine, stored))
    rows = estimate_bytes(stored.dim, patches, index_threshold=unindexed)
    return Plan(
        **asdict(found.counts),
        images=len(found.due),
        copies=found.copies,
        unreadable=sizes.count(0),
        patches=patches,
        patches_per_second=round(rate, 1),
        seconds=round(patches / rate, 1) if rate else 0.0,
        gigabytes=round(rows / 1e9, 3),
        unlisted=source.unlisted,
    )


@dataclass
class _Survey:
    """How a source compares with the store.

    Attributes:
        due: files that would be computed.
        copies: files whose content is computed under another name, or will be.
        listed: URIs of all images.
        arrived: contents under names that are new.
    """

    counts: ScanCounts = field(default_factory=ScanCounts)
    due: list[tuple[FoundFile, SeenFile]] = field(default_factory=list)
    copies: int = 0
    listed: set[str] = field(default_factory=set)
    arrived: set[bytes | None] = field(default_factory=set)


def _survey(engine: Engine, stored: StoredSpec, source: Source, *, allow_empty: bool) -> _Survey:
    """What `flows.scan` would find, without recording it."""
    found = _Survey()
    known_source = source_id(engine, source.root)
    max_pixels = ExtractorSettings().max_pixels
    covered: set[bytes] = set()  # contents that are computed, or counted
    for chunk in chunks(source.files(), CHUNK):
        known: dict[str, KnownFile] = {}
        due: set[str] = set()
        if known_source is not None:
            uris = [file.uri for file in chunk]
            known = known_files(engine, known_source, uris)
            due = files_due(engine, known_source, stored, uris)
        images = images_of(source, chunk, known)
        same = {file.uri for file in images if is_unchanged(file, known.get(file.uri))}
        due |= {file.uri for file in images} - same
        wanted = [file for file in images if file.uri in due]
        seen_or_gone = ((file, look(source, file, max_pixels)) for file in wanted)
        looked = [(file, seen) for file, seen in seen_or_gone if seen is not None]
        differing = [seen for _, seen in looked if seen.uri not in same]
        add(found.counts, ScanCounts(found=len(same), unchanged=len(same)))
        add(found.counts, compare_files(engine, known_source, differing))
        gone = {file.uri for file in wanted} - {file.uri for file, _ in looked}
        found.listed |= {file.uri for file in images} - gone
        found.arrived |= {seen.sha256 for seen in differing if seen.uri not in known} - {None}
        covered |= contents_done(engine, stored, [s.sha256 for _, s in looked if s.sha256])
        for file, seen in looked:
            if seen.sha256 in covered:
                found.copies += 1
            else:
                found.due.append((file, seen))
            if seen.sha256 is not None:
                covered.add(seen.sha256)  # another file with it costs nothing
    if known_source is not None:
        if not found.counts.found and not allow_empty:
            note_emptied(engine, source, known_source)
        if not source.unlisted:
            found.counts.vanished = _count_vanished(engine, known_source, found)
    return found


def _count_vanished(engine: Engine, known_source: int, found: _Survey) -> int:
    return sum(
        uri not in found.listed and digest not in found.arrived
        for uri, digest in live_files(engine, known_source)
    )


def _patches(file: SeenFile, spec: FeatureSpec) -> int:
    """How many it is cut into, by its header; 0 where that cannot be read."""
    if file.width is None or file.height is None:
        return 0
    return count_patches(
        file.width,
        file.height,
        patch_size=spec.patch_size,
        stride=spec.stride,
        edge=spec.edge,
        scales=spec.scales,
    )


def _measure(
    engine: Engine,
    stored: StoredSpec,
    source: Source,
    files: list[FoundFile],
    precision: str,
) -> float:
    """Patches a second, decoding included, over a few images spread over the source."""
    model = Model(engine, stored, precision, images=len(files), record=False)
    spec = FeatureSpec.model_validate(stored.recipe)
    order = np.random.default_rng(0).permutation(len(files))
    images: list[DecodedImage] = []
    patches = 0
    begun = time.monotonic()
    for index in order.tolist():
        image = _decode(source, files[index], spec)
        if image is not None:
            images.append(image)
            patches += len(image.grid.boxes)
        if patches >= SAMPLE_PATCHES or time.monotonic() - begun > SAMPLE_S:
            break
    if not patches:
        return 0.0
    decoding_s = time.monotonic() - begun
    model.extract(images[:1])  # the first pass allocates and chooses; it is not the pace
    begun = time.monotonic()
    model.extract(images)
    # Decoding runs beside the forward pass: the slower one sets the pace.
    return patches / max(time.monotonic() - begun, decoding_s / FlowSettings().window)


def _decode(source: Source, file: FoundFile, spec: FeatureSpec) -> DecodedImage | None:
    try:
        max_pixels = ExtractorSettings().max_pixels
        with source.read(file.uri, max_pixels) as content:
            pixels = read_image(content, max_pixels=max_pixels)
        grid = spec_grid(spec, pixels.shape[1], pixels.shape[0])
    except (OSError, ImageError):
        return None
    return DecodedImage(pixels, grid)
