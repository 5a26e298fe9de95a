"""Prefect's environment, set before Prefect is imported; what the user has set stays."""

import os
from pathlib import Path

SERVER = {
    # Task records in batches: 7 ms of server time a task instead of 24.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The libraries' logs belong to the run that they are about.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "extractor,db,flows",
}
# A command prints its own progress; the run's log keeps everything.
COMMAND = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL"}


def prepare(home: Path, *, command: bool) -> None:
    """Sets what Prefect reads on import.

    Args:
        home: Prefect's own files go below it, unless the user has set `PREFECT_HOME` or an API.
        command: whether a person's command line is the place where this runs.
    """
    defaults = SERVER | (COMMAND if command else {})
    if "PREFECT_API_URL" not in os.environ and "PREFECT_HOME" not in os.environ:
        prefect_home = home / "prefect"
        defaults["PREFECT_HOME"] = str(prefect_home)
        defaults["PREFECT_UI_STATIC_DIRECTORY"] = str(prefect_home / "ui")
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
