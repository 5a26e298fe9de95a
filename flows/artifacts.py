"""What an operator sees of a run in the Prefect UI."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_table_artifact

from db.reports import Failure

from .progress import Summary

MAX_FAILURES = 500  # artifacts live in Prefect's own database: keep them small


def publish_summary(source: str, spec: str, summary: Summary) -> None:
    """A table of the run's counts."""
    about = f"Ingest of `{source}` with spec `{spec}`"
    publish_values("ingest-summary", about, summary.as_json())


def publish_values(key: str, description: str, values: Mapping[str, Any]) -> None:
    """A table of plain values by their names; lists and what is unknown are left out."""
    rows = [
        {"what": name.replace("_", " "), "value": value}
        for name, value in values.items()
        if value is not None and not isinstance(value, list | dict)
    ]
    create_table_artifact(table=rows, key=key, description=description)


def publish_failures(source: str, spec: str, failures: list[Failure]) -> None:
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
