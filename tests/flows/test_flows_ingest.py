"""The ingest flow on a real Prefect API and a real Postgres."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from PIL import Image
from sqlalchemy import Engine, text

from db.errors import ConfigurationError, TransientStoreError
from db.ledger import retry_failed
from db.reports import failures, last_runs, patch_matrix, status
from db.search import SearchOptions, search
from db.specs import StoredSpec
from extractor.backbone import resolve
from extractor.device import FLOAT32, ONNX, Way
from extractor.errors import Abandoned, WeightsError
from extractor.features import FeatureExtractor
from extractor.onnx import ExportedNetwork
from extractor.spec import Recipe
from flows import batch as steps
from flows import models, scan
from flows.errors import PrefectApiError
from flows.sources import FolderSource
from patchstore.store import register

Paint = Callable[..., Path]
PATCHES = 9


def uris(engine: Engine, spec: StoredSpec) -> set[str]:
    """The names that searches show."""
    return {Path(uri).name for rows in patch_matrix(engine, spec) for uri in rows.uris}


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on any file opened, pixel decoded or forward pass is an error."""

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("this run had nothing to do")

    monkeypatch.setattr(steps, "read_image", refuse)
    monkeypatch.setattr(models.Model, "__init__", refuse)


def logs_of(state: Any) -> list[Any]:
    """The lines of a run that is over, as Prefect's API has them."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    logs: list[Any] = []
    with get_client(sync_client=True) as client:
        for _ in range(300):  # lines are sent every other second, and may overtake each other
            before, logs = logs, client.read_logs(of_run)
            whole = any(log.message.startswith("Finished in state") for log in logs)
            if whole and len(logs) == len(before):
                break
            threading.Event().wait(0.3)
    return logs


def test_a_first_run_stores_every_patch_of_every_image(
    ingest: Any, paint: Paint, store: Engine, spec: StoredSpec
) -> None:
    for n in range(3):
        paint(f"{n}.png", n)
    state, summary = ingest()
    assert state.name == "Completed"
    assert (summary.found, summary.new, summary.done, summary.patches) == (3, 3, 3, 3 * PATCHES)
    rows = list(patch_matrix(store, spec))
    assert sum(len(r.uris) for r in rows) == 3 * PATCHES
    np.testing.assert_allclose(np.linalg.norm(rows[0].vectors, axis=1), 1.0, atol=1e-5)


def test_a_second_run_opens_no_file_and_runs_no_forward_pass(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    ingest()
    forbid_work(monkeypatch)
    monkeypatch.setattr(scan.Source, "read", lambda *_: 1 / 0)
    state, summary = ingest()
    assert state.name == "Completed"
    assert (summary.unchanged, summary.done, summary.patches) == (1, 1, 0)


def test_a_touched_file_is_not_decoded(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = paint("a.png", 1)
    ingest()
    os.utime(path, (1, 1))
    forbid_work(monkeypatch)
    assert ingest()[1].unchanged == 1


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda path: path.rename(path.with_name("b.png")), {"b.png"}),
        (lambda path: shutil.copy(path, path.with_name("b.png")), {"a.png"}),
    ],
    ids=["renamed", "copied"],
)
def test_a_renamed_or_copied_file_is_not_computed_again(
    ingest: Any,
    paint: Paint,
    store: Engine,
    spec: StoredSpec,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Path], object],
    expected: set[str],
) -> None:
    path = paint("a.png", 1)
    ingest()
    act(path)
    forbid_work(monkeypatch)
    _state, summary = ingest()
    assert (summary.moved, summary.new, summary.vanished, summary.patches) == (1, 0, 0, 0)
    assert summary.done == summary.found
    assert uris(store, spec) == expected


def test_a_changed_file_is_replaced_and_its_old_patches_are_gone(
    ingest: Any, paint: Paint, store: Engine, spec: StoredSpec
) -> None:
    paint("a.png", 1)
    ingest()
    paint("a.png", 2, size=(48, 48))
    _state, summary = ingest()
    assert (summary.changed, summary.new, summary.patches) == (1, 0, 1)
    assert sum(len(rows.uris) for rows in patch_matrix(store, spec)) == 1


def test_a_vanished_file_leaves_the_searches(
    ingest: Any, paint: Paint, store: Engine, spec: StoredSpec
) -> None:
    paint("a.png", 1)
    path = paint("b.png", 2)
    ingest()
    path.unlink()
    assert ingest()[1].vanished == 1
    query = np.ones(spec.dim, np.float32)
    assert {Path(hit.uri).name for hit in search(store, spec, query, SearchOptions(50)).hits} == {
        "a.png"
    }


def test_a_folder_that_lost_all_its_images_is_taken_for_one_that_is_not_mounted(
    ingest: Any, paint: Paint, store: Engine, spec: StoredSpec
) -> None:
    path = paint("a.png", 1)
    ingest()
    path.unlink()
    state, summary = ingest()
    assert (state.name, summary.vanished) == ("CompletedWithErrors", 0)
    (said,) = summary.unlisted
    assert f"{path.parent}: no image is there, but the store has 1 of it" in said
    query = np.ones(spec.dim, np.float32)
    assert search(store, spec, query, SearchOptions(1)).hits

    state, summary = ingest(allow_empty=True)
    assert (state.name, summary.vanished, summary.unlisted) == ("Completed", 1, [])
    assert search(store, spec, query, SearchOptions(1)).hits == []
    assert ingest()[1].unlisted == []  # there is nothing to lose any more


def test_some_bad_images_complete_with_errors_and_reasons(
    ingest: Any, paint: Paint, folder: Path, store: Engine
) -> None:
    paint("good.png", 1)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture at all")
    state, summary = ingest()
    assert state.is_completed()
    assert state.name == "CompletedWithErrors"
    assert (summary.done, summary.failed, summary.pending) == (1, 2, 0)
    assert [Path(f.uri).name for f in failures(store)] == ["empty.jpg", "text.jpg"]
    assert all(failure.reason for failure in failures(store))


def test_failed_images_are_not_computed_again_until_someone_asks(
    ingest: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "empty.jpg").write_bytes(b"")
    ingest()
    forbid_work(monkeypatch)
    state, summary = ingest()
    assert (state.name, summary.failed) == ("CompletedWithErrors", 1)


def test_images_whose_storage_was_away_are_computed_by_the_next_run(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    extract = steps.extract_patches

    def away(*_: object) -> Any:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as storage:
        storage.setattr(
            steps, "extract_patches", lambda *given, **_: extract(*given, last_try=True)
        )
        storage.setattr(FolderSource, "read", away)
        state, summary = ingest()
        assert (state.name, summary.failed) == ("CompletedWithErrors", 1)
        assert summary.reasons == {"cannot be read: Input/output error": 1}
    state, summary = ingest()
    assert (state.name, summary.done, summary.failed) == ("Completed", 1, 0)


def test_an_image_that_was_too_large_when_it_was_found_has_its_size_once_it_is_computed(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    size = text("SELECT width, height FROM patchstore.image")
    with monkeypatch.context() as limit:
        limit.setenv("PATCHSTORE_MAX_PIXELS", "100")
        assert ingest()[1].failed == 1
    with store.connect() as connection:
        assert connection.execute(size).one() == (None, None)
    retry_failed(store, None, None)
    assert ingest()[1].done == 1
    with store.connect() as connection:
        assert None not in connection.execute(size).one()


def test_images_that_may_have_killed_their_worker_are_computed_one_after_the_other(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        paint(f"{n}.png", n)
    extract, write = steps.extract_patches, steps.replace_patches
    events: list[tuple[str, int]] = []

    def fail(*_: object) -> Any:
        raise RuntimeError("something about one of them")

    def read(batch: Any, *given: Any, **options: Any) -> int:
        events.append(("read", len(batch.leases)))
        return extract(batch, *given, **options)

    def written(engine: Engine, spec: StoredSpec, images: Any) -> Any:
        events.append(("written", len(images)))
        return write(engine, spec, images)

    monkeypatch.setattr(steps, "replace_patches", fail)
    for _ in range(2):
        assert ingest()[0].is_failed()
    monkeypatch.setattr(steps, "extract_patches", read)
    monkeypatch.setattr(steps, "replace_patches", written)
    assert ingest()[0].is_completed()
    assert events == 3 * [("read", 1), ("written", 1)]


def test_missing_weights_fail_the_run_and_lose_nothing(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)

    def missing(_stored: object) -> Any:
        raise WeightsError("weights gone.pth are not here")

    monkeypatch.setattr(models, "load", missing)
    state, _summary = ingest()
    assert state.is_failed()
    (row,) = status(store)
    assert (row.found, row.pending) == (1, 1)
    assert last_runs(store, 1)[0].summary == {"error": "weights gone.pth are not here"}


def test_a_setting_that_cannot_be_read_is_told_before_the_folder_is(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    monkeypatch.setenv("PATCHSTORE_BATCH_SIZE", "many")
    state, _summary = ingest()
    assert state.is_failed()
    assert status(store) == []


def test_a_run_that_is_interrupted_says_so(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)

    def interrupt(_stored: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ingest()
    (run,) = last_runs(store)
    assert (run.state, run.summary) == ("failed", {"error": "interrupted"})


def test_what_a_run_was_computing_ends_with_it(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    computing, abandoned = threading.Event(), threading.Event()
    extract, abandon = models.Model.extract, models.Model.abandon
    ended: list[BaseException] = []

    def wait(model: models.Model, images: Any) -> Any:
        computing.set()
        assert abandoned.wait(30)
        try:
            return extract(model, images)
        except BaseException as error:
            ended.append(error)
            raise

    def note(model: models.Model) -> None:
        abandon(model)
        abandoned.set()

    def interrupt(*_arguments: Any) -> Any:
        assert computing.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(models.Model, "extract", wait)
    monkeypatch.setattr(models.Model, "abandon", note)
    monkeypatch.setattr("flows.ingest._settle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ingest()
    assert [type(error) for error in ended] == [Abandoned]


def test_the_check_of_precisions_ends_with_its_run(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    checking, abandoned = threading.Event(), threading.Event()
    abandon = models.Model.abandon
    went_on: list[bool] = []

    def check(*arguments: Any) -> Any:
        checking.set()
        assert abandoned.wait(30)
        arguments[-1]()
        went_on.append(True)

    def note(model: models.Model) -> None:
        abandon(model)
        abandoned.set()

    def interrupt(*_arguments: Any) -> Any:
        assert checking.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "check_precision", check)
    monkeypatch.setattr(models.Model, "abandon", note)
    monkeypatch.setattr("flows.ingest._settle", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ingest(precision="auto")
    assert went_on == []


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ConfigurationError("the database refused: permission denied"), 0),
        (PrefectApiError("PATCHSTORE_GPU_SLOT names a limit that is not there"), 0),
        (KeyboardInterrupt(), 0),
        (RuntimeError("something about this image"), 1),
    ],
)
def test_a_run_that_ends_for_reasons_of_its_own_uses_up_no_attempt_of_its_images(
    ingest: Any,
    paint: Paint,
    store: Engine,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    attempts: int,
) -> None:
    paint("a.png", 1)

    def refuse(*_arguments: Any) -> Any:
        raise error if isinstance(error, Exception) else RuntimeError("nothing is written")

    def interrupt(*_arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "replace_patches", refuse)
    if isinstance(error, Exception):
        assert ingest()[0].is_failed()
    else:
        monkeypatch.setattr("flows.ingest._settle", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ingest()
    with store.connect() as connection:
        found = connection.execute(text("SELECT attempts FROM patchstore.extraction")).scalar()
    assert found == attempts
    assert last_runs(store)[0].summary["precision"] == "float32"  # type: ignore[index]


@pytest.mark.parametrize("way", [Way(FLOAT32, ONNX), Way("bf16")], ids=str)
def test_a_way_that_fails_on_a_real_batch_gives_way_to_torch_in_float32(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch, way: Way
) -> None:
    paint("a.png", 1)
    forward = FeatureExtractor.forward

    def fail(*_arguments: Any) -> Any:
        raise RuntimeError("Failed to allocate memory")

    def fail_in_bf16(extractor: FeatureExtractor, batch: Any) -> Any:
        return forward(extractor, batch) if extractor.way == Way() else fail()

    monkeypatch.setattr("extractor.device.candidates", lambda _: ("bf16",))
    monkeypatch.setattr(models.Model, "_choose", lambda *_: way)
    monkeypatch.setattr(ExportedNetwork, "start", fail)
    monkeypatch.setattr(FeatureExtractor, "forward", fail_in_bf16)
    state, summary = ingest(precision="auto")
    assert (state.name, summary.done) == ("Completed", 1)
    assert [log for log in logs_of(state) if "Failed to allocate memory" in log.message]


def test_a_run_that_cannot_say_how_it_ended_is_recorded_as_failed(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)

    def away(*_arguments: Any, **_options: Any) -> Any:
        raise TransientStoreError("connection lost")

    monkeypatch.setattr("flows.ingest.failures", away)
    assert ingest()[0].is_failed()
    (run,) = last_runs(store)
    assert (run.state, run.summary) == (
        "failed",
        {"error": "connection lost", "precision": "float32"},
    )


def test_a_database_that_drops_every_connection_costs_no_second_forward_pass(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        paint(f"{n}.png", n)
    passes: list[int] = []
    extract = models.Model.extract

    def count(self: models.Model, images: Any) -> Any:
        passes.append(len(images))
        return extract(self, images)

    replace = steps.replace_patches
    outage = iter([True])

    def cut_off(engine: Engine, *arguments: Any) -> Any:
        if next(outage, False):
            url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
            with psycopg.connect(url, autocommit=True) as other:
                other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            raise TransientStoreError("terminating connection due to administrator command")
        return replace(engine, *arguments)

    monkeypatch.setattr(models.Model, "extract", count)
    monkeypatch.setattr(steps, "replace_patches", cut_off)
    state, summary = ingest()
    assert state.name == "Completed"
    assert passes == [3]
    assert summary.done == 3


def test_a_database_that_is_away_between_two_batches_does_not_end_the_run(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import tasks

    paint("a.png", 1)
    lease = tasks.lease_batch
    outages = iter([False, True])

    def away(*arguments: Any) -> Any:
        if next(outages, False):
            raise TransientStoreError("connection refused")
        return lease(*arguments)

    monkeypatch.setattr(tasks, "lease_batch", away)
    state, summary = ingest()
    assert state.name == "Completed"
    assert (summary.done, summary.pending) == (1, 0)
    assert [log for log in logs_of(state) if "connection refused" in log.message]


def test_a_batch_that_was_leased_without_an_answer_is_computed_by_the_same_run(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import tasks

    monkeypatch.setenv("PATCHSTORE_BATCH_IMAGES", "2")
    for n in range(6):
        paint(f"{n}.png", n)
    lease = tasks.lease_batch
    unheard = iter([False, True])

    def lost(*arguments: Any) -> Any:
        leases = lease(*arguments)
        if next(unheard, False):
            raise TransientStoreError("the server closed the connection")
        return leases

    monkeypatch.setattr(tasks, "lease_batch", lost)
    state, summary = ingest()
    assert state.name == "Completed"
    assert (summary.done, summary.pending) == (6, 0)
    (row,) = status(store)
    assert (row.done, row.leased) == (6, 0)


def test_two_runs_at_once_share_the_work_and_compute_nothing_twice(
    ingest: Any, paint: Paint, store: Engine, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHSTORE_BATCH_IMAGES", "2")
    for n in range(12):
        paint(f"{n}.png", n)
    summaries: list[Any] = []
    runs = [threading.Thread(target=lambda: summaries.append(ingest()[1])) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sum(summary.patches for summary in summaries) == 12 * PATCHES
    (row,) = status(store)
    assert (row.done, row.failed, row.pending, row.leased) == (12, 0, 0, 0)


def test_two_specs_of_one_folder_may_be_computed_at_once(
    prefect_api: str, ingest: Any, paint: Paint, folder: Path, store: Engine
) -> None:
    from flows.ingest import ingest as flow
    from flows.request import IngestRequest

    recipe = Recipe(backbone="squeezenet1_1", weights="random:0", patch_size=48, stride=48)
    coarse = register(store, "coarse", resolve(recipe))
    for n in range(6):
        paint(f"{n}.png", n)
    request = IngestRequest(source=str(folder), spec=coarse.name, precision="float32")
    runs = [threading.Thread(target=ingest), threading.Thread(target=flow, args=(request,))]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [(row.done, row.failed, row.pending, row.leased) for row in status(store)] == [
        (6, 0, 0, 0)
    ] * 2


def test_a_changed_content_shows_the_old_until_the_new_is_written(
    ingest: Any, paint: Paint, store: Engine, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png", 1)
    ingest()
    paint("a.png", 2, size=(48, 48))
    shown: list[int] = []
    replace = steps.replace_patches

    def look_first(*arguments: Any) -> Any:
        shown.append(sum(len(rows.uris) for rows in patch_matrix(store, spec)))
        return replace(*arguments)

    monkeypatch.setattr(steps, "replace_patches", look_first)
    ingest()
    assert shown == [PATCHES]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of each check of precisions, how many patches of each picture it saw."""
    seen: list[list[int]] = []
    check = models.check_precision

    def note(*arguments: Any, **options: Any) -> Any:
        seen.append([len(image.grid) for image in arguments[2]])
        return check(*arguments, **options)

    monkeypatch.setattr(models, "check_precision", note)
    return seen


def test_auto_checks_a_precision_once_and_records_it(
    ingest: Any, paint: Paint, store: Engine, checks: list[list[int]]
) -> None:
    for seed in range(5):
        paint(f"{seed}.png", seed)
    ingest(precision="auto")
    paint("b.png", 9)
    ingest(precision="auto")
    assert checks == [[7, 7, 6, 6, 6]]
    with store.connect() as connection:
        rows = connection.execute(
            text("SELECT precision, min_cosine, detail FROM patchstore.precision_check")
        ).all()
    assert len(rows) == 1
    assert rows[0].min_cosine >= 0.999
    assert "float32" in rows[0].detail or rows[0].precision != "float32"


def test_before_many_images_the_planner_is_told_what_there_is(
    ingest: Any, paint: Paint, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each lease goes through all that waits, until autovacuum comes by."""
    monkeypatch.setattr("flows.ingest.MANY_IMAGES", 3)
    known = "SELECT reltuples FROM pg_class WHERE oid = 'patchstore.extraction'::regclass"
    found = []
    for seeds in ((0, 1), (2, 3, 4)):
        for seed in seeds:
            paint(f"{seed}.png", seed)
        ingest()
        with store.connect() as connection:
            found.append(connection.execute(text(known)).scalar())
    assert found[0] != 2 and found[1] == 5


def test_what_few_patches_say_of_a_precision_holds_for_their_run_alone(
    ingest: Any, paint: Paint, checks: list[list[int]]
) -> None:
    for seed in range(2):
        paint(f"{seed}.png", seed)
        ingest(precision="auto")
    assert checks == [[PATCHES], [PATCHES]]


def test_an_image_without_suffix_that_cannot_be_opened_any_more_has_not_vanished(
    ingest: Any, paint: Paint, folder: Path, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint("a.png").rename(folder / "scan0001")
    (folder / "notes").write_text("no image")
    ingest()
    open_it = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return open_it(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    _state, summary = ingest()
    assert (summary.found, summary.vanished, summary.others) == (1, 0, 1)
    (failure,) = failures(store)
    assert (failure.uri, failure.reason) == (
        str(folder / "scan0001"),
        "cannot be read: Permission denied",
    )


def test_an_operator_reads_the_tasks_names_in_prefect(
    ingest: Any, paint: Paint, folder: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        TaskRunFilter,
        TaskRunFilterFlowRunId,
    )

    paint("good.png", 1)
    (folder / "empty.jpg").write_bytes(b"")
    state, _summary = ingest()
    run_id = state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        tasks: list[Any] = []
        for _ in range(600):  # the API records task runs some seconds later
            tasks = client.read_task_runs(
                task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
            )
            if len(tasks) == 5 and all(task.end_time for task in tasks):
                break
            threading.Event().wait(0.1)
    assert {task.name for task in tasks} == {
        "lease images",
        "read batch 1 of 2 images",
        "compute batch 1 of 2 images",
        "write batch 1 of 2 images",
    }


def test_the_runs_log_holds_our_lines_and_none_for_each_task_that_went_well(
    ingest: Any, paint: Paint
) -> None:
    paint("a.png", 1)
    state, _summary = ingest(precision="auto")
    logs = logs_of(state)
    assert [log for log in logs if log.message.startswith("computing in ")]
    assert [log for log in logs if log.message.startswith("scanned ")]
    names = {log.name for log in logs}
    assert {"flows.models", "flows.live"} <= names
    assert "prefect.task_runs" not in names


def test_images_of_many_modes_are_all_stored(ingest: Any, folder: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "I;16", "1"):
        name = f"{mode.replace(';', '_')}.tif"
        Image.new("RGB", (60, 60), (200, 30, 90)).convert("L" if mode == "I;16" else mode).convert(
            mode
        ).save(folder / name)
    state, summary = ingest()
    assert (state.name, summary.done) == ("Completed", 6)


def test_a_run_is_planned_without_torch_which_only_a_batch_needs() -> None:
    command = "import flows.ingest, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0


def test_a_run_that_finds_no_source_any_more_is_on_record(
    ingest: Any, paint: Paint, folder: Path, store: Engine
) -> None:
    paint("a.png")
    ingest()
    shutil.rmtree(folder)
    for source in (folder, folder / "never-ingested"):
        state, _ = ingest(source)
        assert state.is_failed()
    failed, before = last_runs(store)
    assert (failed.state, before.state) == ("failed", "completed")
    assert failed.summary is not None
    assert "does not exist" in failed.summary["error"]


def test_a_source_that_goes_away_while_it_is_scanned_ends_the_run_and_no_image_is_to_blame(
    ingest: Any, paint: Paint, folder: Path, store: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(40):
        paint(f"{n}.png", n)
    asked: list[str] = []

    def away(source: FolderSource, uri: str) -> Any:
        asked.append(uri)
        if folder.exists():
            folder.rename(folder.with_name("unmounted"))
        threading.Event().wait(0.1)  # the others are let go meanwhile
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setenv("PATCHSTORE_SCAN_THREADS", "1")
    monkeypatch.setattr(FolderSource, "open", away)
    assert ingest()[0].is_failed()
    (run,) = last_runs(store)
    assert run.summary is not None
    assert "does not exist" in run.summary["error"]
    assert len(asked) < 40
    assert not failures(store)
