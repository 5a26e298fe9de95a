"""`patchstore status|failures|retry|export|neighbours`: what is there, what to do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchstore.errors import PatchstoreError

from .console import out, print_json, print_line, print_table, say
from .startup import end_in_order

if TYPE_CHECKING:
    from sqlalchemy import Engine

Spec = Annotated[str | None, typer.Option(help="Only this spec.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def status(as_json: Json = False) -> None:
    """Show where each source stands under each spec, and the last runs."""
    from dataclasses import asdict

    from db.reports import last_runs
    from db.reports import status as counts
    from patchstore.store import open_store

    engine = open_store()
    rows, runs = counts(engine), last_runs(engine)
    if as_json:
        print_json({"sources": [asdict(r) for r in rows], "runs": [asdict(r) for r in runs]})
        return
    if not rows:
        say("nothing ingested yet; run: patchstore ingest FOLDER")
        return
    print_table(
        ("source", "spec", "found", "done", "failed", "pending", "patches"),
        (
            (r.source, r.spec, r.found, r.done, r.failed, r.pending + r.leased, r.patches)
            for r in rows
        ),
    )
    out.print()
    print_table(
        ("run", "started", "state", "source", "spec", "new", "changed", "failed", "patches"),
        (
            (
                r.id,
                f"{r.started_at.astimezone():%Y-%m-%d %H:%M:%S}",
                r.state.replace("_", " "),
                r.source,
                r.spec,
                *(
                    (r.summary or {}).get(key, "-")
                    for key in ("new", "changed", "failed", "patches")
                ),
            )
            for r in runs
        ),
    )
    for run in runs:
        if error := (run.summary or {}).get("error"):
            print_line(f"run {run.id}: {error}")


def failures(spec: Spec = None, as_json: Json = False) -> None:
    """List the files that have no vectors, each with its reason."""
    from db.reports import failures as failed
    from patchstore.store import open_store

    engine = open_store()
    rows = failed(engine, spec=_own_name(engine, spec))
    if as_json:
        print_json([{"uri": row.uri, "reason": row.reason} for row in rows])
        return
    several = len({row.spec for row in rows}) > 1
    for row in rows:
        where = f" (spec {row.spec})" if several else ""
        print_line(f"{row.uri}: {row.reason}{where}")
    if not rows:
        say("no failures")


def retry(
    source: Annotated[str | None, typer.Argument(help="Only this folder.")] = None,
    spec: Spec = None,
) -> None:
    """Queue failed images again; the next ingest computes them."""
    from db.ledger import retry_failed
    from patchstore.store import open_store

    engine = open_store()
    root = None if source is None else find_source(engine, source)[0]
    count = retry_failed(engine, _own_name(engine, spec), root)
    then = "; run patchstore ingest FOLDER to compute them" if count else ""
    say(f"failed images that are pending again: {count}{then}")


def find_source(engine: "Engine", place: str) -> tuple[str, int]:
    """By which root the store knows a folder or a URL, and its id. Raises PatchstoreError."""
    from db.reports import source_id
    from flows.sources import root_of

    root = root_of(place)
    known = source_id(engine, root)
    if known is None:
        raise PatchstoreError(f"{place} was never ingested; patchstore status lists what was")
    return root, known


def export(
    spec: Annotated[str, typer.Option(help="Spec to export.")],
    to: Annotated[Path, typer.Option(metavar="FILE.npz|FILE.parquet", help="File to write.")],
) -> None:
    """Write a spec's matrix of vectors (N x D) with boxes and URIs."""
    from db.specs import get_spec
    from patchstore.export import check_target, write_matrix
    from patchstore.store import open_store

    check_target(to)
    end_in_order()
    engine = open_store()
    count = write_matrix(engine, get_spec(engine, spec), to)
    say(f"wrote {count} vectors to {to}")


def neighbours(
    spec: Annotated[str, typer.Option(help="Spec whose patches are compared.")],
    to: Annotated[Path, typer.Option(metavar="FILE.npz|FILE.parquet", help="File to write.")],
    k: Annotated[int, typer.Option("--k", "-k", help="How many neighbours of each patch.")] = 10,
    other_images: Annotated[
        bool, typer.Option("--other-images", help="Leave out patches of the same image.")
    ] = False,
    max_distance: Annotated[
        float | None, typer.Option(help="How far neighbours may be, in the spec's metric.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every patch, past any index.")
    ] = False,
) -> None:
    """Write the nearest other patches of every patch, for deduplication and graphs."""
    from db.neighbours import NeighbourOptions
    from db.specs import get_spec
    from patchstore.export import check_target
    from patchstore.neighbours import write_neighbours
    from patchstore.store import open_store

    from .progress import ShareBar

    check_target(to)
    end_in_order()
    engine = open_store()
    options = NeighbourOptions(k, other_images, exact, max_distance)
    with ShareBar() as bar:
        patches, pairs = write_neighbours(engine, get_spec(engine, spec), to, options, bar.share)
    say(f"wrote {pairs} neighbours of {patches} patches to {to}")


def _own_name(engine: "Engine", spec: str | None) -> str | None:
    """The name of the spec that an alias stands for. Raises NotFound."""
    from db.specs import get_spec

    return None if spec is None else get_spec(engine, spec).name
