"""A question, be it image, region, vector or stored patch -> a query vector -> ranked hits."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.search import Answer, Box, SearchOptions, find_content, find_images, find_patch, get_patch
from db.search import search as search_store
from db.specs import StoredSpec
from extractor.errors import ImageError
from extractor.images import read_image
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec

from .errors import QuestionError

if TYPE_CHECKING:
    from extractor.features import FeatureExtractor

SMALLEST_SIDE = 8  # pixels of a region; less is a colour, not a picture

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
# The vectors, float32 (N, D), of N regions, each RGB uint8 (H, W, 3), under a spec.
Embed = Callable[[StoredSpec, Sequence[Pixels]], Vectors]


@dataclass(frozen=True)
class ImageQuestion:
    """What is like this picture, or this part of it?

    Attributes:
        content: the encoded file.
        region: the part that is asked about; None: the whole picture, as one patch.
        name: how messages call it.
    """

    content: bytes
    region: Box | None = None
    name: str = "the image"


@dataclass(frozen=True)
class PlaceQuestion:
    """What is like the stored patch at this place? `image` is an image's id or its URI."""

    image: int | str
    x: int
    y: int


@dataclass(frozen=True)
class PatchQuestion:
    """What is like the stored patch with this id?"""

    patch_id: int


@dataclass(frozen=True)
class VectorQuestion:
    """What is like this vector, float32 (D,)?"""

    vector: Vectors


Question = ImageQuestion | PlaceQuestion | PatchQuestion | VectorQuestion


@dataclass(frozen=True)
class Asked:
    """A question made ready.

    Attributes:
        vector: float32 (D,).
        image_ids: the images in the store that it is about, if any.
        box: the part of its picture that it is about; None for a vector.
        size: width and height of an uploaded picture.
        patch_id: the stored patch that it is about.
    """

    vector: Vectors
    image_ids: tuple[int, ...] = ()
    box: Box | None = None
    size: tuple[int, int] | None = None
    patch_id: int | None = None


def embed_once(spec: StoredSpec, regions: Sequence[Pixels]) -> Vectors:
    """Vectors of regions by a network of this process's own, loaded at the first question.

    In float32: a few patches are too little to be worth less.

    Raises:
        WeightsError: the network's weights are not here.
        ImageError: a region whose vector cannot be compared.
    """
    extractor = _extractor(FeatureSpec.model_validate(spec.recipe), spec.weights_source)
    return np.stack([extractor.embed(np.ascontiguousarray(region)) for region in regions])


@lru_cache(maxsize=1)
def _extractor(recipe: FeatureSpec, weights_source: str) -> "FeatureExtractor":
    from extractor.backbone import load_backbone  # torch takes seconds: a vector needs none
    from extractor.features import FeatureExtractor

    return FeatureExtractor(
        recipe,
        load_backbone(recipe, weights_source),
        device=ExtractorSettings().device,
        precision="float32",
        batch_size=1,
    )


def ask(
    engine: Engine,
    spec: StoredSpec,
    question: Question,
    options: SearchOptions,
    *,
    other_images: bool = False,
    embed: Embed = embed_once,
) -> tuple[Asked, Answer]:
    """Answers a question with the nearest patches or images, closest first.

    Args:
        engine: the store.
        spec: whose vectors are searched.
        question: what is asked.
        options: how many hits, of which images, how.
        other_images: leave the question's own image out.
        embed: computes the vectors of a picture's regions.

    Raises:
        QuestionError: the question itself is wrong.
        InvalidQuestion, NotFound: the store cannot answer it.
        WeightsError: the network that turns pixels into a vector is not here.
    """
    asked = prepare(engine, spec, question, embed)
    if other_images:
        if isinstance(question, VectorQuestion):
            raise QuestionError(
                "other images can only be asked for where the question is of an image, not a "
                "vector",
                "other_images_of_vector",
            )
        options = replace(options, other_than=(*options.other_than, *asked.image_ids))
    return asked, search_store(engine, spec, asked.vector, options)


def prepare(
    engine: Engine, spec: StoredSpec, question: Question, embed: Embed = embed_once
) -> Asked:
    """The vector of a question. Raises as `ask`."""
    match question:
        case ImageQuestion():
            return _from_image(engine, spec, question, embed)
        case VectorQuestion(vector):
            return Asked(vector)
        case PatchQuestion(patch_id):
            stored = get_patch(engine, spec, patch_id)
        case PlaceQuestion(image, x, y):
            images = [image] if isinstance(image, int) else find_images(engine, image)
            stored = find_patch(engine, spec, images, x, y)
    return Asked(stored.vector, (stored.image_id,), stored.box, patch_id=stored.patch_id)


def parse_region(text: str) -> Box:
    """`x,y,w,h` as whole pixels. Raises QuestionError."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise QuestionError(
            f"region {text!r} is not x,y,w,h in whole pixels, such as 0,0,224,224", "box_range"
        ) from None
    return x, y, width, height


def read_picture(question: ImageQuestion) -> Pixels:
    """The pixels of a question's picture. Raises QuestionError."""
    try:
        return read_image(question.content, max_pixels=ExtractorSettings().max_pixels)
    except ImageError as error:
        raise QuestionError(f"{question.name}: {error}", "image_unreadable") from error


def cut_region(question: ImageQuestion, pixels: Pixels) -> tuple[Box, Pixels]:
    """The box that a question is about, and its pixels. Raises QuestionError."""
    height, width = pixels.shape[:2]
    x, y, w, h = box = question.region or (0, 0, width, height)
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise QuestionError(
            f"region {x},{y},{w},{h} does not lie inside {question.name}, "
            f"which is {width} x {height}",
            "region_outside",
        )
    if min(w, h) < SMALLEST_SIDE:
        raise QuestionError(
            f"{w} x {h} pixels of {question.name} are too few to ask about; "
            f"give at least {SMALLEST_SIDE} x {SMALLEST_SIDE}",
            "image_too_small",
        )
    return box, pixels[y : y + h, x : x + w]


def _from_image(engine: Engine, spec: StoredSpec, question: ImageQuestion, embed: Embed) -> Asked:
    pixels = read_picture(question)
    box, region = cut_region(question, pixels)
    try:
        vector = embed(spec, [region])[0]
    except ImageError as error:
        raise QuestionError(f"{question.name}: {error}", "image_degenerate") from error
    images = find_content(engine, hashlib.sha256(question.content).digest())
    return Asked(vector, tuple(images), box, (pixels.shape[1], pixels.shape[0]))
