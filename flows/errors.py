"""What can go wrong in a run.

FlowError
├── SourceError           the folder is not there or cannot be listed: a person must act
├── ApiError              the Prefect API cannot be reached, or refuses
├── NotificationError     no such notification block: a person must act
└── TransientReadError    some files of a batch could not be read just now: try again

`is_transient` is the one place that decides what a task tries again.
"""

from db.errors import TransientStoreError


class FlowError(Exception):
    """Base of every error of this room; its text is one line for a person."""


class SourceError(FlowError):
    """The source cannot be listed."""


class ApiError(FlowError):
    """The Prefect API cannot be reached, or refuses."""


class NotificationError(FlowError):
    """There is no such block, or it sends no notifications."""


class TransientReadError(FlowError):
    """Some files could not be read; the next try reads only those."""


def is_transient(error: BaseException) -> bool:
    """Whether the same step may succeed when tried again: connections, locks, time-outs."""
    return isinstance(
        error, TransientStoreError | TransientReadError | TimeoutError | ConnectionError
    )
