"""What an operator sees of a run in the Prefect UI."""

import base64
import io
import json
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import pytest
from PIL import Image
from sqlalchemy import Engine

from db.reports import last_runs
from db.specs import StoredSpec
from flows.progress import Summary

Paint = Callable[..., Path]


def artifacts_of(run_id: UUID) -> dict[str, Any]:
    """The run's artifacts by their keys."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=of_run)
    return {str(artifact.key): artifact for artifact in found}


def run_of(run_id: UUID) -> Any:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow_run(run_id)


def embedded(markdown: str, media_type: str) -> bytes:
    """The picture inside a markdown artifact."""
    found = re.fullmatch(rf"!\[[^\]]+\]\(data:{re.escape(media_type)};base64,(\S+)\)", markdown)
    assert found is not None
    return base64.b64decode(found[1], validate=True)


def test_a_run_shows_its_outcome_by_name_tags_tables_and_pictures(
    ingest: Any,
    paint: Paint,
    folder: Path,
    store: Engine,
    spec: StoredSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows import live

    monkeypatch.setattr(live, "PERIOD_S", 3600.0)  # no run is long enough for its progress
    for n in range(3):
        paint(f"{n}.png", n)
    (folder / "empty.jpg").write_bytes(b"")
    state, summary = ingest()
    run = run_of(state.state_details.flow_run_id)
    assert re.fullmatch(
        rf"ingest {folder.name} \d{{4}}-\d\d-\d\d \d\d:\d\d - 4 new, 1 failed", run.name
    )
    assert set(run.tags) == {f"source:{folder}", f"spec:{spec.name}"}
    shown = artifacts_of(run.id)
    assert set(shown) == {
        "ingest-summary",
        "ingest-failures",
        "ingest-throughput",
        "ingest-contact-sheet",
    }
    assert sum(len(str(artifact.data)) for artifact in shown.values()) < 200_000
    rows = {row["what"]: row["value"] for row in json.loads(shown["ingest-summary"].data)}
    assert (rows["done"], rows["failed"], rows["patches"]) == (3, 1, 27)
    assert rows["stage forward"].endswith("of the run)")
    (failure,) = json.loads(shown["ingest-failures"].data)
    assert failure["uri"] == str(folder / "empty.jpg")
    assert failure["reason"]
    sheet = embedded(shown["ingest-contact-sheet"].data, "image/jpeg")
    assert Image.open(io.BytesIO(sheet)).format == "JPEG"
    assert shown["ingest-contact-sheet"].description.startswith("27 of 27 new patches")
    plot = embedded(shown["ingest-throughput"].data, "image/svg+xml")
    assert ElementTree.fromstring(plot.decode()).tag.endswith("svg")
    stored = last_runs(store, 1)[0].summary
    assert stored is not None
    assert stored["stage_seconds"] == summary.stage_seconds
    assert stored["stage_seconds"]["forward"] > 0
    assert 0 < stored["device_busy"] <= 1


def test_an_idle_run_says_so_and_shows_no_picture(ingest: Any, paint: Paint) -> None:
    paint("a.png")
    ingest()
    state, summary = ingest()
    run = run_of(state.state_details.flow_run_id)
    assert run.name.endswith(" - nothing new")
    assert set(artifacts_of(run.id)) == {"ingest-summary"}
    assert (summary.device_busy, summary.stage_seconds["forward"]) == (None, 0)


def test_a_run_in_progress_is_followed_to_its_end(
    ingest: Any, paint: Paint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import live

    monkeypatch.setattr(live, "PERIOD_S", 0.01)
    monkeypatch.setattr(live, "LAST_CALL_S", 60.0)
    monkeypatch.setenv("PATCHSTORE_BATCH_IMAGES", "2")
    for n in range(6):
        paint(f"{n}.png", n)
    state, _summary = ingest()
    progress = artifacts_of(state.state_details.flow_run_id)["ingest-progress"]
    assert (progress.type, progress.data) == ("progress", 100)
    assert progress.description.startswith("6 of 6 images, 54 patches at ")


def test_a_prefect_that_is_away_does_not_harm_the_run(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from prefect import flow
    from prefect.context import SyncClientContext
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows import artifacts, live
    from flows.stages import Tally

    ours = logging.getLogger("flows")  # not through the root's handlers: Prefect sets those
    monkeypatch.setattr(ours, "handlers", [caplog.handler])
    monkeypatch.setattr(ours, "propagate", False)
    monkeypatch.setattr(live, "PERIOD_S", 0.01)
    looked = threading.Event()

    def look() -> None:
        looked.set()

    @flow
    def run() -> str:
        tally = Tally()
        tally.begin(1)
        away = temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"})
        # The flow's own client stays connected: with a context of other settings none is shared.
        with SyncClientContext({"timeout": 30}), away:
            artifacts.tag_run("/photos", "tiny")
            with live.LiveProgress(tally, look):
                assert looked.wait(30)
            artifacts.publish("/photos", "tiny", Summary(), [], tally)
        return "went on"

    assert run() == "went on"
    said = [record for record in caplog.records if record.name.startswith("flows.")]
    assert sorted(record.getMessage() for record in said) == [
        "Prefect does not show all of this run",
        "Prefect does not show all of this run",
        "Prefect does not take the progress of this run",
    ]


@pytest.mark.parametrize(
    ("summary", "words"),
    [
        (Summary(new=812, failed=3), "812 new, 3 failed"),
        (Summary(changed=2, moved=1, vanished=4), "2 changed, 1 moved, 4 vanished"),
        (Summary(unchanged=9), "nothing new"),
        (Summary(unchanged=9, failed=3), "nothing new, 3 failed"),
        (Summary(unchanged=9, patches=27), "27 patches computed"),
        (Summary(new=1, unlisted=["/locked"]), "1 new, 1 folders not listed"),
    ],
)
def test_an_outcome_names_what_happened(prefect_api: str, summary: Summary, words: str) -> None:
    from flows.artifacts import outcome

    assert outcome(summary) == words
