"""`POST /v1/search`: a vector or a stored patch as JSON, a picture as a form."""

import time
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends, Request, Response
from starlette.datastructures import UploadFile

from db.search import Answer, Hit, SearchOptions
from db.specs import StoredSpec
from patchstore.query import (
    Asked,
    GoOn,
    ImageQuestion,
    PatchQuestion,
    PlaceQuestion,
    Question,
    Refinement,
    VectorQuestion,
    ask,
    picture_size,
)

from .problems import Problem, checked
from .schemas import AskedOut, HitOut, SearchAnswer, SearchBody, SearchForm, thumbnail_of
from .service import Service, service_of

router = APIRouter()

_MAX_FIELDS = 20
BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/SearchBody"}},
        "multipart/form-data": {"schema": {"$ref": "#/components/schemas/SearchForm"}},
    },
}


@router.post(
    "/v1/search",
    openapi_extra={"requestBody": BODY},
    operation_id="search",
    response_model=SearchAnswer,
)
async def search(request: Request, service: Annotated[Service, Depends(service_of)]) -> Response:
    """Where else does something like this occur?

    JSON asks about a vector or a stored patch, a form about a picture or a region of it.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type == "application/json":
        body = await service.json_of(request, SearchBody.model_validate_json)
        go_on = service.patience()
        return await service.in_thread(_answer, service, body, _stored_or_vector(body), go_on)
    if media_type == "multipart/form-data":
        try:
            form, content = await _read_form(request)
        except UnicodeError:  # of a charset that its head names
            raise Problem("body_invalid", "the form is not in the charset that it names") from None
        limit = service.settings.api_max_pixels
        question = ImageQuestion(
            content, form.region, max_pixels=limit, limit_name="PATCHSTORE_API_MAX_PIXELS"
        )
        go_on = service.patience()
        return await service.in_thread(_answer_picture, service, form, question, go_on)
    raise Problem(
        "media_type_unsupported",
        f"the body is {media_type[:100] or 'of no type'}; send application/json with a vector or "
        "a stored patch, or multipart/form-data with a picture",
    )


async def _read_form(request: Request) -> tuple[SearchForm, bytes]:
    async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
        fields = dict(form.multi_items())
        if len(fields) < len(form.multi_items()):
            raise Problem("request_invalid", "a field of the form is there twice")
        upload = fields.pop("image", None)
        if not isinstance(upload, UploadFile):
            raise Problem("image_missing", "the form has no file in its field image")
        if any(isinstance(value, UploadFile) for value in fields.values()):
            raise Problem("request_invalid", "the form has a file in a field other than image")
        parsed: SearchForm = checked(SearchForm.model_validate, fields)
        return parsed, await upload.read()


def _stored_or_vector(body: SearchBody) -> Question:
    if body.vector is not None:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity: refused
            return VectorQuestion(np.asarray(body.vector, dtype=np.float32))
    if body.patch_id is not None:
        return PatchQuestion(body.patch_id)
    assert body.place is not None
    image = body.place.image_id if body.place.image_id is not None else body.place.uri
    assert image is not None
    return PlaceQuestion(image, body.place.x, body.place.y)


def _answer_picture(
    service: Service, form: SearchForm, question: ImageQuestion, go_on: GoOn
) -> Response:
    """The answer, for as long as which the picture is held."""
    with service.pixels.hold(picture_size(question)):
        return _answer(service, form, question, go_on)


def _answer(
    service: Service, asking: SearchBody | SearchForm, question: Question, go_on: GoOn
) -> Response:
    spec = service.spec(asking.spec)
    options = SearchOptions(
        k=asking.k,
        by=asking.by,
        filter=asking.filter,
        prefix=asking.prefix,
        image_ids=asking.image_ids,
        touching=asking.touching,
        max_distance=asking.max_distance,
        ef_search=asking.ef_search,
        exact=asking.exact,
    )
    consistent = isinstance(asking, SearchForm) and asking.consistent
    begun = time.perf_counter()
    asked, answer = ask(
        service.engine,
        spec,
        question,
        options,
        other_images=asking.other_images,
        refinement=Refinement(merge=asking.merge, consistent=consistent),
        embed=service.embedder,
        go_on=go_on,
    )
    kind = type(question).__name__.removesuffix("Question").lower()
    service.metrics.searches.labels(kind, asking.by).observe(time.perf_counter() - begun)
    # As a response: FastAPI would check again what was checked when it was made.
    found = _out(spec, asked, answer, with_vector=asking.with_vector)
    return Response(found.model_dump_json(), media_type="application/json")


def _out(spec: StoredSpec, asked: Asked, answer: Answer, *, with_vector: bool) -> SearchAnswer:
    height, width = (None, None) if asked.picture is None else asked.picture.shape[:2]
    return SearchAnswer(
        spec=spec.name,
        metric=spec.metric.name,
        exact=answer.exact,
        question=AskedOut(
            image_ids=list(asked.image_ids),
            patch_id=asked.patch_id,
            box=asked.box,
            width=width,
            height=height,
            vector=asked.vector.tolist() if with_vector else None,
        ),
        hits=[_hit(hit) for hit in answer.hits],
    )


def _hit(hit: Hit) -> HitOut:
    return HitOut(**vars(hit), thumbnail=thumbnail_of(hit.patch_id))
