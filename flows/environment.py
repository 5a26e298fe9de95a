"""Prefect's environment, set before Prefect is imported; what the user has set stays."""

import logging
import os
from pathlib import Path

from dotenv import load_dotenv

from db.settings import StoreSettings

from . import local_server
from .local_server import LocalServer

ROOMS = ("extractor", "db", "flows")
DEFAULTS = {
    # Task records in batches: 7 ms of server time a task instead of 24.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # The libraries' logs belong to the run that they are about.
    "PREFECT_LOGGING_EXTRA_LOGGERS": ",".join(ROOMS),
    "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
    # The same libraries log outside of runs too, and that is no reason for a warning.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def prepare(home: Path, *, console: str = "CRITICAL") -> LocalServer | None:
    """Sets what Prefect reads on import, and starts a local server where no API is configured.

    Args:
        home: Prefect's own files go below it.
        console: level of what Prefect and the runs log to standard error. A command prints its own
            progress; the run's log in Prefect keeps everything.

    Returns:
        The local server, perhaps not up yet; None where `PREFECT_API_URL` names one.
    """
    local = configured_api() is None
    os.environ["PATCHSTORE_HOME"] = str(home)
    folder = prefect_home(home)
    defaults = DEFAULTS | {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": console}
    # When the API is away, it is said once, and not again for each line of the log and each event.
    logging.raiseExceptions = False
    if local:
        # Seconds instead of a minute: nobody starts a local server again while a command waits.
        defaults["PREFECT_CLIENT_MAX_RETRIES"] = "3"
        defaults["PREFECT_HOME"] = str(folder)
        defaults["PREFECT_UI_STATIC_DIRECTORY"] = str(folder / "ui")
    for name, value in defaults.items():
        if not os.environ.get(name):  # empty is what a .env file leaves of a setting taken back
            os.environ[name] = value
    if not local:
        if StoreSettings().is_embedded:
            local_server.use(folder)  # its Postgres is needed all the same
        return None
    _reach_by_no_proxy("127.0.0.1", "localhost")
    server = local_server.ensure(folder)
    os.environ["PREFECT_API_URL"] = server.api_url
    return server


def _reach_by_no_proxy(*hosts: str) -> None:
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    listed = [host for host in known.split(",") if host]
    listed += [host for host in hosts if host not in listed]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(listed)


def configured_api() -> str | None:
    """The Prefect API that the user has set, perhaps in `.env`; None: the home's own is used."""
    # Also for the processes started from here: a run of a worker has a folder of its own.
    load_dotenv(".env")
    return os.environ.get("PREFECT_API_URL") or None


def let_libraries_log() -> None:
    """Opens the rooms' loggers at INFO: Prefect hands on their lines, but leaves them closed.

    They would drown in Prefect's own line for each task that went well, four a batch.
    """
    for room in ROOMS:
        logger = logging.getLogger(room)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)
    logging.getLogger("prefect.task_runs").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Finished in state Completed")


def prefect_home(home: Path) -> Path:
    """Where Prefect's own files are."""
    return home / "prefect"
