"""What every command shares: where text goes, exit codes, errors as one line."""

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from patchstore.errors import PatchstoreError

FAILED = 1
SOME_IMAGES_FAILED = 3
SOMETHING_WRONG = 3
INTERRUPTED = 130

if sys.stdout is None:  # closed by whoever runs this
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

PIPE_WIDTH = 1_000_000  # it has none: a script must find each row on one line

out = Console(
    highlight=False,
    emoji=False,
    soft_wrap=True,
    width=None if sys.stdout.isatty() else PIPE_WIDTH,
)
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Prints one line to standard error and ends with exit code 1."""
    say(f"error: {message}")
    raise SystemExit(FAILED)


def confirm(question: str, *, yes: bool) -> None:
    """Asks before something is deleted for good. Raises PatchstoreError unless somebody says yes.

    `yes`: it was said already.
    """
    try:
        agreed = yes or typer.confirm(question, err=True)
    except typer.Abort:  # standard input has no answer, or Ctrl-C
        agreed = False
    if not agreed:
        raise PatchstoreError("nobody said yes, so nothing is deleted; --yes does not ask")


def visible(text: object) -> str:
    """A text in which control characters, which a file's name may have, are written out."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))


def say(line: str) -> None:
    """A line for the person, on standard error."""
    err.print("\n".join(map(visible, line.split("\n"))), markup=False)


def print_line(line: str) -> None:
    """A line on standard output."""
    out.print(visible(line), markup=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A plain table on standard output; numbers to the right."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    cells = [[visible(cell) for cell in row] for row in rows]
    for index, column in enumerate(columns):
        numeric = bool(cells) and all(_is_number(row[index]) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    out.print(table, markup=False)


def _is_number(cell: str) -> bool:
    return cell.replace(",", "").replace(".", "", 1).lstrip("-").isdigit()
