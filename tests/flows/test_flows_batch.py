"""The three steps of a batch: each can be tried again, and one bad image stops nothing."""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from db.errors import TransientStoreError
from db.ledger import Lease
from db.writer import ImagePatches
from extractor import images
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.errors import DegenerateFeatures, ImageError
from flows import batch as steps
from flows.batch import Batch
from flows.contact_sheet import ContactSheet
from flows.errors import SourceError, TransientReadError
from flows.sources import FolderSource, StoreSource, source_at

SPEC = SimpleNamespace(patch_size=48, stride=24, edge="cover", scales=(1.0,))
Paint = Callable[..., Path]


def lease_of(path: Path, number: int = 1) -> Lease:
    content = path.read_bytes()
    return Lease(1, number, number, str(path), hashlib.sha256(content).digest(), len(content))


def read(batch: Batch, folder: Path, *, last_try: bool = False) -> int:
    return steps.extract_patches(
        batch,
        FolderSource(folder),
        SPEC,  # type: ignore[arg-type]
        10**6,
        last_try=last_try,
    )


def extract(decoded: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
    return [
        PatchFeatures(
            image.grid.boxes, image.grid.scales, np.ones((len(image.grid.boxes), 4), np.float32)
        )
        for image in decoded
    ]


def test_a_corrupt_image_fails_with_its_reason_and_the_others_go_on(
    folder: Path, paint: Paint
) -> None:
    good, bad = paint("good.png"), folder / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    batch = Batch(1, [lease_of(good, 1), lease_of(bad, 2)])
    assert read(batch, folder) == 9
    assert list(batch.decoded) == [1]
    assert list(batch.failed) == [2]


def test_a_decoder_that_crashes_fails_its_image_alone(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "read_image", lambda *_, **__: 1 / 0)
    batch = Batch(1, [lease_of(paint("a.png"))])
    read(batch, folder)
    assert batch.failed == {1: "cannot be decoded: ZeroDivisionError: division by zero"}


def test_a_file_that_changed_or_went_since_the_scan_is_left_for_the_next_one(
    folder: Path, paint: Paint
) -> None:
    changed, gone = paint("changed.png", 1), paint("gone.png", 2)
    batch = Batch(1, [lease_of(changed, 1), lease_of(gone, 2)])
    paint("changed.png", 3)
    gone.unlink()
    read(batch, folder)
    assert batch.released == {1, 2}
    assert not batch.decoded


def test_a_file_that_cannot_be_read_just_now_is_tried_again_and_fails_on_the_last_try(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = paint("good.png", 1), paint("bad.png", 2)
    batch = Batch(1, [lease_of(good, 1), lease_of(bad, 2)])
    reads: list[str] = []

    def broken(_source: FolderSource, uri: str, _max_pixels: int) -> BytesIO:
        reads.append(Path(uri).name)
        if uri == str(bad):
            raise OSError(5, "Input/output error")
        return BytesIO(Path(uri).read_bytes())

    monkeypatch.setattr(FolderSource, "read", broken)
    with pytest.raises(TransientReadError, match=r"1 files, first: .*bad\.png cannot be read"):
        read(batch, folder)
    read(batch, folder, last_try=True)
    assert reads == ["good.png", "bad.png", "bad.png"]
    assert batch.failed == {2: "cannot be read: Input/output error"}


def test_a_source_that_is_gone_is_to_blame_and_not_its_files(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(1, [lease_of(paint(f"{n}.png", n), n) for n in range(9)])
    source = FolderSource(folder)

    def broken(_source: FolderSource, uri: str, _max_pixels: int) -> BytesIO:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(FolderSource, "read", broken)
    folder.rename(folder.with_name("unmounted"))
    with pytest.raises(TransientReadError, match="does not exist"):
        steps.extract_patches(batch, source, SPEC, 10**6, last_try=False)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="does not exist"):
        steps.extract_patches(batch, source, SPEC, 10**6, last_try=True)  # type: ignore[arg-type]
    assert not batch.failed.keys() - {0, 1}
    folder.with_name("unmounted").rename(folder)
    steps.extract_patches(batch, source, SPEC, 10**6, last_try=True)  # type: ignore[arg-type]
    assert set(batch.failed) == set(range(9))


def test_objects_of_a_store_are_read_side_by_side(
    bucket: Any, folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4)
    leases = []
    for n in range(8):
        content = paint(f"{n}.png", n).read_bytes()
        uri = bucket.put(f"{n}.png", content)
        leases.append(Lease(1, n, n, uri, hashlib.sha256(content).digest(), len(content)))
    monkeypatch.setenv("PATCHSTORE_READ_THREADS", "4")
    source, read = source_at(bucket.url), StoreSource.read

    def beside_others(source: StoreSource, uri: str, max_pixels: int) -> Any:
        together.wait(60)
        return read(source, uri, max_pixels)

    monkeypatch.setattr(StoreSource, "read", beside_others)
    batch = Batch(1, leases)
    steps.extract_patches(batch, source, SPEC, 10**6, last_try=True)  # type: ignore[arg-type]
    assert list(batch.decoded) == list(range(8))


def test_a_file_without_permission_is_not_waited_for(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_source: FolderSource, uri: str, _max_pixels: int) -> BytesIO:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), uri)

    batch = Batch(1, [lease_of(paint("a.png"))])
    monkeypatch.setattr(FolderSource, "read", refused)
    assert read(batch, folder) == 0
    assert batch.failed == {1: "cannot be read: Permission denied"}


def test_a_disk_without_room_for_a_large_picture_is_tried_again(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    batch = Batch(1, [lease_of(paint("large.png"))])
    monkeypatch.setattr(images, "LARGE", 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            TransientReadError, match=r"large\.png cannot be read: no temporary file"
        ):
            read(batch, folder)
    assert read(batch, folder) == 9


def test_a_picture_for_which_there_was_no_memory_is_tried_again(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(1, [lease_of(paint("large.png"))])

    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(steps, "read_image", greedy)
        with pytest.raises(TransientReadError, match="Cannot allocate memory"):
            read(batch, folder)
    assert read(batch, folder) == 9


def test_degenerate_vectors_fail_their_image_alone(folder: Path, paint: Paint) -> None:
    batch = Batch(1, [lease_of(paint("a.png", 1), 1), lease_of(paint("b.png", 2), 2)])
    read(batch, folder)

    def half(images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        return [DegenerateFeatures("NaN in patch 0"), *extract(images[1:])]

    assert steps.compute_features(batch, half, ContactSheet()) == 9
    assert batch.failed == {1: "NaN in patch 0"}


def test_an_image_that_breaks_the_forward_pass_is_found_and_fails_alone(
    folder: Path, paint: Paint
) -> None:
    batch = Batch(1, [lease_of(paint("a.png", 1), 1), lease_of(paint("b.png", 2), 2)])
    read(batch, folder)
    poison = batch.decoded[1]

    def fragile(images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        if any(image is poison for image in images):
            raise RuntimeError("the kernel died")
        return extract(images)

    assert steps.compute_features(batch, fragile, ContactSheet()) == 9
    assert batch.failed == {1: "the kernel died"}


def test_a_device_that_fails_every_image_stops_the_run_and_blames_no_image(
    folder: Path, paint: Paint
) -> None:
    batch = Batch(1, [lease_of(paint("a.png", 1), 1), lease_of(paint("b.png", 2), 2)])
    read(batch, folder)

    def dead(_images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        raise RuntimeError("no device")

    with pytest.raises(RuntimeError, match="no device"):
        steps.compute_features(batch, dead, ContactSheet())
    assert not batch.failed


def test_a_passing_trouble_while_the_one_bad_image_is_looked_for_blames_none(
    folder: Path, paint: Paint
) -> None:
    batch = Batch(1, [lease_of(paint("a.png", 1), 1), lease_of(paint("b.png", 2), 2)])
    read(batch, folder)

    def away(images: Sequence[DecodedImage]) -> list[PatchFeatures | ImageError]:
        if len(images) == 1:
            raise TransientStoreError("the store is away")
        raise RuntimeError("the kernel died")

    with pytest.raises(TransientStoreError):
        steps.compute_features(batch, away, ContactSheet())
    assert not batch.failed


def test_a_file_larger_than_any_image_fails_and_is_not_read(folder: Path, paint: Paint) -> None:
    lease = lease_of(paint("a.png", 1), 1)
    os.truncate(lease.uri, 16 * 10**6 + 1)
    batch = Batch(1, [lease])
    assert read(batch, folder) == 0
    assert "16,000,001 bytes, more than an image of 1000000 pixels takes" in batch.failed[1]


def test_a_second_try_writes_only_what_the_first_did_not(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = [lease_of(paint(f"{n}.png", n), n) for n in (1, 2, 3)]
    batch = Batch(1, leases)
    read(batch, folder)
    steps.compute_features(batch, extract, ContactSheet())
    written: list[int] = []
    outages = iter([False, True, False, False])

    def replace(_engine: object, _spec: object, images: Sequence[ImagePatches]) -> list[Lease]:
        if next(outages):
            raise TransientStoreError("the server went away")
        written.extend(image.lease.image_id for image in images)
        return []

    monkeypatch.setattr(steps, "TRANSACTION_ROWS", 9)  # one image
    monkeypatch.setattr(steps, "replace_patches", replace)
    told: list[int] = []

    def upsert() -> int:
        return steps.upsert_features(
            batch,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            lambda image, _patches, _failed: told.append(image),
        )

    with pytest.raises(TransientStoreError):
        upsert()
    assert upsert() == 27
    assert written == told == [1, 2, 3]


def test_the_result_of_a_lost_lease_is_dropped(
    folder: Path, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch(1, [lease_of(paint("a.png"))])
    read(batch, folder)
    steps.compute_features(batch, extract, ContactSheet())

    monkeypatch.setattr(steps, "replace_patches", lambda *_: batch.leases)
    stored = steps.upsert_features(
        batch,
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        lambda *_: None,
    )
    assert stored == 0
