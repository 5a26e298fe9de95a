"""Comparing a source with the store: only files whose modification mark moved are opened."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from itertools import islice
from typing import BinaryIO, TypeVar

from sqlalchemy import Engine

from db.catalog import (
    KnownFile,
    ScanCounts,
    SeenFile,
    count_live,
    finish_scan,
    known_files,
    record_files,
    start_scan,
    touch_unchanged,
)
from db.ledger import UNREAD
from db.specs import StoredSpec
from extractor.errors import ImageError
from extractor.images import read_size

from .errors import SourceError
from .sources import Doubt, FoundFile, Source

logger = logging.getLogger(__name__)

CHUNK = 1_000  # files in one transaction
T = TypeVar("T")


def scan(
    engine: Engine,
    source: Source,
    source_id: int,
    spec: StoredSpec,
    threads: int,
    *,
    max_pixels: int,
    allow_empty: bool = False,
) -> ScanCounts:
    """Brings locations and ledger up to date with the source; reads no pixel.

    Unchanged files are not opened. New and changed ones are read once for their SHA-256 and the
    size in their header. A folder without an image is not listed, unless `allow_empty`.

    Raises:
        SourceError: its files cannot be read, nor can it be listed any more.
    """
    started = start_scan(engine)
    counts = ScanCounts()
    with ThreadPoolExecutor(max(threads, source.readers), thread_name_prefix="scan") as pool:
        for chunk in chunks(source.files(), CHUNK):
            known = known_files(engine, source_id, [file.uri for file in chunk])
            files = images_of(source, chunk, known)
            unchanged = [file.uri for file in files if is_unchanged(file, known.get(file.uri))]
            if unchanged:
                touch_unchanged(engine, source_id, unchanged, started)
                counts.found += len(unchanged)
                counts.unchanged += len(unchanged)
            same = set(unchanged)
            others = (file for file in files if file.uri not in same)
            looked = pool.map(lambda file: look(source, file, max_pixels), others)
            if seen := _doubted(source, looked, pool):
                add(counts, record_files(engine, source_id, spec, seen, started))
    if not counts.found and not allow_empty:
        note_emptied(engine, source, source_id)
    for folder in source.unlisted:
        logger.error("%s; nothing is marked as vanished in this run", folder)
    counts.vanished = finish_scan(engine, source_id, spec, started, complete=not source.unlisted)
    return counts


def _doubted(
    source: Source, looked: Iterable[SeenFile | None], pool: ThreadPoolExecutor
) -> list[SeenFile]:
    """What was not gone. Raises SourceError, and looks no further, where the source is."""
    doubt = Doubt(source)
    seen: list[SeenFile] = []
    try:
        for file in looked:
            if file is not None:
                doubt.saw(unreadable=file.error is not None)
                seen.append(file)
    except SourceError:
        pool.shutdown(cancel_futures=True)
        raise
    return seen


def note_emptied(engine: Engine, source: Source, source_id: int) -> None:
    """Counts a folder without an image as not listed where it held some before.

    It is more often a disk that is not mounted than a folder that was emptied.
    """
    if lost := count_live(engine, source_id):
        source.unlisted.append(
            f"{source.root}: no image is there, but the store has {lost} of it; "
            "if it was emptied on purpose, ingest it with --allow-empty"
        )


def images_of(
    source: Source, files: Sequence[FoundFile], known: Mapping[str, KnownFile]
) -> list[FoundFile]:
    """Without those that are doubtful and were no images before; these count as other files."""
    images = [file for file in files if not file.doubtful or _is_live(known.get(file.uri))]
    source.others += len(files) - len(images)
    return images


def _is_live(known: KnownFile | None) -> bool:
    return known is not None and not known.vanished


def is_unchanged(file: FoundFile, known: KnownFile | None) -> bool:
    """Whether the store's knowledge of a file still holds."""
    return (
        known is not None
        and known.readable
        and not known.vanished
        and file.error is None
        and known.mark == file.mark
    )


def look(source: Source, file: FoundFile, max_pixels: int) -> SeenFile | None:
    """Reads a file for its digest and the size in its header, in little memory; None where it is
    gone since it was listed."""
    if file.error is not None:
        return SeenFile(file.uri, file.size_bytes, file.mark, None, error=file.error)
    try:
        with source.open(file.uri) as content:
            digest = hashlib.file_digest(content, "sha256").digest()
            size_bytes = content.tell()
            width, height = header_size(content, max_pixels)
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = f"{UNREAD}{error.strerror or error}"
        return SeenFile(file.uri, file.size_bytes, file.mark, None, error=reason)
    return SeenFile(file.uri, size_bytes, file.mark, digest, width, height)


def header_size(content: BinaryIO, max_pixels: int) -> tuple[int | None, int | None]:
    """Width and height by the header; unknown where reading will say why it is broken."""
    try:
        return read_size(content, max_pixels=max_pixels)
    except ImageError:
        return None, None


def add(total: ScanCounts, part: ScanCounts) -> None:
    """Adds a chunk's counts."""
    for field in fields(ScanCounts):
        setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of up to `size` items."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
