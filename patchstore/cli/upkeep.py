"""`patchstore audit|reindex|prune|backfill`: what keeps a store sound over the years."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    SOME_IMAGES_FAILED,
    SOMETHING_WRONG,
    confirm,
    print_json,
    print_table,
    say,
)
from .reports import find_source
from .startup import loading

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from flows.audit import AuditReport
    from flows.upkeep import BackfillReport

Spec = Annotated[
    str | None, typer.Option(help="Spec or alias.  [default: default, or the only one]")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def audit(
    spec: Spec = None,
    sample: Annotated[
        int,
        typer.Option(
            min=1,
            max=10_000,
            help="Patches to search for and to compute again, and files to look for.",
        ),
    ] = 100,
    requeue: Annotated[
        bool,
        typer.Option("--requeue", help="Queue images that are wrong again, for the next ingest."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the index, the ledger, the files and the vectors; change nothing unless told to.

    Exit code 0: nothing is wrong; 3: something is, and a line says what to do; 1: the audit itself
    failed.
    """
    from patchstore.store import spec_for_search

    with prefect() as engine:
        name = spec_for_search(engine, spec).name
        from flows.audit import AuditRequest
        from flows.audit import audit as flow
    report: AuditReport = run(flow, AuditRequest(spec=name, sample=sample, requeue=requeue))
    if as_json:
        print_json(report.as_json())
    else:
        for line in describe(report):
            say(line)
    if report.problems:
        raise SystemExit(SOMETHING_WRONG)


def reindex(
    spec: Spec = None,
    if_needed: Annotated[
        bool,
        typer.Option(
            "--if-needed",
            help="Only where more rows were replaced than PATCHSTORE_REINDEX_CHURN, or where it "
            "was built for far fewer.",
        ),
    ] = False,
) -> None:
    """Build a spec's index anew, while searches go on by the old one. Safe to kill and repeat."""
    from db.metric import MAX_INDEXED_DIM
    from db.settings import StoreSettings
    from patchstore.store import spec_for_search

    with prefect() as engine:
        name = spec_for_search(engine, spec).name
        from flows.upkeep import ReindexRequest
        from flows.upkeep import reindex as flow
    report = run(flow, ReindexRequest(spec=name, if_needed=if_needed))
    churn = "" if report.churn is None else f", {report.churn:.0%} of its rows were replaced"
    outgrown = ", it had been built for far fewer rows" if report.outgrown else ""
    few = ""
    if report.churn is None and report.outcome == "not needed":
        least = StoreSettings().index_threshold
        few = (
            f", it is built from {least:,} patches on (PATCHSTORE_INDEX_THRESHOLD), "
            f"of {MAX_INDEXED_DIM:,} dimensions at most"
        )
    say(f"index of {name}: {report.outcome}{churn}{outgrown}{few} ({report.seconds:.1f} s)")
    if report.leftovers:
        say(f"indexes that killed runs had left, now dropped: {report.leftovers}")


def prune(
    keep_days: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=36_500,  # db.settings.MOST_DAYS
            help="Keep what vanished in so many days: a disk may come back; 0 deletes all."
            "  [default: PATCHSTORE_KEEP_VANISHED_DAYS, 7]",
        ),
    ] = None,
) -> None:
    """Delete what vanished from the sources, vectors included, and old records, for good."""
    with prefect():
        from flows.upkeep import PruneRequest
        from flows.upkeep import prune as flow
    deleted = run(flow, PruneRequest(keep_days=keep_days))
    say(
        f"deleted {deleted['locations']} vanished files, {deleted['images']} images, "
        f"{deleted['patches']} patches, records of {deleted['runs']} runs and {deleted['audits']} "
        "audits"
    )
    if kept := deleted["kept"]:
        say(f"kept {kept} files that vanished only lately; to delete them, too: --keep-days 0")


def forget(
    source: Annotated[str, typer.Argument(help="A folder that was ingested.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a source for good, with the vectors of what no other source shows; no file is touched.

    The next ingest of the folder, or of a schedule, begins anew.
    """
    from db.prune import forget_source
    from patchstore.store import open_store

    engine = open_store()
    root, known = find_source(engine, source)
    confirm(f"forget {root} with the vectors and the metadata of its images, for good?", yes=yes)
    deleted = forget_source(engine, known)
    say(
        f"forgot {root}: {deleted['locations']} files; deleted {deleted['images']} images with "
        f"{deleted['patches']} patches"
    )


def backfill(
    spec: Annotated[str, typer.Option(help="Spec to compute.")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SOURCE]...", help="Only these folders.  [default: all known]"),
    ] = None,
) -> None:
    """Compute a spec's vectors of all images that are known; other specs go on serving.

    Safe to kill and repeat. Exit codes are those of ingest.
    """
    with prefect() as engine:
        from db.specs import get_spec
        from flows.errors import BackfillError
        from flows.upkeep import BackfillRequest
        from flows.upkeep import backfill as flow

        name = get_spec(engine, spec).name
    request = BackfillRequest(spec=name, sources=list(sources or ()))
    try:
        report = run(flow, request)
    except BackfillError as error:
        _print_sources(error.report)
        raise
    _print_sources(report)
    if report.failed:
        say(f"each failure: patchstore failures --spec {name}")
    elif report.incomplete:
        say(f"not listed as a whole: {', '.join(report.incomplete)}; patchstore ingest tells why")
    if report.incomplete:
        raise SystemExit(SOME_IMAGES_FAILED)
    if not report.pending:
        say(f"next: patchstore spec promote {name} --as ALIAS")


def _print_sources(report: "BackfillReport") -> None:
    print_table(
        ("source", "spec", "found", "done", "failed", "pending", "patches"),
        (
            (s.source, s.spec, s.found, s.done, s.failed, s.pending + s.leased, s.patches)
            for s in report.sources
        ),
    )


@contextmanager
def prefect() -> Iterator["Engine"]:
    """The store, while a Prefect server is found or started; inside, import the flow."""
    from db.settings import StoreSettings
    from extractor.allocator import keep_freed_memory
    from flows import environment

    keep_freed_memory()
    server = environment.prepare(StoreSettings().resolved_home())
    from patchstore.store import open_store

    engine = open_store()
    with loading():
        yield engine
    if server is not None:
        server.wait()


def run(flow: Callable[..., Any], *requests: object) -> Any:
    """Runs a flow in this process, shows how it gets on, and returns its report."""
    from flows.prefect_api import run_flow
    from flows.progress import listening

    from .progress import ProgressBar

    with ProgressBar(time.monotonic()) as bar, listening(bar):
        return run_flow(flow, *requests).result()


def describe(report: "AuditReport") -> list[str]:
    """The report as lines for a person."""
    recall = "exact, without an index" if report.recall is None else f"{report.recall:.4f}"
    compared = report.sampled - report.skipped
    lines = [
        f"spec {report.spec}",
        f"  recall at 10: {recall}",
        f"  rows against the ledger: {report.miscounted} images miscounted, {report.unrecorded} "
        f"unrecorded, {report.unknown} unknown",
        f"  files: {report.missing} of {report.files} looked for are not there",
        f"  vectors: {report.differing} of {compared} computed again differ; the largest "
        f"difference is {report.largest_difference:.1e}",
    ]
    if report.skipped:
        lines.append(
            f"  {report.skipped} more could not be: their file is gone, unreadable or has changed"
        )
    if report.orphans:
        lines.append(f"  {report.orphans} images are shown by no file: patchstore prune")
    lines += [f"wrong: {problem}" for problem in report.problems]
    if report.requeued:
        lines.append(f"queued {report.requeued} images again")
    return lines
