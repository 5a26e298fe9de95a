"""What flow runs are called: what, about what, when; and how some of them end."""

from collections.abc import Callable
from datetime import datetime

from prefect.runtime import flow_run

COMPLETED_WITH_ERRORS = "CompletedWithErrors"  # a run that leaves something to a person


def named_by_spec(flow: str) -> Callable[[], str]:
    """Names runs of a flow whose request has a spec: `reindex default 2026-11-23 14:00`."""
    return lambda: named(flow, flow_run.parameters["request"].spec)


def named(flow: str, about: str = "") -> str:
    """`reindex default 2026-11-23 14:00`."""
    return " ".join(part for part in (flow, about, f"{datetime.now():%Y-%m-%d %H:%M}") if part)
