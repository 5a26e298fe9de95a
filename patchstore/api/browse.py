"""What is in the store, and its pictures."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import TypeAdapter
from sqlalchemy import Engine

from db import browse
from db.aliases import list_aliases
from db.specs import list_specs

from .pictures import Picture
from .problems import Problem, checked
from .schemas import (
    MAX_ID,
    FilterText,
    ImageOut,
    ImagesOut,
    Metadata,
    PatchesOut,
    PatchOut,
    SpecOut,
    SpecsOut,
    StatsOut,
    Text,
    thumbnail_of,
)
from .service import Service, service_of

router = APIRouter()
admin = APIRouter()

Here = Annotated[Service, Depends(service_of)]
MOST_PATCHES = 100_000  # that are listed: some hundred bytes each, in every hand they go through

Id = Annotated[int, Path(ge=1, le=MAX_ID)]
Side = Annotated[int, Query(ge=16, le=2048, description="Of the longer side at most, in pixels.")]
JPEG: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}},
        "headers": {"ETag": {"schema": {"type": "string"}, "required": True}},
    },
    304: {"description": "The picture is the one that If-None-Match names."},
}
_METADATA = TypeAdapter(Metadata)
_FILTER_TEXT = TypeAdapter(FilterText)


@router.get("/v1/specs")
async def specs(service: Here) -> SpecsOut:
    """All specs, in the order in which they were added, and where their images stand."""
    return await service.in_thread(_specs, service.engine)


def _specs(engine: Engine) -> SpecsOut:
    stats = {one.spec: one for one in browse.stats(engine).specs}
    aliases = list_aliases(engine)
    return SpecsOut(
        specs=[
            SpecOut(
                name=spec.name,
                aliases=[alias for alias, name in aliases.items() if name == spec.name],
                digest=spec.digest,
                dim=spec.dim,
                metric=spec.metric.name,
                recipe=spec.recipe,
                indexed=counts.indexed,
                images=counts.images,
                patches=counts.patches,
                pending=counts.pending + counts.leased,
                failed=counts.failed,
            )
            for spec in list_specs(engine)
            if (counts := stats.get(spec.name))  # added between the two questions
        ]
    )


@router.get("/v1/stats")
async def stats(service: Here) -> StatsOut:
    """Counts of the whole store, and of each spec."""
    found = await service.in_thread(browse.stats, service.engine)
    return StatsOut(**asdict(found))


@router.get("/v1/images", operation_id="list_images")
async def images(
    service: Here,
    spec: Annotated[
        Text | None, Query(description="Under which they have patches; without it all.")
    ] = None,
    prefix: Annotated[Text | None, Query(description="How their URIs begin.")] = None,
    filter: Annotated[
        str | None,
        Query(
            description="Metadata that they contain, as JSON.",
            json_schema_extra={"format": "json-object", "contentMediaType": "application/json"},
        ),
    ] = None,
    after: Annotated[int, Query(ge=0, le=MAX_ID, description="`next` of the last page.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> ImagesOut:
    """Images that are there now, by id, a page at a time."""
    metadata = None
    if filter is not None:
        metadata = checked(_FILTER_TEXT.validate_python, filter, "query", "filter")
    rows = await service.in_thread(
        _images,
        service,
        spec,
        prefix=prefix,
        filter=metadata,
        after=after,
        limit=limit + 1,  # whether there are more
    )
    page = rows[:limit]
    more = page[-1].image_id if len(rows) > limit else None
    return ImagesOut(images=[_image(row) for row in page], next=more)


def _images(service: Service, spec: str | None, **narrowed: Any) -> list[browse.ImageRow]:
    stored = None if spec is None else service.spec(spec)
    return browse.list_images(service.engine, spec=stored, **narrowed)


@router.get("/v1/images/{image_id}")
async def image(service: Here, image_id: Id) -> ImageOut:
    """An image that is there now, or that searches still show."""
    return _image(await service.in_thread(browse.get_image, service.engine, image_id))


@router.get("/v1/images/{image_id}/patches", response_model=PatchesOut)
async def patches(
    service: Here,
    image_id: Id,
    spec: Annotated[
        Text | None, Query(description="Without it `default`, or the only one.")
    ] = None,
) -> Response:
    """An image's searchable patches under a spec, by scale, then row by row."""
    return await service.in_thread(_patches, service, image_id, spec)


def _patches(service: Service, image_id: int, name: str | None) -> Response:
    """Made here as text: of many, that would keep the others waiting."""
    spec = service.spec(name)
    browse.get_image(service.engine, image_id)  # an unknown image is no image without patches
    rows = browse.list_patches(service.engine, spec, image_id, MOST_PATCHES + 1)
    if len(rows) > MOST_PATCHES:
        raise Problem(
            "patches_too_many",
            f"image {image_id} has more than {MOST_PATCHES:,} patches under spec {spec.name!r}; "
            "ask about one by its place",
        )
    found = PatchesOut(
        spec=spec.name,
        patches=[PatchOut(**vars(row), thumbnail=thumbnail_of(row.patch_id)) for row in rows],
    )
    return Response(found.model_dump_json(), media_type="application/json")


@router.get("/v1/images/{image_id}/picture.jpg", response_class=Response, responses=JPEG)
async def picture(request: Request, service: Here, image_id: Id, side: Side = 1024) -> Response:
    """An image, upright, as a JPEG."""
    found = await service.show(service.pictures.of_image, image_id, side)
    return await _jpeg(request, service, found)


@router.get("/v1/patches/{patch_id}/thumbnail.jpg", response_class=Response, responses=JPEG)
async def thumbnail(request: Request, service: Here, patch_id: Id, side: Side = 224) -> Response:
    """A patch, cut from the original, as a JPEG."""
    found = await service.show(service.pictures.of_patch, patch_id, side)
    return await _jpeg(request, service, found)


@admin.put(
    "/v1/images/{image_id}/metadata",
    operation_id="put_metadata",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _METADATA.json_schema()}},
        }
    },
)
async def put_metadata(request: Request, service: Here, image_id: Id) -> ImageOut:
    """Replaces the metadata of an image; no vector is touched."""
    # FastAPI would read a body before it asks whether this one may send it.
    metadata = await service.json_of(request, _METADATA.validate_json)
    await service.in_thread(browse.set_metadata, service.engine, image_id, metadata)
    return _image(await service.in_thread(browse.get_image, service.engine, image_id))


async def _jpeg(request: Request, service: Service, found: Picture) -> Response:
    # `private`: it was perhaps shown to a token only. Its bytes belong to its name for good, but
    # the name may come to stand for nothing.
    headers = {"ETag": found.etag, "Cache-Control": "private, max-age=60"}
    known = [
        tag.strip().removeprefix("W/")
        for tag in request.headers.get("if-none-match", "").split(",")
    ]
    if found.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    content = await service.show(service.pictures.jpeg, found)
    return Response(content, media_type="image/jpeg", headers=headers)


def _image(row: browse.ImageRow) -> ImageOut:
    return ImageOut(**vars(row), picture=f"/v1/images/{row.image_id}/picture.jpg")
