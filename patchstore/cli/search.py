"""`patchstore search`: where else does something like this patch occur?"""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchstore.errors import QuestionError
from patchstore.plain_json import MOST_OF_A_FILTER, check_object

from .console import print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from db.search import Hit
    from patchstore.query import Question


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
    filter_: Annotated[
        str | None,
        typer.Option("--filter", metavar="JSON", help="Metadata that hits must have."),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="How the URIs of hits begin, or paths from here.")
    ] = None,
    max_distance: Annotated[
        float | None, typer.Option(help="How far hits may be, in the spec's metric.")
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Show overlapping hits of an image once.")
    ] = False,
    consistent: Annotated[
        bool,
        typer.Option(
            "--consistent",
            help="Rank images by how many patches of --region they show in the same arrangement.",
        ),
    ] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Compare with every patch, past any index.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    to_html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with pictures.")
    ] = None,
) -> None:
    """Find the patches or images most like a picture, a region, a stored patch or a vector.

    A line on standard error says whether the answer is exact, every patch in question compared, or
    approximate, found by the index; in JSON each hit does.
    """
    from db.search import SearchOptions
    from extractor.uris import prefix_from_here
    from patchstore.query import Refinement, ask
    from patchstore.store import open_store, spec_for_search

    question = _question(image, region, patch, vector)
    options = SearchOptions(
        k=k,
        by=by.value,
        filter=None if filter_ is None else _metadata(filter_),
        prefix=prefix and prefix_from_here(prefix),
        max_distance=max_distance,
        exact=exact,
    )
    engine = open_store()
    stored = spec_for_search(engine, spec)
    asked, answer = ask(
        engine,
        stored,
        question,
        options,
        other_images=other_images,
        refinement=Refinement(merge=merge, consistent=consistent),
    )
    ranked = "images with the most agreeing patches" if consistent else f"nearest {by.value}"
    about = (
        f"spec {stored.name}, {stored.metric.name} distance, {ranked} first, "
        f"{'exact' if answer.exact else 'approximate'}"
    )
    if to_html is not None:
        from patchstore.result_page import render, write

        title = "Where else does this occur?"
        write(to_html, render(engine, title, about, stored.metric.name, asked, answer.hits))
        say(f"wrote {to_html}")
    if as_json:
        print_json([{**asdict(hit), "exact": answer.exact} for hit in answer.hits])
    elif to_html is None:
        say(about)
        if not answer.hits:
            say(f"spec {stored.name} has no such patches; what there is: patchstore status")
        _print_hits(answer.hits, by_arrangement=consistent)


def _print_hits(hits: "Sequence[Hit]", *, by_arrangement: bool) -> None:
    columns, rows = ["distance", "box", "uri"], []
    for hit in hits:
        rows.append([f"{hit.distance:.4f}", ",".join(map(str, hit.box)), hit.uri])
        if by_arrangement:  # by this they are ranked first
            rows[-1].insert(1, str(hit.matched))
    if by_arrangement:
        columns.insert(1, "agree")
    print_table(columns, rows)


def _question(
    image: Path | None, region: str | None, patch: str | None, vector: Path | None
) -> "Question":
    from patchstore.query import (
        ImageQuestion,
        VectorQuestion,
        parse_place,
        parse_region,
        read_file,
        read_vector,
    )

    if sum(given is not None for given in (image, patch, vector)) != 1:
        raise QuestionError("give exactly one of --image, --patch and --vector")
    if region is not None and image is None:
        raise QuestionError("--region is a part of --image; give --image, too")
    if patch is not None:
        return parse_place(patch)
    if vector is not None:
        return VectorQuestion(read_vector(vector))
    assert image is not None
    box = None if region is None else parse_region(region)
    return ImageQuestion(read_file(image), box, str(image))


def _metadata(text: str) -> dict[str, Any]:
    import json

    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise QuestionError(
            f"--filter {text[:100]!r} is not JSON, such as '{{\"shelf\": 3}}'"
        ) from None
    if not isinstance(value, dict):
        raise QuestionError(f"--filter {text!r} is not a JSON object, such as '{{\"shelf\": 3}}'")
    try:
        check_object(value, MOST_OF_A_FILTER)
    except ValueError as error:
        raise QuestionError(f"--filter cannot be asked for: {error}") from None
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
