"""`patchstore ingest`: bring the vectors of a folder up to date, and show how it goes."""

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from patchstore.errors import causes
from patchstore.words import DEFAULT_SPEC

from .console import FAILED, SOME_IMAGES_FAILED, print_json, say
from .startup import loading

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from flows.progress import Summary
    from flows.request import IngestRequest

# The words that scripts rely on.
SUMMARY_KEYS = (
    "found",
    "new",
    "changed",
    "moved",
    "unchanged",
    "vanished",
    "done",
    "failed",
    "pending",
    "patches",
    "seconds",
    "patches_per_second",
    "precision",
    "stage_seconds",
    "device_busy",
    "gpu_utilization",
)


class Precision(StrEnum):
    """What the forward pass computes in."""

    auto = "auto"
    float32 = "float32"
    bf16 = "bf16"
    fp16 = "fp16"
    by_onnxruntime = "float32 by onnxruntime"
    by_mnn = "float32 by mnn"
    by_openvino = "bf16 by openvino"
    float32_compiled = "float32 by torch.compile"
    bf16_compiled = "bf16 by torch.compile"
    fp16_compiled = "fp16 by torch.compile"


def ingest(
    source: Annotated[
        str, typer.Argument(help="Folder with images, or a URL such as s3://bucket/photos.")
    ],
    spec: Annotated[str, typer.Option(help="Spec to compute.")] = DEFAULT_SPEC,
    precision: Annotated[
        Precision, typer.Option(help="auto: the fastest that agrees with float32, as checked.")
    ] = Precision.auto,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what a run would do and cost; store no vector.")
    ] = False,
    allow_empty: Annotated[
        bool,
        typer.Option(
            "--allow-empty",
            help="Forget all images of a folder that holds none any more, or is gone; else it "
            "counts as a disk that is not mounted.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON object.")
    ] = False,
) -> None:
    """Compute vectors of new and changed images; forget vanished ones. Safe to kill and repeat.

    Exit code 0: nothing failed; 3: some images failed, or a folder could not be listed; 1: the run
    itself failed.
    """
    begun = time.monotonic()
    from db.settings import StoreSettings
    from extractor.allocator import keep_freed_memory
    from flows import environment
    from flows.request import IngestRequest
    from flows.sources import source_at

    keep_freed_memory()
    folder = source_at(source, may_be_gone=allow_empty)  # a wrong path is said at once
    # The server starts while everything else loads.
    server = None if dry_run else environment.prepare(StoreSettings().resolved_home())
    from patchstore.store import open_store, spec_for_ingest

    engine = open_store()
    stored = spec_for_ingest(engine, spec)
    if dry_run:
        from patchstore.estimate import estimate

        plan = estimate(engine, stored, folder, precision.value, allow_empty=allow_empty)
        print_json(plan.as_json()) if as_json else say(plan.text())
        if plan.unlisted:
            raise SystemExit(SOME_IMAGES_FAILED)
        return
    with loading():
        import flows.ingest

        if _has_work(engine, folder.root, stored.name):
            import flows.models  # noqa: F401  torch: now, rather than in the middle of the run
    if server is not None:
        server.wait()
    request = IngestRequest.model_validate(
        {
            "source": source,
            "spec": stored.name,
            "precision": precision.value,
            "allow_empty": allow_empty,
        }
    )
    summary, startup_s = run(request, begun)
    if as_json:
        print_json({key: getattr(summary, key) for key in SUMMARY_KEYS})
    else:
        say(f"{source} · spec {spec} · {summary.seconds:.1f} s (and {startup_s:.1f} s to start)")
        for line in describe(summary):
            say(f"  {line}")
        if server is not None:
            say(f"  the run in Prefect, for a while: {server.ui_url}/runs")
    if summary.is_troubled:
        raise SystemExit(SOME_IMAGES_FAILED)


def _has_work(engine: "Engine", root: str, spec: str) -> bool:
    """Whether images are known to wait: all of a new source, or what the last run left."""
    from db.reports import source_id, status

    known = source_id(engine, root)
    standing = status(engine, source_id=known, spec=spec) if known is not None else []
    return not standing or any(row.pending or row.leased for row in standing)


def run(request: "IngestRequest", begun: float) -> tuple["Summary", float]:
    """Runs the flow with a progress bar; ends the command where the run itself failed.

    `begun` is when the command started, of `time.monotonic`. Prefect's environment must stand.

    Returns:
        The summary, and how long it took to get to the flow's start, in seconds.
    """
    from flows.errors import PrefectApiAway
    from flows.ingest import ingest as flow
    from flows.prefect_api import run_flow
    from flows.progress import listening

    from .progress import ProgressBar

    with ProgressBar(begun) as bar, listening(bar):
        try:
            state = run_flow(flow, request)
        except PrefectApiAway:
            if bar.summary is None:
                raise
            say("warning: the Prefect API went away, and shows this run as unfinished")
            return bar.summary, bar.startup_s
    if state.is_failed() or state.is_crashed() or bar.summary is None:
        error = state.result(raise_on_failure=False)
        detail = causes(error) if isinstance(error, BaseException) else state.message
        say(f"error: the run failed: {detail}")
        raise SystemExit(FAILED)
    return bar.summary, bar.startup_s


def describe_stages(summary: "Summary") -> str:
    """Which part of the run's time each stage took, and how busy the device was, in one line."""
    shares = summary.stage_shares()
    del shares["wait"]  # grows with the window of batches in flight: its complement says more
    told = ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items())
    gpu = summary.gpu_utilization
    return (
        f"of the time, overlapping: {told}; device busy {summary.device_busy or 0:.0%} of computing"
        + ("" if gpu is None else f", GPU utilisation {gpu:.0%}")
    )


def describe(summary: "Summary") -> list[str]:
    """The summary as lines for a person, with the reasons of failures."""
    lines = [
        f"found {summary.found}: {summary.new} new, {summary.changed} changed, "
        f"{summary.moved} moved, {summary.unchanged} unchanged; {summary.vanished} vanished",
        f"done {summary.done}, failed {summary.failed}, pending {summary.pending}",
    ]
    if summary.elsewhere:
        lines.append(f"{summary.elsewhere} of the pending are being computed by another run")
    if summary.patches:
        lines.append(
            f"{summary.patches:,} patches at {summary.patches_per_second:,.1f} patches/s"
            f" in {summary.precision}"
        )
        lines.append(describe_stages(summary))
    if summary.others:
        lines.append(f"{summary.others} other files are no images")
    lines += [f"not listed: {folder}" for folder in summary.unlisted]
    if summary.failed:
        lines += [f"{count} × {reason}" for reason, count in summary.reasons.items()]
        if more := summary.failed - sum(summary.reasons.values()):
            lines.append(f"{more} more for other reasons")
        lines.append("each of them: patchstore failures")
    return lines
