"""One answer as a self-contained HTML file: the question and its hits as pictures with boxes."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path, PurePath

from PIL import Image, ImageDraw
from sqlalchemy import Engine

from db.browse import get_image
from db.search import Box, Hit
from extractor.errors import ImageError
from extractor.images import read_image
from extractor.uris import path_of

from .query import Asked, Pixels, cut

SIDE = 360  # pixels of a picture on the page
CROP = 224

STYLE = """
:root { color-scheme: light dark; --line: #8884; --accent: #e8472b; }
body { font: 16px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1.5rem; }
h1 { font-size: 1.35rem; margin: 0 0 .25rem; }
p { margin: .25rem 0 1rem; }
ol { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr));
     list-style: none; margin: 0; padding: 0; }
figure { border: 1px solid var(--line); border-radius: .5rem; margin: 0; overflow: hidden; }
figure img { display: block; width: 100%; height: 15rem; object-fit: contain; background: #8881; }
figcaption { padding: .5rem .75rem; overflow-wrap: anywhere; font-size: .9rem; }
figcaption b { font-variant-numeric: tabular-nums; }
.question { display: flex; flex-wrap: wrap; gap: 1rem; margin-bottom: 1.5rem; }
.question figure { width: 20rem; border-color: var(--accent); }
"""


def render(engine: Engine, title: str, about: str, asked: Asked, hits: Sequence[Hit]) -> str:
    """The page as HTML text; pictures that are gone or unreadable are said to be.

    Args:
        engine: the store, which knows where a stored patch's picture lies.
        title: heading.
        about: one line: spec, metric, how it was searched.
        asked: the question.
        hits: the answer, in order.
    """
    question = ""
    if asked.box is not None:
        picture = asked.picture
        if picture is None:
            picture = _read(path_of(get_image(engine, asked.image_ids[0]).uri))
        question = (
            '<div class="question">'
            + _figure(_marked(picture, asked.box), "the question, in its image")
            + _figure(_crop(picture, asked.box), f"asked for: {_box(asked.box)}")
            + "</div>"
        )
    items = "".join(
        "<li>"
        + _figure(
            _marked(_read(path_of(hit.uri)), hit.box),
            f"<b>{rank}. {hit.distance:.4f}</b> "
            f"{html.escape(PurePath(hit.uri).name)}<br>{_box(hit.box)}",
        )
        + "</li>"
        for rank, hit in enumerate(hits, start=1)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>{question}<ol>{items}</ol>"
        "</body></html>\n"
    )


def write(path: Path, page: str) -> None:
    """Writes the page, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _figure(picture: str | None, caption: str) -> str:
    image = (
        f'<img src="{picture}" alt="">' if picture else "<p>the picture cannot be read any more</p>"
    )
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _box(box: Box) -> str:
    x, y, width, height = box
    return f"x {x}, y {y}, {width} × {height}"


def _read(path: Path) -> Pixels | None:
    try:
        return read_image(path)
    except (OSError, ImageError):
        return None


def _marked(pixels: Pixels | None, box: Box) -> str | None:
    """The whole image, small, with the box drawn on it."""
    if pixels is None:
        return None
    image = Image.fromarray(pixels)
    ratio = min(SIDE / max(image.size), 4.0)
    image = image.resize((max(1, round(image.width * ratio)), max(1, round(image.height * ratio))))
    x, y, width, height = (round(value * ratio) for value in box)
    ImageDraw.Draw(image).rectangle(
        (x, y, x + width - 1, y + height - 1), outline="#e8472b", width=3
    )
    return _data_uri(image)


def _crop(pixels: Pixels | None, box: Box) -> str | None:
    if pixels is None:
        return None
    image = Image.fromarray(cut(pixels, box))
    image.thumbnail((CROP, CROP))
    return _data_uri(image)


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
