"""The audit flow: is what searches show what the files say?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import BaseModel, Field
from sqlalchemy import Engine

from db.audit import (
    SampledPatch,
    check_ledger,
    count_orphans,
    measure_recall,
    record_audit,
    requeue,
    sample_files,
    sample_patches,
)
from db.server import connect
from db.specs import StoredSpec, get_spec
from extractor.allocator import keep_freed_memory
from extractor.files import file_status

from .artifacts import publish_values
from .environment import let_libraries_log
from .naming import COMPLETED_WITH_ERRORS, named_by_spec
from .progress import listener

MIN_RECALL = 0.95  # of the 10 nearest; a sound index has 0.99


class AuditRequest(BaseModel):
    """What is audited."""

    spec: str = Field("default", description="Name or alias of a spec.")
    sample: int = Field(
        100,
        ge=1,
        le=10_000,
        description="Patches that are searched for and computed again, and files that are looked "
        "for.",
    )
    requeue: bool = Field(
        False, description="Queue images that are wrong again, for the next ingest to compute."
    )


@dataclass
class AuditReport:
    """What an audit found.

    Attributes:
        recall: of the index at 10; None where searches are exact.
        sampled: patches that were searched for and computed again.
        skipped: those of them whose file is gone or another one now.
        differing: those of them that are not what their file gives.
        largest_difference: relative, of a stored vector to a recomputed one.
        files: that were looked for; `missing` are those that are not there.
        miscounted, unrecorded, unknown: images, see `db.audit.LedgerCheck`.
        orphans: contents that no file shows; no fault, `prune` deletes them.
        requeued: images that are queued again.
        problems: what is wrong and what to do, a line each; empty in a sound store.
    """

    spec: str
    recall: float | None = None
    sampled: int = 0
    skipped: int = 0
    differing: int = 0
    largest_difference: float = 0.0
    files: int = 0
    missing: int = 0
    miscounted: int = 0
    unrecorded: int = 0
    unknown: int = 0
    orphans: int = 0
    requeued: int = 0
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


@flow(name="audit", flow_run_name=named_by_spec("audit"), persist_result=False)
def audit(request: AuditRequest) -> State[AuditReport]:
    """Compares the index with an exact search, rows with the ledger, vectors with their files.

    Returns:
        Completed with the report, named `CompletedWithErrors` where something is wrong.
    """
    keep_freed_memory()
    let_libraries_log()
    listener().started()
    engine = connect()
    stored = get_spec(engine, request.spec)
    report = _audit(engine, stored, request)
    record_audit(
        engine, stored, recall=report.recall, sampled=report.sampled, report=report.as_json()
    )
    problems = {f"problem {n}": line for n, line in enumerate(report.problems, 1)}
    publish_values("audit", f"Audit of spec `{stored.name}`", report.as_json() | problems)
    if report.problems:
        return Completed(
            name=COMPLETED_WITH_ERRORS, message="; ".join(report.problems), data=report
        )
    return Completed(message="nothing is wrong", data=report)


def _audit(engine: Engine, stored: StoredSpec, request: AuditRequest) -> AuditReport:
    report = AuditReport(stored.name)
    ears = listener()
    ears.phase("comparing rows with the ledger")
    ledger = check_ledger(engine, stored)
    report.miscounted = len(ledger.miscounted)
    report.unrecorded = len(ledger.unrecorded)
    report.unknown = len(ledger.unknown)
    report.orphans = count_orphans(engine)
    _look_for_files(report, sample_files(engine, stored, request.sample))
    ears.phase("searching")
    sample = sample_patches(engine, stored, request.sample)
    report.sampled = len(sample)
    vectors = np.array([patch.vector for patch in sample], np.float32)
    report.recall = measure_recall(engine, stored, vectors)
    ears.phase("computing again")
    wrong = [*ledger.images(), *_compute_again(report, stored, sample)]
    _judge(report)
    if request.requeue and wrong:
        report.requeued = requeue(engine, stored, sorted(set(wrong)))
    return report


def _look_for_files(report: AuditReport, files: Sequence[tuple[str, str]]) -> None:
    looked_for: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    silent: dict[str, str] = {}
    for root, uri in files:
        if root in silent:  # to ask a storage that is away may take minutes, each time
            continue
        try:
            file_status(uri)
        except (FileNotFoundError, NotADirectoryError):
            missing[root] += 1
        except OSError as error:
            silent[root] = f"{uri}: {error.strerror or error}"
            continue
        looked_for[root] += 1
    report.files, report.missing = looked_for.total(), missing.total()
    report.problems += [
        f"{count} of {looked_for[root]} files looked for in {root} are not there; "
        f"if that folder is mounted, run: patchstore ingest {root} --spec {report.spec}"
        for root, count in missing.items()
    ]
    report.problems += [
        f"files in {root} cannot be looked for: {reason}" for root, reason in silent.items()
    ]


def _compute_again(
    report: AuditReport, stored: StoredSpec, sample: Sequence[SampledPatch]
) -> list[int]:
    """Adds to the report how the sample compares; returns the images that differ."""
    if not sample:
        return []
    from .recompute import recompute  # torch takes seconds

    found = recompute(stored, sample)
    report.skipped, report.differing = found.skipped, len(found.differing)
    report.largest_difference = found.largest_difference
    if found.differing:
        first = found.differing[0]
        report.problems.append(
            f"{report.differing} of {found.compared} vectors are not what their files give, such "
            f"as {first.uri}@{first.box[0]},{first.box[1]}; {_mend(report)}; where it is many, "
            "pictures are read in another way than they were: backfill a new spec"
        )
    return [patch.image_id for patch in found.differing]


def _judge(report: AuditReport) -> None:
    for count, what in (
        (report.miscounted, "images have another number of rows than was recorded"),
        (report.unrecorded, "images have rows and are not done"),
        (report.unknown, "images have rows and do not exist"),
    ):
        if count:
            report.problems.append(f"{count} {what}; {_mend(report)}")
    if report.recall is not None and report.recall < MIN_RECALL:
        report.problems.append(
            f"recall at 10 is {report.recall:.3f}, expected {MIN_RECALL} or more; "
            f"run: patchstore reindex --spec {report.spec}; where that has just been done, many "
            "near copies lie in each other's way: search wider (ef_search) or exactly"
        )


def _mend(report: AuditReport) -> str:
    return f"run: patchstore audit --spec {report.spec} --requeue, then ingest their folders again"
