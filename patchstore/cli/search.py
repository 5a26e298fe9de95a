"""`patchstore search`: where else does something like this patch occur?"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .console import print_json, print_table, say


class By(StrEnum):
    """What is ranked."""

    patch = "patch"
    image = "image"


def search(
    image: Annotated[Path | None, typer.Option(help="Picture to ask about.")] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Region of --image, in pixels.")
    ] = None,
    patch: Annotated[
        str | None, typer.Option(metavar="URI@X,Y", help="A stored patch to ask about.")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="A vector to ask about.")
    ] = None,
    spec: Annotated[
        str | None, typer.Option(help="Spec to search.  [default: default, or the only one]")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many hits.")] = 10,
    by: Annotated[
        By, typer.Option(help="Rank patches, or images by their best three patches.")
    ] = By.patch,
    other_images: Annotated[
        bool, typer.Option("--other-images", help="Leave out the image asked about.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    to_html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures.")
    ] = None,
) -> None:
    """Find the patches or images most like a picture, a region, a stored patch or a vector."""
    from patchstore.query import Question, ask, parse_region
    from patchstore.store import open_store, spec_for_search

    question = Question(
        image=image,
        region=None if region is None else parse_region(region),
        patch=patch,
        vector=vector,
    )
    engine = open_store()
    stored = spec_for_search(engine, spec)
    asked, hits = ask(engine, stored, question, k, by=by.value, other_images=other_images)
    if to_html is not None:
        from patchstore.result_page import render, write

        about = f"spec {stored.name}, {stored.metric.name} distance, nearest {by.value} first"
        write(to_html, render("Where else does this occur?", about, asked, hits))
        say(f"wrote {to_html}")
    if as_json:
        print_json([{"uri": h.uri, "box": list(h.box), "distance": h.distance} for h in hits])
    elif to_html is None:
        if not hits:
            say(f"spec {stored.name} holds no patches yet; run: patchstore ingest FOLDER")
        print_table(
            ("distance", "box", "uri"),
            ((f"{h.distance:.4f}", ",".join(map(str, h.box)), h.uri) for h in hits),
        )
