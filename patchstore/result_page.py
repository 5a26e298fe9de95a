"""One answer as a self-contained HTML file: the question and its hits as pictures with boxes."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path, PurePath

from PIL import Image, ImageDraw
from sqlalchemy import Engine

from db.browse import get_image
from db.errors import NotFound
from db.search import Box, Hit
from extractor.arrays import Region
from extractor.errors import ImageError
from extractor.images import read_stored, shrunk
from extractor.settings import ExtractorSettings

from .export import whole_file
from .query import Asked, Pixels

SIDE = 360  # pixels of a picture on the page
CROP = 224

_STACKED = "main { display: grid; gap: 1.25rem; padding-block: 2rem; }"
STYLE = Path(__file__).parent / "api" / "page" / "page.css"  # the look of the service's page

_Overview = tuple[Image.Image, float]  # an image, small, and its size by that of the original


def render(
    engine: Engine, title: str, about: str, metric: str, asked: Asked, hits: Sequence[Hit]
) -> str:
    """The page as HTML text; pictures that are gone or unreadable are said to be.

    Args:
        engine: the store, which knows where a stored patch's picture lies.
        title: heading.
        about: one line: spec, metric, how it was searched.
        metric: the name of the distance.
        asked: the question.
        hits: the answer, in order.
    """
    question = ""
    if asked.box is not None:
        picture = asked.picture
        if picture is None:
            picture = _read(engine, asked.image_ids[0])
        question = (
            '<div class="question">'
            + _figure(_marked(_overview(picture), asked.box), "the question, in its image")
            + _figure(_crop(picture, asked.box), f"asked for: {_box(asked.box)}")
            + "</div>"
        )
    items = "".join(f"<li>{figure}</li>" for figure in _figures(engine, hits, metric))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE.read_text()}{_STACKED}</style></head>"
        f'<body><main><h1>{html.escape(title)}</h1><p class="note">{html.escape(about)}</p>'
        f"{question}<h2>The nearest</h2>"
        + (f'<ol class="hits">{items}</ol>' if items else "<p>Nothing was found.</p>")
        + "</main></body></html>\n"
    )


def write(path: Path, page: str) -> None:
    """Writes the page, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _figures(engine: Engine, hits: Sequence[Hit], metric: str) -> list[str]:
    """One a hit, in order. Each image is read once: a large one takes a while."""
    figures = [""] * len(hits)
    by_image: dict[int, list[int]] = {}
    for row, hit in enumerate(hits):
        by_image.setdefault(hit.image_id, []).append(row)
    for image_id, rows in by_image.items():
        overview = _overview(_read(engine, image_id))
        for row in rows:
            figures[row] = _hit(overview, row + 1, hits[row], metric)
    return figures


def _hit(overview: _Overview | None, rank: int, hit: Hit, metric: str) -> str:
    agreed = "" if hit.matched is None else f'<span class="matched">{hit.matched} agree</span>'
    return _figure(
        _marked(overview, hit.box),
        f'<span class="measured">{rank}. <b class="distance">{hit.distance:.4f}</b> {metric}</span>'
        f'<span class="name" title="{html.escape(hit.uri)}">'
        f"{html.escape(PurePath(hit.uri).name)}</span>"
        f'<span class="box">{_box(hit.box)}</span>{agreed}',
        kind="hit",
    )


def _figure(picture: str | None, caption: str, kind: str = "") -> str:
    gone = "<p>its file is gone, unreadable or another one now</p>"
    image = f'<img src="{picture}" alt="">' if picture else gone
    return f'<figure class="{kind}">{image}<figcaption>{caption}</figcaption></figure>'


def _box(box: Box) -> str:
    x, y, width, height = box
    return f"x {x}, y {y}, {width}\u00a0×\u00a0{height}"


def _read(engine: Engine, image_id: int) -> Pixels | None:
    """A stored image; None where it cannot be shown any more."""
    try:
        image = get_image(engine, image_id)
        return read_stored(
            image.uri,
            bytes.fromhex(image.sha256),
            max_pixels=ExtractorSettings().max_pixels,
        )
    except (NotFound, OSError, ImageError):
        return None


def _overview(pixels: Pixels | None) -> _Overview | None:
    if pixels is None:
        return None
    height, width = pixels.shape[:2]
    ratio = min(SIDE / max(width, height), 4.0)
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return shrunk(pixels, SIDE).resize(size), ratio


def _marked(overview: _Overview | None, box: Box) -> str | None:
    """The whole image, small, with the box drawn on it."""
    if overview is None:
        return None
    image, ratio = overview[0].copy(), overview[1]
    x, y, width, height = (round(value * ratio) for value in box)
    # Of a small patch of a large image less than a pixel is left.
    last = max(x, x + width - 1), max(y, y + height - 1)
    ImageDraw.Draw(image).rectangle((x, y, *last), outline="#e8472b", width=3)
    return _data_uri(image)


def _crop(pixels: Pixels | None, box: Box) -> str | None:
    if pixels is None:
        return None
    image = shrunk(Region(pixels, box).pixels, CROP)
    image.thumbnail((CROP, CROP))
    return _data_uri(image)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
