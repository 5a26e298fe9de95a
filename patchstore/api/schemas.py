"""What goes in and out by HTTP. The words are those of the SQL functions and the command."""

import json
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from db.search import Box
from patchstore.plain_json import MOST_OF_A_FILTER, MOST_OF_METADATA, check_object

Model = TypeVar("Model", bound=BaseModel)

MAX_ID = 2**63 - 1  # bigint
MAX_PIXEL = 2**31 - 1  # integer
MAX_DIM = 16_000

Id = Annotated[int, Field(ge=1, le=MAX_ID)]
# No text of Postgres holds a NUL.
Text = Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^\x00]*$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Offset = Annotated[int, Field(ge=0, le=MAX_PIXEL)]
Length = Annotated[int, Field(ge=1, le=MAX_PIXEL)]
Ids = Annotated[list[Id], Field(max_length=100_000)]
Vector = Annotated[list[float], Field(min_length=1, max_length=MAX_DIM)]
BoxIn = tuple[Offset, Offset, Length, Length]


def _checked(most: int, value: dict[str, Any]) -> dict[str, Any]:
    check_object(value, most)
    return value


Filter = Annotated[dict[str, Any], AfterValidator(partial(_checked, MOST_OF_A_FILTER))]
Metadata = Annotated[dict[str, Any], AfterValidator(partial(_checked, MOST_OF_METADATA))]


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError(f"{value[:80]!r} is not JSON") from None


def _from_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    parts = value.split(",")
    if len(parts) != 4:
        raise ValueError(f"{value[:80]!r} is not x,y,width,height")
    return parts


_BOX_TEXT = WithJsonSchema(
    {
        "type": "string",
        "pattern": r"^\d{1,5},\d{1,5},[1-9]\d{0,4},[1-9]\d{0,4}$",
        "examples": ["0,0,224,224"],
    }
)
_JSON_TEXT = WithJsonSchema(
    {
        "type": "string",
        "format": "json-object",
        "contentMediaType": "application/json",
        "examples": ['{"shelf": 3}'],
    }
)
BoxText = Annotated[BoxIn, BeforeValidator(_from_list), _BOX_TEXT]
FilterText = Annotated[Filter, BeforeValidator(_from_json), _JSON_TEXT]
IdsText = Annotated[
    Ids,
    BeforeValidator(_from_json),
    WithJsonSchema({"type": "string", "pattern": r"^\[(\d{1,9}(, ?\d{1,9})*)?\]$"}),
]


class Options(BaseModel):
    """What both kinds of question may say."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    spec: Name | None = Field(
        None, description="Whose vectors are searched; without it `default`, or the only one."
    )
    k: int = Field(10, ge=1, le=10_000, description="How many hits; as many come as exist.")
    by: Literal["patch", "image"] = Field(
        "patch", description="Rank patches, or images by the mean of their best three patches."
    )
    other_images: bool = Field(False, description="Leave the question's own image out.")
    prefix: Text | None = Field(None, description="How the URIs of hits begin.")
    max_distance: float | None = Field(
        None, description="How far hits may be, in the spec's metric."
    )
    ef_search: int | None = Field(None, ge=1, le=1000, description="How widely the index searches.")
    exact: bool = Field(False, description="Compare with every patch, past any index.")
    merge: bool = Field(
        False, description="Of hits that overlap in one image keep only the nearest."
    )
    with_vector: bool = Field(False, description="Give the question's vector back.")


def _one_of(*names: str) -> dict[str, Any]:
    return {"oneOf": [{"required": [name]} for name in names]}


def _check_one_of(given: Model, *names: str) -> Model:
    present = given.model_fields_set.intersection(names)
    if len(present) != 1 or getattr(given, present.pop()) is None:
        raise ValueError(f"give exactly one of {', '.join(names)}")
    return given


class Place(BaseModel):
    """A place in a stored image: its patch that begins at x, y, else the one around that point."""

    model_config = ConfigDict(
        extra="forbid", strict=True, json_schema_extra=_one_of("image_id", "uri")
    )

    image_id: Id | SkipJsonSchema[None] = None
    uri: Annotated[Text, StringConstraints(min_length=1)] | SkipJsonSchema[None] = None
    x: Offset
    y: Offset

    @model_validator(mode="after")
    def _one_image(self) -> "Place":
        return _check_one_of(self, "image_id", "uri")


class SearchBody(Options):
    """A question about a vector or a stored patch; exactly one of them."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            **_one_of("vector", "patch_id", "place"),
            "examples": [
                {"patch_id": 17, "k": 5, "other_images": True},
                {"place": {"uri": "/photos/shelf.jpg", "x": 112, "y": 0}, "by": "image"},
                {"vector": [0.6, 0.8], "filter": {"shelf": 3}, "prefix": "/photos/"},
            ],
        },
    )

    vector: Vector | SkipJsonSchema[None] = Field(
        None, description="As many numbers as the spec has."
    )
    patch_id: Id | SkipJsonSchema[None] = Field(None, description="A stored patch.")
    place: Place | SkipJsonSchema[None] = Field(None, description="A stored patch by where it is.")
    filter: Filter | None = Field(None, description="Metadata that hits must contain.")
    image_ids: Ids | None = Field(None, description="Only patches of these images.")
    touching: BoxIn | None = Field(None, description="x, y, width, height that hits overlap.")

    @model_validator(mode="after")
    def _one_question(self) -> "SearchBody":
        return _check_one_of(self, "vector", "patch_id", "place")


class SearchForm(Options):
    """A question about a picture, beside the file itself; every value is text."""

    filter: FilterText | None = Field(None, description="Metadata that hits must contain.")
    image_ids: IdsText | None = Field(None, description="Only patches of these images.")
    touching: BoxText | None = Field(None, description="x,y,width,height that hits overlap.")
    region: BoxText | None = Field(
        None, description="x,y,width,height of the part that is asked about; else the whole."
    )
    consistent: bool = Field(
        False,
        description="Rank images by how many patches of the region they show in the same "
        "arrangement.",
    )


def thumbnail_of(patch_id: int) -> str:
    """The path of a patch's picture."""
    return f"/v1/patches/{patch_id}/thumbnail.jpg"


class HitOut(BaseModel):
    """A ranked answer, closest first."""

    patch_id: int
    image_id: int
    uri: str
    box: Box = Field(description="x, y, width, height in the upright original.")
    scale: float
    distance: float = Field(description="In the spec's metric; smaller is closer.")
    metadata: dict[str, Any]
    matched: int | None = Field(description="Patches of the region that agree on this place.")
    thumbnail: str = Field(description="The path of the patch's picture.")


class AskedOut(BaseModel):
    """What was asked about."""

    image_ids: list[int] = Field(description="Images in the store with the question's content.")
    patch_id: int | None
    box: Box | None
    width: int | None = Field(description="Of an uploaded picture, upright.")
    height: int | None
    vector: list[float] | None = Field(description="With `with_vector`.")


class SearchAnswer(BaseModel):
    """The hits, and whether every patch in question was compared."""

    spec: str
    metric: str
    exact: bool
    question: AskedOut
    hits: list[HitOut]


class ImageOut(BaseModel):
    """An image where it is now; one of its places if it has several."""

    image_id: int
    uri: str
    width: int | None
    height: int | None
    size_bytes: int
    sha256: str
    metadata: dict[str, Any]
    first_seen: datetime
    last_seen: datetime
    picture: str = Field(description="The path of its picture.")


class ImagesOut(BaseModel):
    """A page of images, by id."""

    images: list[ImageOut]
    next: int | None = Field(description="For `after` of the next page; null at the end.")


class PatchOut(BaseModel):
    """A searchable patch."""

    patch_id: int
    image_id: int
    box: Box
    scale: float
    thumbnail: str


class PatchesOut(BaseModel):
    """An image's patches under a spec, by scale, then row by row."""

    spec: str
    patches: list[PatchOut]


class SpecOut(BaseModel):
    """A recipe, the other names that stand for it today, and where its images stand."""

    name: str
    aliases: list[str]
    digest: str
    dim: int
    metric: str
    recipe: dict[str, Any]
    indexed: bool
    images: int
    patches: int
    pending: int
    failed: int


class SpecsOut(BaseModel):
    """All specs, in the order in which they were added."""

    specs: list[SpecOut]


class SpecStatsOut(BaseModel):
    """Where the images of a spec stand."""

    spec: str
    dim: int
    metric: str
    indexed: bool
    images: int
    patches: int
    pending: int
    leased: int
    failed: int


class StatsOut(BaseModel):
    """Counts of the whole store."""

    sources: int
    locations: int
    images: int
    size_bytes: int
    specs: list[SpecStatsOut]


class Alive(BaseModel):
    """The process runs."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """Whether questions can be answered."""

    status: Literal["ready", "waiting"]
    database: str
    network: str


class ProblemOut(BaseModel):
    """Problem details, RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    rule: str = Field(description="The rule that was broken, a word for programs.")
    request_id: str
    errors: list[dict[str, str]] | None = Field(
        None, description="Each field that is not as described."
    )
