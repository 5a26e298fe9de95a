"""Reading metadata of images from a file: JSON lines, or CSV with a column `uri`."""

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, TextIO

from sqlalchemy import Engine

from db.browse import known_uris
from extractor.uris import uri_from_here

from .errors import PatchstoreError
from .plain_json import MOST_OF_METADATA, check_object

STANDARD_INPUT = "-"
SUFFIXES = (".jsonl", ".csv")

Rows = list[tuple[str, dict[str, Any]]]


def read_metadata(name: str) -> Rows:
    """Pairs of a URI, as it is written there, and its metadata. The whole file is checked.

    JSON lines are objects with `uri` and `metadata`. Of CSV, each other column is a key; a number,
    `true` or `false` is one, anything else a string, and an empty cell is left out.

    Args:
        name: a `.jsonl` or `.csv` file, or `-` for JSON lines from standard input.

    Raises:
        PatchstoreError: names the file, and the line that is wrong.
    """
    suffix = Path(name).suffix.lower()
    if name != STANDARD_INPUT and suffix not in SUFFIXES:
        raise PatchstoreError(
            f"{name} must end in {' or '.join(SUFFIXES)}, or be - for JSON lines from "
            "standard input"
        )
    shown = "standard input" if name == STANDARD_INPUT else name
    try:
        with _open(name) as file:
            return list(_csv_rows(shown, file) if suffix == ".csv" else _json_rows(shown, file))
    except OSError as error:
        raise PatchstoreError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PatchstoreError(f"{shown} is not UTF-8: {error.reason}") from error


def resolve_uris(engine: Engine, rows: Rows) -> Rows:
    """The rows with URIs as the store names them: a path may be relative to the current folder."""
    known = known_uris(engine, [uri for uri, _ in rows])
    return [(uri if uri in known else uri_from_here(uri), values) for uri, values in rows]


def _open(name: str) -> Any:
    if name == STANDARD_INPUT:
        return nullcontext(sys.stdin)
    return Path(name).open(encoding="utf-8-sig", newline="")  # newline: as csv wants it


def _json_rows(name: str, lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            _refuse(name, number, f"is not JSON: {getattr(error, 'msg', error)}")
        if not isinstance(row, dict) or row.keys() != {"uri", "metadata"}:
            _refuse(name, number, 'is not an object of the form {"uri": ..., "metadata": {...}}')
        if not isinstance(row["uri"], str) or not isinstance(row["metadata"], dict):
            _refuse(name, number, "needs a string as uri and an object as metadata")
        yield _checked(name, number, row["uri"], row["metadata"])


def _csv_rows(name: str, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.reader(file, strict=True)
    try:
        header = next(reader, [])
        if "uri" not in header or len({*header}) < len(header) or "" in header:
            named = ",".join(header)[:100]
            _refuse(
                name, 1, f"must name the columns, each once, and one of them uri, not {named!r}"
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                _refuse(
                    name, reader.line_num, f"has {len(cells)} cells, the header has {len(header)}"
                )
            row = dict(zip(header, cells, strict=True))
            uri = row.pop("uri")
            values = {key: _value(cell) for key, cell in row.items() if cell}
            yield _checked(name, reader.line_num, uri, values)
    except csv.Error as error:
        _refuse(name, reader.line_num, f"is not CSV: {error}")


def _value(cell: str) -> Any:
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    # What JSON cannot write, such as NaN, stays the word that it is.
    is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_number else cell


def _checked(
    name: str, number: int, uri: str, metadata: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    if not uri:
        _refuse(name, number, "has an empty uri")
    try:
        check_object({"uri": uri}, MOST_OF_METADATA)
        check_object(metadata, MOST_OF_METADATA)
    except ValueError as error:
        _refuse(name, number, f"cannot be stored: {error}")
    return uri, metadata


def _refuse(name: str, number: int, reason: str) -> NoReturn:
    raise PatchstoreError(f"{name}, line {number}: {reason}; nothing was set")
