"""The other upkeep flows: reindex, prune, backfill. Each may be killed at any line and repeated."""

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, Field
from sqlalchemy import Engine

from db.catalog import list_sources, queue_known
from db.index import churn, count_rows, drop_leftovers, is_due, is_indexed, is_outgrown
from db.prune import count_vanished, prune_records
from db.prune import prune as prune_store
from db.reports import SourceStatus, status
from db.server import connect
from db.settings import MOST_DAYS, StoreSettings
from db.specs import StoredSpec, get_spec

from .artifacts import publish_values
from .environment import let_libraries_log
from .errors import BackfillError, FlowError, SourceError
from .indexing import keep_index, renew_index
from .ingest import ingest
from .naming import COMPLETED_WITH_ERRORS, named, named_by_spec
from .progress import listener
from .request import IngestRequest
from .sources import root_of


class ReindexRequest(BaseModel):
    """Which index is built anew."""

    spec: str = Field("default", description="Name or alias of a spec.")
    if_needed: bool = Field(
        True,
        description="Only where more rows were replaced than PATCHSTORE_REINDEX_CHURN says, or "
        "where it was built for far fewer.",
    )


class BackfillRequest(BaseModel):
    """What is computed under a spec."""

    spec: str = Field(description="Name or alias of a spec.")
    sources: list[str] = Field(
        default_factory=list, description="Folders that were ingested before; none: all of them."
    )


class PruneRequest(BaseModel):
    """What is deleted."""

    keep_days: float | None = Field(
        None,
        ge=0,
        le=MOST_DAYS,
        description="Days for which what vanished stays; none: PATCHSTORE_KEEP_VANISHED_DAYS.",
    )


@dataclass
class ReindexReport:
    """What became of an index.

    Attributes:
        churn: rows deleted since it was built, as a share of all; None where there was none.
        outcome: `rebuilt`, `built`, `not needed`, or `busy`: another process is at it.
        leftovers: indexes that killed runs left half-built or did not put away, now dropped.
        outgrown: it had been built for far fewer rows.
    """

    spec: str
    churn: float | None
    outcome: str
    leftovers: int
    outgrown: bool = False
    seconds: float = 0.0


@dataclass
class BackfillReport:
    """Where the sources stand under the spec.

    Attributes:
        queued: images that the spec lacked.
        incomplete: sources of which images failed, or a folder could not be listed.
    """

    spec: str
    queued: int = 0
    sources: list[SourceStatus] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Files without vectors, for a reason."""
        return sum(source.failed for source in self.sources)

    @property
    def pending(self) -> int:
        """Files that are left for another run."""
        return sum(source.pending + source.leased for source in self.sources)


@flow(name="reindex", flow_run_name=named_by_spec("reindex"), persist_result=False)
def reindex(request: ReindexRequest) -> State[ReindexReport]:
    """Builds a spec's index anew while searches go on by the old one; builds a missing one."""
    let_libraries_log()
    listener().started()
    engine, begun = connect(), time.monotonic()
    stored = get_spec(engine, request.spec)
    report = _reindex(engine, stored, only_if_needed=request.if_needed)
    report.seconds = round(time.monotonic() - begun, 1)
    publish_values("reindex", f"Index of spec `{stored.name}`", asdict(report))
    return Completed(message=f"{stored.name}: {report.outcome}", data=report)


def _reindex(engine: Engine, stored: StoredSpec, *, only_if_needed: bool) -> ReindexReport:
    leftovers = drop_leftovers(engine, stored)
    if not is_indexed(engine, stored):
        outcome = "built" if keep_index(engine, stored) else _why_not(engine, stored)
        return ReindexReport(stored.name, None, outcome, leftovers)
    share, outgrown = churn(engine, stored), is_outgrown(engine, stored)
    if only_if_needed and not outgrown and share <= StoreSettings().reindex_churn:
        return ReindexReport(stored.name, share, "not needed", leftovers)
    outcome = "rebuilt" if renew_index(engine, stored) else "busy"
    return ReindexReport(stored.name, share, outcome, leftovers, outgrown)


def _why_not(engine: Engine, stored: StoredSpec) -> str:
    """Why no index was built: another process is at it, or none is due."""
    due = is_due(stored, count_rows(engine, stored), StoreSettings().index_threshold)
    return "busy" if due else "not needed"


@flow(name="prune", flow_run_name=lambda: named("prune"), persist_result=False)
def prune(request: PruneRequest | None = None) -> State[dict[str, int]]:
    """Deletes what vanished from the sources, vectors included, and old records, for good.

    What vanished only lately is kept, and counted: it may be on a disk that is not mounted.
    """
    let_libraries_log()
    listener().started()
    engine, settings = connect(), StoreSettings()
    keep_days = settings.keep_vanished_days
    if request is not None and request.keep_days is not None:
        keep_days = request.keep_days
    deleted = prune_store(engine, keep_days) | prune_records(engine, settings.keep_records_days)
    deleted["kept"] = count_vanished(engine)
    publish_values("prune", "Deleted for good", deleted)
    return Completed(message=f"{deleted['images']} images deleted", data=deleted)


@flow(name="backfill", flow_run_name=named_by_spec("backfill"), persist_result=False)
def backfill(request: BackfillRequest) -> State[BackfillReport]:
    """Computes a spec's vectors of all images that are known, one source after the other.

    The index is built after the last of them: each would be written far more slowly beside one.
    Searches by other specs go on. A run that is repeated goes on where the last one ended.

    Raises:
        BackfillError: some sources could not be ingested; the others were.
        SourceError: a folder was never ingested.
    """
    let_libraries_log()
    engine = connect()
    stored = get_spec(engine, request.spec)
    sources = _sources(engine, request.sources)
    report = BackfillReport(stored.name, queue_known(engine, stored, list(sources.values())))
    troubled = [trouble for root in sources if (trouble := _ingest(root, stored, report))]
    keep_index(engine, stored)
    report.sources = [s for s in status(engine, spec=stored.name) if s.source in sources]
    for source in report.sources:
        values = asdict(source) | {"queued": report.queued}
        publish_values("backfill", f"`{source.source}` under spec `{stored.name}`", values)
    if troubled:
        raise BackfillError(
            f"{len(troubled)} of {len(sources)} sources failed, first: {troubled[0]}; "
            "mend that and run the same again",
            report,
        )
    message = f"{report.failed} failed, {report.pending} pending"
    name = COMPLETED_WITH_ERRORS if report.incomplete or report.pending else "Completed"
    return Completed(name=name, message=message, data=report)


def _sources(engine: Engine, folders: list[str]) -> dict[str, int]:
    known = list_sources(engine)
    if not folders:
        return known
    wanted = [root_of(folder) for folder in folders]
    for root in wanted:
        if root not in known:
            raise SourceError(
                f"{root} was never ingested; known: {', '.join(known) or 'none'}; "
                "run: patchstore ingest FOLDER"
            )
    return {root: known[root] for root in wanted}


def _ingest(root: str, stored: StoredSpec, report: BackfillReport) -> str | None:
    """Ingests a source in a run of its own; returns what went wrong, if anything did."""
    request = IngestRequest(source=root, spec=stored.name, build_index=False)
    state: Any = ingest(request, return_state=True)
    if state.is_completed():
        report.incomplete += [root] * (state.name == COMPLETED_WITH_ERRORS)
        return None
    error = state.result(raise_on_failure=False)
    return str(error) if isinstance(error, FlowError) else f"{root}: {error}"
