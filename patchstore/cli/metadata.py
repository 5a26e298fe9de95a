"""`patchstore metadata`: what people know about pictures, for `search --filter`."""

from typing import Annotated

import typer

from patchstore.errors import PatchstoreError

from .console import fail, print_json, say

NAMED = 3  # unknown URIs in the message


def metadata(
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE.jsonl|FILE.csv",
            help='Lines {"uri": ..., "metadata": {...}}, or CSV with a column uri; '
            "- reads JSON lines from standard input.",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Keep the keys that FILE does not name.")
    ] = False,
    show: Annotated[
        str | None, typer.Option(metavar="URI", help="Print a file's metadata instead.")
    ] = None,
) -> None:
    """Set the metadata of images, which search --filter asks for. No vector is touched.

    A URI may be a path relative to the current folder. In CSV every other column is a key: numbers,
    true and false become JSON, anything else is text, and an empty cell sets nothing. The whole
    file is checked before anything is set. Exit code 1: some URIs are not in the store; the others
    are set.
    """
    if (file is None) == (show is None):
        raise PatchstoreError("give either a FILE or --show URI")
    if merge and show is not None:
        raise PatchstoreError("--merge is for a FILE; --show URI sets nothing")
    from db.browse import get_metadata, known_uris, set_metadata_many
    from extractor.uris import uri_from_here
    from patchstore.metadata import read_metadata, resolve_uris
    from patchstore.store import open_store

    if show is not None:
        engine = open_store()
        uri = show if known_uris(engine, [show]) else uri_from_here(show)
        print_json(get_metadata(engine, uri))
        return
    assert file is not None
    rows = read_metadata(file)
    engine = open_store()
    resolved = resolve_uris(engine, rows)
    unknown = set_metadata_many(engine, resolved, merge=merge)
    count = len({uri for uri, _ in resolved}) - len(unknown)
    if unknown:
        named = ", ".join(unknown[:NAMED]) + (", ..." if len(unknown) > NAMED else "")
        fail(f"{len(unknown)} URIs are not in the store: {named}; the other {count} are set")
    say(f"files whose metadata were set: {count}")
