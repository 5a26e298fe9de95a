"""What an operator sees of a run in the Prefect UI.

The database says how a run went. A Prefect that does not take what is said here costs a line in the
log, never the run.
"""

import base64
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from db.reports import Failure

from . import throughput
from .progress import Summary
from .stages import Tally

logger = logging.getLogger(__name__)

RETRIES = 3  # of a call, some twenty seconds; by default Prefect's client tries for a minute
MAX_FAILURES = 500  # artifacts live in Prefect's own database: keep them small


def publish_values(key: str, description: str, values: Mapping[str, Any]) -> None:
    """A table of plain values by their names; lists and what is unknown are left out."""
    with _unharmed():
        create_table_artifact(table=_rows(values), key=key, description=description)


def tag_run(source: str, spec: str) -> None:
    """Tags the current run with its source and spec, beside the tags that it has."""
    tags = {*flow_run.tags, f"source:{source}", f"spec:{spec}"}
    with _unharmed(), get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run.id), tags=sorted(tags))


def publish(source: str, spec: str, summary: Summary, failed: list[Failure], tally: Tally) -> None:
    """Renames the current run after its outcome, and shows tables and pictures of it."""
    with _unharmed():
        with get_client(sync_client=True) as client:
            name = f"{flow_run.name} - {outcome(summary)}"
            client.update_flow_run(UUID(flow_run.id), name=name)
        _publish_summary(source, spec, summary)
        _publish_failures(source, spec, failed)
        if tally.patches:
            _publish_throughput(tally)
            _publish_sheet(tally)


def outcome(summary: Summary) -> str:
    """What a run came to, in a few words: `812 new, 3 failed`."""
    news = {
        "new": summary.new,
        "changed": summary.changed,
        "moved": summary.moved,
        "vanished": summary.vanished,
    }
    said = [f"{count} {what}" for what, count in news.items() if count]
    if not said:
        said = [f"{summary.patches} patches computed" if summary.patches else "nothing new"]
    if summary.failed:
        said.append(f"{summary.failed} failed")
    if summary.unlisted:
        said.append(f"{len(summary.unlisted)} folders not listed")
    return ", ".join(said)


def _publish_summary(source: str, spec: str, summary: Summary) -> None:
    shares = summary.stage_shares()
    stages = {
        f"stage {stage}": f"{seconds:g} s ({shares[stage]:.0%} of the run)"
        for stage, seconds in summary.stage_seconds.items()
    }
    create_table_artifact(
        table=_rows(summary.as_json()) + _rows(stages),
        key="ingest-summary",
        description=f"Ingest of `{source}` with spec `{spec}`. "
        "Batches overlap: stages are summed over them.",
    )


def _rows(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"what": name.replace("_", " "), "value": value}
        for name, value in values.items()
        if value is not None and not isinstance(value, list | dict)
    ]


def _publish_failures(source: str, spec: str, failures: list[Failure]) -> None:
    """A table of the images that failed, each with its reason."""
    if not failures:
        return
    shown = [{"uri": f.uri, "reason": f.reason} for f in failures[:MAX_FAILURES]]
    more = f" (first {MAX_FAILURES} of {len(failures)})" if len(failures) > MAX_FAILURES else ""
    create_table_artifact(
        table=shown,
        key="ingest-failures",
        description=f"Images of `{source}` without vectors of `{spec}`{more}. "
        "Mend them, or run `patchstore retry` and ingest again.",
    )


def _publish_throughput(tally: Tally) -> None:
    _publish_picture(
        "ingest-throughput",
        f"{tally.patches:,} patches while the run computed",
        "image/svg+xml",
        throughput.draw(tally.computed).encode(),
    )


def _publish_sheet(tally: Tally) -> None:
    _publish_picture(
        "ingest-contact-sheet",
        f"{len(tally.sheet)} of {tally.sheet.offered:,} new patches, drawn at random",
        "image/jpeg",
        tally.sheet.jpeg(),
    )


def _publish_picture(key: str, description: str, media_type: str, content: bytes) -> None:
    """Within markdown: an image artifact prints its address, all of a data URI, below it."""
    address = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    create_markdown_artifact(
        markdown=f"![{description}]({address})", key=key, description=description
    )


@contextmanager
def _unharmed() -> Iterator[None]:
    """Whatever goes wrong inside is logged, and that is all."""
    try:
        with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: RETRIES}):
            yield
    except Exception:
        logger.warning("Prefect does not show all of this run", exc_info=True)
