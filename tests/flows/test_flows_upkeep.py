"""The upkeep flows on a real Prefect API, over a real store with faults made by hand."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from db.aliases import promote
from db.index import build_index, index_name, is_indexed
from db.reports import status
from db.specs import StoredSpec
from extractor import device
from extractor.backbone import resolve
from extractor.spec import Recipe
from flows.errors import BackfillError, SourceError
from patchstore.store import register

Paint = Callable[..., Path]
PATCHES = 9


@pytest.fixture
def ingested(ingest: Any, paint: Paint, folder: Path) -> Path:
    """Three pictures in the store."""
    for n in range(3):
        paint(f"{n}.png", n)
    assert ingest()[0].name == "Completed"
    return folder


@pytest.fixture
def other(store: Engine) -> StoredSpec:
    """Another network over the same patches."""
    recipe = Recipe(backbone="squeezenet1_1", weights="random:1", patch_size=48, stride=48)
    return register(store, "other", resolve(recipe))


def run_audit(spec: StoredSpec, **options: Any) -> Any:
    from flows.audit import AuditRequest, audit

    state: Any = audit(AuditRequest(spec=spec.name, **options), return_state=True)
    return state, state.result()


def run_backfill(spec: StoredSpec, *sources: Path) -> Any:
    from flows.upkeep import BackfillRequest, backfill

    return backfill(BackfillRequest(spec=spec.name, sources=[str(source) for source in sources]))


def change(store: Engine, statement: str) -> None:
    with store.begin() as connection:
        connection.execute(text(statement))


def test_an_audit_of_a_sound_store_finds_nothing_and_is_kept(
    ingested: Path, store: Engine, spec: StoredSpec
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    build_index(store, spec, threshold=0, memory_mb=16)
    state, report = run_audit(spec)
    assert (state.name, report.problems) == ("Completed", [])
    assert (report.sampled, report.files, report.recall) == (3 * PATCHES, 3, 1.0)
    assert 0 <= report.largest_difference < 1e-5
    with store.connect() as connection:
        (row,) = connection.execute(text("SELECT recall, sampled, report FROM patchstore.audit"))
    assert row == (1.0, 3 * PATCHES, report.as_json())
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run_id).name.startswith("audit tiny 20")
        (artifact,) = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    assert {"what": "recall", "value": 1.0} in json.loads(artifact.data)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("DELETE FROM {partition} WHERE x = 0", "3 images have another number of rows"),
        (
            "UPDATE {partition} SET embedding = (SELECT embedding FROM {partition} LIMIT 1) "
            "WHERE image_id = (SELECT max(image_id) FROM {partition})",
            "of 27 vectors are not what their files give",
        ),
        ("UPDATE {partition} SET x = x + 1", "27 of 27 vectors are not what their files give"),
        (
            "INSERT INTO {partition} (spec_id, image_id, x, y, width, height, scale, embedding) "
            "SELECT spec_id, 999, x, y, width, height, scale, embedding FROM {partition}"
            " WHERE image_id = (SELECT max(image_id) FROM {partition})",
            "1 images have rows and do not exist",
        ),
    ],
    ids=["rows-deleted", "vectors-bent", "boxes-moved", "rows-of-nothing"],
)
def test_a_fault_is_found_and_mended_by_requeue_and_ingest(
    ingest: Any, ingested: Path, store: Engine, spec: StoredSpec, fault: str, problem: str
) -> None:
    change(store, fault.format(partition=spec.partition))
    state, report = run_audit(spec, requeue=True)
    assert state.name == "CompletedWithErrors"
    (found,) = report.problems
    assert problem in found
    ingest()
    assert run_audit(spec)[1].problems == []


def test_files_that_vanished_or_changed_are_told_apart(
    ingested: Path, paint: Paint, spec: StoredSpec
) -> None:
    (ingested / "0.png").unlink()
    paint("1.png", 99)
    _state, report = run_audit(spec)
    assert (report.files, report.missing, report.skipped) == (3, 1, 2 * PATCHES)
    assert report.problems == [
        f"1 of 3 files looked for in {ingested} are not there; if that folder is mounted, "
        f"run: patchstore ingest {ingested} --spec tiny"
    ]


def test_files_of_a_storage_that_is_away_are_not_said_to_be_gone(
    ingested: Path, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def away(uri: str) -> None:
        asked.append(uri)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("flows.audit.file_status", away)
    _state, report = run_audit(spec)
    assert (report.files, report.missing) == (0, 0)
    assert report.problems == [
        f"files in {ingested} cannot be looked for: {asked[0]}: Input/output error"
    ]
    assert len(asked) == 1


@pytest.mark.parametrize("mode", ["exact", "dense"])
def test_vectors_of_a_lower_precision_are_judged_by_it(
    prefect_api: str,
    store: Engine,
    paint: Paint,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: Any,
) -> None:
    from flows.ingest import ingest
    from flows.request import IngestRequest

    monkeypatch.setattr(device, "candidates", lambda _: ("bf16",))  # emulated where it is not
    recipe = Recipe(
        backbone="squeezenet1_1", weights="random:0", patch_size=48, stride=48, mode=mode
    )
    low = register(store, "low", resolve(recipe))
    paint("a.png")
    ingest(IngestRequest(source=str(folder), spec="low", precision="bf16"))
    _state, report = run_audit(low)
    assert report.problems == []
    assert 1e-4 < report.largest_difference < 0.125


def test_an_audit_compares_patches_of_scales_that_float32_rounds(
    prefect_api: str, store: Engine, paint: Paint, folder: Path
) -> None:
    from flows.ingest import ingest
    from flows.request import IngestRequest

    recipe = Recipe(
        backbone="squeezenet1_1",
        weights="random:0",
        patch_size=48,
        stride=48,
        scales=(1.0, 0.7),
    )
    scaled = register(store, "scaled", resolve(recipe))
    paint("a.png")
    ingest(IngestRequest(source=str(folder), spec="scaled", precision="float32"))
    _state, report = run_audit(scaled)
    assert report.problems == []
    assert 0 <= report.largest_difference < 1e-5


def test_reindex_builds_what_is_missing_and_rebuilds_what_has_churned(
    ingested: Path, store: Engine, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.upkeep import ReindexRequest, reindex

    def outcome(**options: Any) -> str:
        report: Any = reindex(ReindexRequest(spec="tiny", **options))
        return str(report.outcome)

    assert outcome() == "not needed"
    monkeypatch.setenv("PATCHSTORE_INDEX_THRESHOLD", "1")
    with monkeypatch.context() as patched:
        patched.setattr("flows.upkeep.keep_index", lambda *_arguments: False)  # another one builds
        assert outcome() == "busy"
    assert outcome() == "built"
    assert outcome() == "not needed"
    change(
        store,
        f"SELECT pg_stat_force_next_flush(); UPDATE {spec.partition} SET embedding = embedding",
    )
    assert outcome() == "rebuilt"
    assert outcome() == "not needed"
    assert outcome(if_needed=False) == "rebuilt"
    monkeypatch.setattr("db.index.MANY_ROWS", 1)
    assert outcome() == "rebuilt"
    assert outcome() == "not needed"
    assert is_indexed(store, spec)


def test_prune_deletes_what_vanished(ingest: Any, ingested: Path, prefect_api: str) -> None:
    from flows.upkeep import PruneRequest, prune

    (ingested / "0.png").unlink()
    ingest()
    deleted: Any = prune(PruneRequest(keep_days=0))
    assert (deleted["locations"], deleted["images"], deleted["patches"]) == (1, 1, PATCHES)


def test_a_backfill_computes_all_known_sources_and_then_the_spec_can_be_promoted(
    ingest: Any, ingested: Path, store: Engine, spec: StoredSpec, other: StoredSpec, tmp_path: Path
) -> None:
    second = tmp_path / "second"
    shutil.copytree(ingested, second)
    ingest(second)
    promote(store, spec, "live")
    report = run_backfill(other)
    assert [(s.source, s.done) for s in report.sources] == [(str(ingested), 3), (str(second), 3)]
    assert (report.queued, report.failed, report.pending) == (3, 0, 0)
    assert promote(store, other, "live") == "tiny"
    assert run_backfill(other).queued == 0
    assert [s.done for s in status(store, spec="tiny")] == [3, 3]


def test_a_backfill_builds_the_index_once_after_its_last_source(
    ingest: Any,
    ingested: Path,
    store: Engine,
    other: StoredSpec,
    tmp_path: Path,
    paint: Paint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    paint("../second/another.png", 7)
    ingest(second)
    monkeypatch.setenv("PATCHSTORE_INDEX_THRESHOLD", "1")
    run_backfill(other)
    assert is_indexed(store, other)
    with store.connect() as connection:
        built, written = connection.execute(
            text(
                "SELECT (SELECT built_at FROM patchstore.index_build WHERE spec_id = :spec), "
                "(SELECT max(updated_at) FROM patchstore.extraction WHERE spec_id = :spec)"
            ),
            {"spec": other.id},
        ).one()
    assert built > written


def test_a_backfill_tells_of_a_folder_that_could_not_be_listed(
    ingest: Any, ingested: Path, other: StoredSpec
) -> None:
    for path in ingested.iterdir():
        path.unlink()
    report = run_backfill(other)
    assert (report.failed, report.incomplete) == (0, [str(ingested)])


def test_a_backfill_goes_on_past_a_source_that_is_gone_and_then_fails(
    ingest: Any,
    ingested: Path,
    store: Engine,
    other: StoredSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATCHSTORE_INDEX_THRESHOLD", "1")
    gone = tmp_path / "a-gone"
    shutil.copytree(ingested, gone)
    ingest(gone)
    shutil.rmtree(gone)
    with pytest.raises(BackfillError, match=f"1 of 2 sources failed, first: {gone} does not exist"):
        run_backfill(other)
    (row,) = [s for s in status(store, spec="other") if s.source == str(ingested)]
    assert row.done == 3
    assert is_indexed(store, other)


def test_a_backfill_of_a_folder_that_was_never_ingested_names_those_that_were(
    ingested: Path, other: StoredSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ingested.parent)
    assert len(run_backfill(other, Path(ingested.name)).sources) == 1
    with pytest.raises(SourceError, match=f"/nowhere was never ingested; known: {ingested}"):
        run_backfill(other, Path(os.sep, "nowhere"))


def test_an_ingest_drops_what_a_killed_rebuild_left_beside_the_index(
    ingested: Path, ingest: Any, store: Engine, spec: StoredSpec
) -> None:
    build_index(store, spec, threshold=0, memory_mb=16)
    name = f"{index_name(spec)}_ccnew"
    change(store, f"CREATE INDEX {name} ON {spec.partition} (x)")
    change(
        store,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'patchstore.{name}'::regclass",
    )
    assert ingest()[0].name == "Completed"
    with store.connect() as connection:
        left = connection.execute(text(f"SELECT to_regclass('patchstore.{name}')")).scalar()
    assert left is None and is_indexed(store, spec)
