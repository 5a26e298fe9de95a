"""A question, be it image, region, vector or stored patch -> a query vector -> ranked hits."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.search import By, Hit, find_content, find_images, find_patch, search
from db.specs import StoredSpec
from extractor.errors import ImageError
from extractor.images import read_image
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec
from extractor.uris import absolute, path_of, uri_of

from .errors import QuestionError

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Question:
    """What is asked for: exactly one of `image`, `patch` and `vector`.

    Attributes:
        image: a file, whole or its `region`.
        region: x, y, width, height in the upright image.
        patch: `URI@x,y` of a stored patch.
        vector: a `.npy` file with one vector, (D,).
    """

    image: Path | None = None
    region: Box | None = None
    patch: str | None = None
    vector: Path | None = None


@dataclass(frozen=True)
class Asked:
    """A question made ready: its vector, float32 (D,), and the image that it is about, if any."""

    vector: NDArray[np.float32]
    image_ids: list[int]
    path: Path | None = None
    box: Box | None = None


def ask(
    engine: Engine,
    spec: StoredSpec,
    question: Question,
    k: int,
    *,
    by: By = "patch",
    other_images: bool = False,
) -> tuple[Asked, list[Hit]]:
    """Answers a question with the k nearest patches or images, closest first.

    Args:
        engine: the store.
        spec: whose vectors are searched.
        question: what is asked.
        k: how many hits.
        by: rank patches, or images by their best patches.
        other_images: leave the question's own image out.

    Raises:
        QuestionError: the question itself is wrong.
        InvalidQuestion, NotFound: the store cannot answer it.
        WeightsError: the network that turns pixels into a vector is not here.
    """
    asked = prepare(engine, spec, question)
    if other_images and question.vector is not None:
        raise QuestionError("--other-images needs --image or --patch: a vector has no image")
    others = asked.image_ids if other_images else []
    return asked, search(engine, spec, asked.vector, k, by=by, other_than=others)


def prepare(engine: Engine, spec: StoredSpec, question: Question) -> Asked:
    """The vector of a question."""
    given = [question.image, question.patch, question.vector]
    if sum(part is not None for part in given) != 1:
        raise QuestionError("give exactly one of --image, --patch and --vector")
    if question.region is not None and question.image is None:
        raise QuestionError("--region needs --image")
    if question.image is not None:
        return _from_image(engine, spec, question.image, question.region)
    if question.patch is not None:
        return _from_patch(engine, spec, question.patch)
    assert question.vector is not None
    return Asked(_load_vector(question.vector), [])


def parse_region(text: str) -> Box:
    """`x,y,w,h` as whole pixels. Raises QuestionError."""
    try:
        x, y, width, height = (int(part) for part in text.split(","))
    except ValueError:
        raise QuestionError(
            f"region {text!r} is not x,y,w,h in whole pixels, such as 0,0,224,224"
        ) from None
    return x, y, width, height


def _from_image(engine: Engine, spec: StoredSpec, path: Path, region: Box | None) -> Asked:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise QuestionError(f"{path} cannot be read: {error.strerror}") from error
    try:
        pixels = read_image(content, max_pixels=ExtractorSettings().max_pixels)
    except ImageError as error:
        raise QuestionError(f"{path}: {error}") from error
    height, width = pixels.shape[:2]
    box = region or (0, 0, width, height)
    x, y, w, h = box
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise QuestionError(
            f"region {x},{y},{w},{h} does not lie inside {path}, which is {width} x {height}"
        )
    vector = embed(spec, pixels[y : y + h, x : x + w])
    return Asked(vector, find_content(engine, hashlib.sha256(content).digest()), path, box)


def embed(spec: StoredSpec, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The vector of one region, in float32: one patch is too little to be worth less."""
    from extractor.backbone import load_backbone  # torch takes seconds: a vector needs none
    from extractor.features import FeatureExtractor

    recipe = FeatureSpec.model_validate(spec.recipe)
    extractor = FeatureExtractor(
        recipe,
        load_backbone(recipe, spec.weights_source),
        device=ExtractorSettings().device,
        precision="float32",
        batch_size=1,
    )
    try:
        return extractor.embed(np.ascontiguousarray(pixels))
    except ImageError as error:
        raise QuestionError(str(error)) from error


def _from_patch(engine: Engine, spec: StoredSpec, patch: str) -> Asked:
    uri, separator, point = patch.rpartition("@")
    try:
        x, y = (int(part) for part in point.split(","))
    except ValueError:
        separator = ""
    if not separator:
        raise QuestionError(f"patch {patch!r} is not URI@x,y, such as photos/shelf.jpg@0,112")
    known = uri if find_images(engine, uri) else uri_of(absolute(path_of(uri)))
    stored = find_patch(engine, spec, known, x, y)
    return Asked(stored.vector, [stored.image_id], path_of(stored.uri), stored.box)


def _load_vector(path: Path) -> NDArray[np.float32]:
    try:
        vector = np.load(path, allow_pickle=False)
    except OSError as error:
        raise QuestionError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise QuestionError(f"{path} is not a .npy file with one vector") from error
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "fiu":
        raise QuestionError(f"{path} does not hold one vector of numbers, shape (D,)")
    return np.asarray(vector, dtype=np.float32)
