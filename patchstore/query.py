"""A question, be it image, region, vector or stored patch -> a query vector -> ranked hits."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from db.search import (
    Answer,
    Box,
    Hit,
    SearchOptions,
    find_content,
    find_patch,
    get_patch,
    search_many,
)
from db.search import search as search_store
from db.specs import StoredSpec
from extractor.arrays import Region
from extractor.errors import EmptyImageFile, ImageError, ImageTooLarge, NoRoom
from extractor.grid import make_grid
from extractor.images import read_image, read_size
from extractor.settings import ExtractorSettings
from extractor.spec import FeatureSpec
from extractor.uris import uri_from_here

from .errors import QuestionError
from .refine import merge_overlaps, rank_by_arrangement

if TYPE_CHECKING:
    from extractor.features import FeatureExtractor

SMALLEST_SIDE = 8  # pixels of a region; less is a colour, not a picture
_UNREADABLE = {EmptyImageFile: "image_empty", ImageTooLarge: "image_too_large"}
MAX_K = 10_000  # what one search gives at most
PARTS = 64  # patches of a region that are asked about at most
HITS_A_PART = 50
MOST_HITS_A_PART = 500  # where many images are asked for
MOST_ROUNDS = 8
MOST_ALONE = 50  # images that are compared by themselves

Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]
GoOn = Callable[[], None]  # raises once nobody waits for the answer any more
# The vectors, float32 (N, D), of N regions, under a spec.
Embed = Callable[[StoredSpec, Sequence[Region]], Vectors]


@dataclass(frozen=True)
class ImageQuestion:
    """What is like this picture, or this part of it?

    Attributes:
        content: the encoded file.
        region: the part that is asked about; None: the whole picture, as one patch.
        name: how messages call it.
        max_pixels: what its header may claim; None: as for stored images.
        limit_name: the setting that says so.
    """

    content: bytes
    region: Box | None = None
    name: str = "the image"
    max_pixels: int | None = None
    limit_name: str = "PATCHSTORE_MAX_PIXELS"


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
        picture: the whole picture that came with the question, RGB uint8 (H, W, 3), upright.
        patch_id: the stored patch that it is about.
    """

    vector: Vectors
    image_ids: tuple[int, ...] = ()
    box: Box | None = None
    picture: Pixels | None = None
    patch_id: int | None = None


def embed_once(spec: StoredSpec, regions: Sequence[Region]) -> Vectors:
    """Vectors of regions by a network of this process's own, loaded at the first question.

    Raises:
        WeightsError: the network's weights are not here.
        ImageError: a region whose vector cannot be compared.
    """
    extractor = load_extractor(FeatureSpec.model_validate(spec.recipe), spec.weights_source)
    return stack_vectors(extractor.embed_many(regions))


def stack_vectors(vectors: Sequence[Vectors | ImageError]) -> Vectors:
    """Vectors (D,) as one array, float32 (N, D). Raises the first ImageError among them."""
    good: list[Vectors] = []
    for vector in vectors:
        if isinstance(vector, ImageError):
            raise vector
        good.append(vector)
    return np.stack(good)


@lru_cache(maxsize=4)  # of a service whose specs are asked in turn; loading takes seconds
def load_extractor(
    recipe: FeatureSpec, weights_source: str, batch_size: int = 16, small_passes: bool = False
) -> "FeatureExtractor":
    """What computes the vectors of questions, loaded once a process.

    In float32: a few patches are too little to be worth less, and every way of asking then gives
    the same answer. Passes of few patches are worth preparing where many questions are to come.

    Raises:
        WeightsError: the network's weights are not here.
    """
    from extractor.backbone import load_backbone  # torch takes seconds: a vector needs none
    from extractor.features import FeatureExtractor

    settings = ExtractorSettings()
    return FeatureExtractor(
        recipe,
        load_backbone(recipe, weights_source),
        device=settings.device,
        precision="float32",
        batch_size=batch_size,
        dense_tile=settings.dense_tile,
        small_passes=small_passes,
    )


@dataclass(frozen=True)
class Refinement:
    """What is done with the ranked hits.

    Attributes:
        merge: of hits that overlap in one image, only the nearest is kept.
        consistent: images are ranked by how many patches of the question's region they show in the
            same arrangement.
    """

    merge: bool = False
    consistent: bool = False


def ask(
    engine: Engine,
    spec: StoredSpec,
    question: Question,
    options: SearchOptions,
    *,
    other_images: bool = False,
    refinement: Refinement = Refinement(),
    embed: Embed = embed_once,
    go_on: GoOn = lambda: None,
) -> tuple[Asked, Answer]:
    """Answers a question with the nearest patches or images, closest first.

    Args:
        engine: the store.
        spec: whose vectors are searched.
        question: what is asked.
        options: how many hits, of which images, how.
        other_images: leave the question's own image out.
        refinement: what is done with the hits.
        embed: computes the vectors of a picture's regions.
        go_on: called before each thing that may take long; what it raises ends the question.

    Raises:
        QuestionError: the question itself is wrong.
        InvalidQuestion, NotFound: the store cannot answer it.
        WeightsError: the network that turns pixels into a vector is not here.
    """
    if refinement.consistent and not isinstance(question, ImageQuestion):
        raise QuestionError(
            "images can be ranked by arrangement only where the question is a picture or a region "
            "of one: a single vector has no arrangement",
            "arrangement_of_vector",
        )
    if not 1 <= options.k <= MAX_K:  # what is asked of the store may be more or less than that
        raise QuestionError(f"k is {options.k}, expected 1 to {MAX_K}", "k_range")
    go_on()
    asked = prepare(engine, spec, question, embed)
    go_on()
    if other_images:
        if isinstance(question, VectorQuestion):
            raise QuestionError(
                "other images can only be asked for where the question is of an image, not a "
                "vector",
                "other_images_of_vector",
            )
        options = replace(options, other_than=(*options.other_than, *asked.image_ids))
    if refinement.consistent:
        return asked, _by_arrangement(engine, spec, asked, options, embed, go_on)
    if refinement.merge and options.by == "patch":
        return asked, _merged(engine, spec, asked, options, go_on)
    return asked, search_store(engine, spec, asked.vector, options)


def _merged(
    engine: Engine, spec: StoredSpec, asked: Asked, options: SearchOptions, go_on: GoOn
) -> Answer:
    """k hits that do not overlap: the search is widened until they are found or all are seen.

    Not exact where the nearest `MAX_K` are fewer than k without overlap, and there are more.
    """
    wanted = 4 * options.k
    while True:
        wide = replace(options, k=min(wanted, MAX_K))
        answer = search_store(engine, spec, asked.vector, wide)
        kept = merge_overlaps(answer.hits, options.k)
        if len(kept) >= options.k or len(answer.hits) < wide.k:
            return replace(answer, hits=kept)
        if wide.k >= MAX_K:
            return replace(answer, hits=kept, exact=False)
        wanted *= 4
        go_on()


def _by_arrangement(
    engine: Engine,
    spec: StoredSpec,
    asked: Asked,
    options: SearchOptions,
    embed: Embed,
    go_on: GoOn,
) -> Answer:
    assert asked.picture is not None and asked.box is not None
    left, top, width, height = asked.box
    recipe = FeatureSpec.model_validate(spec.recipe)
    grid = make_grid(
        width,
        height,
        patch_size=recipe.patch_size,
        stride=min(recipe.stride, recipe.patch_size),
        edge="cover",
    )
    chosen = np.unique(np.linspace(0, len(grid) - 1, min(len(grid), PARTS)).astype(int))
    parts: list[Box] = [(x, y, w, h) for x, y, w, h in grid.boxes[chosen].tolist()]
    vectors = embed(
        spec, [Region(asked.picture, (left + x, top + y, w, h)) for x, y, w, h in parts]
    )
    hits_a_part = min(max(HITS_A_PART, options.k), MOST_HITS_A_PART)
    per_part = replace(options, by="patch", k=hits_a_part)
    found: list[list[Hit]] = [[] for _ in parts]
    seen: list[int] = []  # images, the nearest first
    exact, whole = True, True

    def look(asked_for: SearchOptions) -> list[int]:
        nonlocal exact, whole
        go_on()
        answers = search_many(engine, spec, vectors, asked_for)
        for hits, answer in zip(found, answers, strict=True):
            hits += answer.hits
        exact &= all(answer.exact for answer in answers)
        whole &= all(len(answer.hits) < asked_for.k for answer in answers)
        near = sorted(
            (hit for answer in answers for hit in answer.hits), key=attrgetter("distance")
        )
        return list(dict.fromkeys(hit.image_id for hit in near))

    for _ in range(MOST_ROUNDS):
        new = look(replace(per_part, other_than=(*options.other_than, *seen)))
        seen += new
        # At a fine stride the nearest patches of all parts may be of one image: look beyond it.
        if len(seen) >= options.k or not new:
            break
    if not whole:  # nearer images took places of a part's hits: each is asked by itself
        alone = seen[: min(2 * options.k, MOST_ALONE)]
        found = [[hit for hit in hits if hit.image_id not in alone] for hits in found]
        for image_id in alone:
            look(replace(per_part, image_ids=(image_id,)))
    hits = rank_by_arrangement(parts, found, options.k, tolerance=recipe.stride)
    return Answer(hits, exact=exact)


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
            stored = find_patch(engine, spec, image, x, y)
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


def parse_place(text: str) -> PlaceQuestion:
    """`URI@x,y` of a stored patch, a path as from the current folder. Raises QuestionError."""
    uri, separator, point = text.rpartition("@")
    try:
        x, y = (int(part) for part in point.split(","))
        if not 0 <= min(x, y) <= max(x, y) < 2**31:
            raise ValueError
    except ValueError:
        separator = ""
    if not separator:
        raise QuestionError(f"patch {text!r} is not URI@x,y, such as photos/shelf.jpg@0,112")
    return PlaceQuestion(uri_from_here(uri), x, y)


def read_file(path: Path) -> bytes:
    """A picture's file. Raises QuestionError."""
    try:
        if path.is_char_device() or path.is_block_device():  # some have no end
            raise QuestionError(f"{path} is a device; give the file of a picture")
        return path.read_bytes()
    except OSError as error:
        raise QuestionError(f"{path} cannot be read: {error.strerror}") from error


def read_vector(path: Path) -> Vectors:
    """The one vector of a `.npy` file, float32 (D,). Raises QuestionError."""
    try:
        with path.open("rb") as file:
            vector = np.load(file, allow_pickle=False)
    except OSError as error:
        raise QuestionError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # numpy promises no closed list for damaged files
        raise QuestionError(f"{path} is not a .npy file with one vector") from error
    if not isinstance(vector, np.ndarray) or vector.ndim != 1 or vector.dtype.kind not in "fiu":
        raise QuestionError(f"{path} does not hold one vector of numbers, shape (D,)")
    with np.errstate(over="ignore"):  # it becomes infinite, and is refused as that
        return np.asarray(vector, dtype=np.float32)


def picture_size(question: ImageQuestion) -> tuple[int, int]:
    """The (width, height) of a question's picture, by its header. Raises QuestionError."""
    with _picture_errors(question):
        return read_size(question.content, max_pixels=_limit(question))


def read_picture(question: ImageQuestion) -> Pixels:
    """The pixels of a question's picture. Raises QuestionError."""
    with _picture_errors(question):
        return read_image(question.content, max_pixels=_limit(question))


def _limit(question: ImageQuestion) -> int:
    return question.max_pixels or ExtractorSettings().max_pixels


@contextmanager
def _picture_errors(question: ImageQuestion) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        rule = _UNREADABLE.get(type(error), "image_unreadable")
        said = str(error).replace("PATCHSTORE_MAX_PIXELS", question.limit_name)
        raise QuestionError(f"{question.name}: {said}", rule) from error
    except NoRoom as error:
        raise QuestionError(f"{question.name}: {error.strerror}") from error


def check_region(question: ImageQuestion, picture: Pixels) -> Box:
    """The box that a question is about. Raises QuestionError where it asks for less or more."""
    height, width = picture.shape[:2]
    x, y, w, h = box = question.region or (0, 0, width, height)
    if x < 0 or y < 0 or x + w > width or y + h > height:
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
    return box


def _from_image(engine: Engine, spec: StoredSpec, question: ImageQuestion, embed: Embed) -> Asked:
    picture = read_picture(question)
    box = check_region(question, picture)
    # Before the network is asked, which may have to be loaded: a spec that builds is refused here.
    images = find_content(engine, spec, hashlib.sha256(question.content).digest())
    try:
        vector = embed(spec, [Region(picture, box)])[0]
    except ImageError as error:
        raise QuestionError(f"{question.name}: {error}", "image_degenerate") from error
    return Asked(vector, tuple(images), box, picture)
