"""What can go wrong in a run.

FlowError
├── SourceError           the folder is unknown, not there or cannot be listed: a person must act
├── ScheduleError         an interval, a cron line or a time zone that cannot be read
├── PrefectApiError       the Prefect API refuses what it is asked: a person must act
│   └── PrefectApiAway    it does not answer just now: try again
├── BackfillError         some sources of a backfill failed, each with a run that says why
├── NotificationError     no such notification block: a person must act
└── TransientReadError    some files of a batch could not be read just now: try again

`is_transient` is the one place that decides what a task tries again, `is_of_the_run` whether an
image may be to blame for what ended a run.
"""

from typing import Any

from db.errors import CountMismatch, StoreError, TransientStoreError
from extractor.errors import NoRoom


class FlowError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class SourceError(FlowError):
    """The source is unknown, not there, or cannot be listed."""


class BackfillError(FlowError):
    """Some sources could not be ingested; the others were, as the `BackfillReport` says."""

    def __init__(self, message: str, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class ScheduleError(FlowError):
    """When to run cannot be understood."""


class PrefectApiError(FlowError):
    """The Prefect API refuses."""


class PrefectApiAway(PrefectApiError):
    """The Prefect API does not answer."""


class NotificationError(FlowError):
    """There is no such block, or it sends no notifications."""


class TransientReadError(FlowError):
    """Some files could not be read; the next try reads only those."""


def is_transient(error: BaseException) -> bool:
    """Whether the same step may succeed when tried again: connections, locks, time-outs, disks."""
    kinds = TransientStoreError | TransientReadError | PrefectApiAway | NoRoom
    return isinstance(error, kinds | TimeoutError | ConnectionError)


def is_of_the_run(error: BaseException) -> bool:
    """Whether a run ended for reasons of its own: it was stopped, the store or the API failed it.

    Whatever else a run ends by, an image may have caused, and would again.
    """
    if not isinstance(error, Exception):  # Ctrl-C, a signal, Prefect's cancellation
        return True
    return (
        is_transient(error)
        or isinstance(error, FlowError)
        or (isinstance(error, StoreError) and not isinstance(error, CountMismatch))
    )
