"""What flow runs are called: what, about what, when; and how some of them end."""

from datetime import datetime

COMPLETED_WITH_ERRORS = "CompletedWithErrors"  # a run that leaves something to a person


def named(flow: str, about: str = "") -> str:
    """`reindex default 2026-11-23 14:00`."""
    return " ".join(part for part in (flow, about, f"{datetime.now():%Y-%m-%d %H:%M}") if part)
