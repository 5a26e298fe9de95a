"""Puts the commands together and turns errors into one line and an exit code."""

import os
import signal
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import click
import typer

from patchstore.errors import causes

from . import (
    bench,
    database,
    deploy,
    doctor,
    ingest,
    metadata,
    reports,
    search,
    serve,
    spec,
    upkeep,
)
from .console import INTERRUPTED, err, fail, print_line, say
from .startup import Leaving

LEAVE_S = 20.0  # for what Prefect has to tell its server yet
_STOPPED = "stopped; what was finished is stored, run the same command again to go on"

app = typer.Typer(
    name="patchstore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # "[default: ...]" is no markup
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(version_of("patchstore"))
        raise typer.Exit


@app.callback()
def patchstore(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and end."
        ),
    ] = False,
) -> None:
    """Patch feature vectors of your pictures, kept up to date in your own Postgres."""


app.command("ingest")(ingest.ingest)
app.command("deploy")(deploy.deploy)
app.command("worker")(deploy.worker)
app.command("search")(search.search)
app.command("serve")(serve.serve)
app.command("status")(reports.status)
app.command("failures")(reports.failures)
app.command("retry")(reports.retry)
app.command("export")(reports.export)
app.command("neighbours")(reports.neighbours)
app.command("metadata")(metadata.metadata)
app.command("audit")(upkeep.audit)
app.command("reindex")(upkeep.reindex)
app.command("backfill")(upkeep.backfill)
app.command("prune")(upkeep.prune)
app.command("forget")(upkeep.forget)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)
app.command("stop")(database.stop)
app.add_typer(spec.app, name="spec")
app.add_typer(database.app, name="db")


def start() -> None:
    """The entry point: a process of its own."""
    leaving = Leaving()
    signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
    except SystemExit as end:
        leaving.code = end.code if isinstance(end.code, int) else int(end.code is not None)
        leaving.at_latest(LEAVE_S)
        raise


def _interrupt(_number: int, _frame: object) -> None:
    """Ctrl-C ends what is under way in good order; once more, and the process is gone."""
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt


def _leave(_number: int, _frame: object) -> None:
    err.show_cursor()  # a progress bar has hidden it
    say(_STOPPED)
    os._exit(INTERRUPTED)  # what it had begun is free again, as after a kill


def main() -> None:
    """Runs the command that `sys.argv` names; ends in SystemExit."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer's own, for a KeyboardInterrupt
            say(_STOPPED)
        raise
    except click.exceptions.Abort:
        raise SystemExit(INTERRUPTED) from None
    except UnicodeError as error:
        fail(_no_text(error))
    except Exception as error:
        if not is_expected(error):
            raise
        fail(causes(error))


def _no_text(error: UnicodeError) -> str:
    """What is not UTF-8, in words: an argument, or the settings. Raises any other error again."""
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return f"{error.object!r} is not UTF-8 text"
    try:
        Path(".env").read_text(encoding="utf-8")
    except UnicodeError:
        return f"{Path('.env').absolute()} is not UTF-8 text"
    except OSError:  # there is none
        pass
    raise error


def is_expected(error: BaseException) -> bool:
    """Whether an error is a person's to mend: one line, no traceback."""
    from pydantic import ValidationError

    from db.errors import StoreError
    from extractor.errors import ExtractorError
    from flows.errors import FlowError
    from patchstore.errors import PatchstoreError

    kinds = (StoreError, ExtractorError, FlowError, PatchstoreError, ValidationError, OSError)
    return isinstance(error, kinds)
