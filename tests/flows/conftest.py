"""A small untrained spec in the store, and the ingest flow on a real Prefect API."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from db.specs import StoredSpec
from extractor.backbone import resolve
from extractor.spec import Recipe
from flows.progress import Listener, Summary, listening
from patchstore.store import register

TINY = Recipe(backbone="squeezenet1_1", weights="random:0", patch_size=48, stride=24)


@pytest.fixture(scope="session", autouse=True)
def _prefect_knows_its_settings(prefect_api: str) -> None:
    """Before any test of this folder imports Prefect, which reads its settings then."""


@pytest.fixture
def spec(store: Engine) -> StoredSpec:
    """An untrained SqueezeNet over patches of 48 pixels: 9 of them in a picture of 96 x 80."""
    return register(store, "tiny", resolve(TINY))


class Ear(Listener):
    """Keeps the summary of a run."""

    def __init__(self) -> None:
        self.summary: Summary | None = None

    def finished(self, summary: Summary) -> None:
        self.summary = summary


Ingest = Callable[..., tuple[object, Summary | None]]


@pytest.fixture
def ingest(prefect_api: str, spec: StoredSpec, folder: Path) -> Ingest:
    """Runs the flow over `folder`; returns its final state and its summary."""
    from flows.ingest import ingest as flow
    from flows.request import IngestRequest

    def run(source: Path = folder, **options: object) -> tuple[object, Summary | None]:
        ear = Ear()
        given = {"source": str(source), "spec": spec.name, "precision": "float32", **options}
        with listening(ear):
            state = flow(IngestRequest.model_validate(given), return_state=True)
        return state, ear.summary

    return run
