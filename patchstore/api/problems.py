"""Errors as the service tells them: problem details (RFC 9457), one status for each rule."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from db.errors import (
    InvalidQuestion,
    NotFound,
    NotPermitted,
    StoreError,
    StoreTimeout,
    TransientStoreError,
)
from extractor.errors import ExtractorError, ImageError
from patchstore.errors import QuestionError

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Rule:
    """What breaking a rule means."""

    status: int
    title: str


RULES: dict[str, Rule] = {
    # the request itself
    "request_invalid": Rule(422, "The request is not as described"),
    "body_invalid": Rule(400, "The body cannot be parsed"),
    "body_timeout": Rule(408, "The body came too slowly"),
    "body_too_large": Rule(413, "The body is too large"),
    "media_type_unsupported": Rule(415, "Neither JSON nor a form"),
    "host_unknown": Rule(421, "Not a name of this service"),
    "route_unknown": Rule(404, "No such path"),
    "method_not_allowed": Rule(405, "Not a method of this path"),
    # who asks
    "token_missing": Rule(401, "A token is needed"),
    "token_unknown": Rule(401, "The token is unknown"),
    "token_expired": Rule(401, "The token has expired"),
    "scope_missing": Rule(403, "The token may not do this"),
    "store_not_permitted": Rule(403, "The service may only read the database"),
    # the question
    "query_null": Rule(422, "There is no query vector"),
    "query_dim": Rule(422, "The vector has another number of dimensions than the spec"),
    "query_finite": Rule(422, "The vector holds NaN or infinity"),
    "query_range": Rule(422, "The vector is too long for its distances to be told"),
    "query_zero": Rule(422, "The vector is zero"),
    "question_invalid": Rule(422, "The question makes no sense"),
    "k_range": Rule(422, "k is out of range"),
    "best_range": Rule(422, "best is out of range"),
    "ef_search_range": Rule(422, "ef_search is out of range"),
    "max_distance_range": Rule(422, "The distance is no number"),
    "filter_object": Rule(422, "The filter is no JSON object"),
    "box_range": Rule(422, "The box is no box"),
    "region_outside": Rule(422, "The region lies outside the image"),
    "other_images_of_vector": Rule(422, "A vector has no image of its own"),
    "arrangement_of_vector": Rule(422, "A single vector has no arrangement"),
    "image_missing": Rule(422, "The form has no image"),
    "image_empty": Rule(422, "The image is empty"),
    "image_too_small": Rule(422, "The image is too small"),
    "image_too_large": Rule(413, "The image has too many pixels"),
    "image_unreadable": Rule(415, "Not an image that can be read"),
    "image_degenerate": Rule(422, "The image has no features that can be compared"),
    # the store
    "spec_unknown": Rule(404, "No such spec"),
    "spec_building": Rule(409, "The spec is still building"),
    "image_unknown": Rule(404, "No such image"),
    "patch_unknown": Rule(404, "No such patch"),
    "patches_too_many": Rule(422, "The image has too many patches to list"),
    "picture_gone": Rule(404, "The picture is not there any more"),
    "picture_unreadable": Rule(404, "The picture is of a kind that is not read, or broken"),
    "picture_unavailable": Rule(503, "The picture cannot be read just now"),
    "network_unavailable": Rule(503, "The network cannot be loaded"),
    "network_busy": Rule(503, "Too many questions are waiting"),
    "store_unavailable": Rule(503, "The database cannot be reached"),
    "timeout": Rule(504, "It took too long"),
    "internal": Rule(500, "An error of the service"),
}
_HEADERS: dict[str, dict[str, str]] = {
    "token_missing": {"WWW-Authenticate": 'Bearer realm="patchstore"'},
    "token_unknown": {"WWW-Authenticate": 'Bearer realm="patchstore", error="invalid_token"'},
    "token_expired": {"WWW-Authenticate": 'Bearer realm="patchstore", error="invalid_token"'},
    "scope_missing": {"WWW-Authenticate": 'Bearer realm="patchstore", error="insufficient_scope"'},
    "spec_building": {"Retry-After": "5"},
    "network_busy": {"Retry-After": "1"},
    "picture_unavailable": {"Retry-After": "5"},
    "store_unavailable": {"Retry-After": "5"},
}
_OF_PYTHON = re.compile(r"[\[(]|^constrained-")  # the names that pydantic gives to kinds of a union
# A field that breaks its own schema breaks the rule that the SQL functions name, too.
_FIELD_RULES = {
    "k": "k_range",
    "ef_search": "ef_search_range",
    "max_distance": "max_distance_range",
    "filter": "filter_object",
    "touching": "box_range",
    "region": "box_range",
}


_VECTOR_RULES = {
    "finite_number": "query_finite",
    "too_short": "query_dim",
    "too_long": "query_dim",
}


class Problem(Exception):
    """A refusal: the rule that was broken, and one line that says how."""

    def __init__(
        self, rule: str, detail: str, *, errors: list[dict[str, str]] | None = None
    ) -> None:
        super().__init__(detail)
        self.rule = rule
        self.detail = detail
        self.errors = errors


def install(app: FastAPI) -> None:
    """Makes every error of the service a problem document."""
    for kind in (
        Problem,
        RequestValidationError,
        HTTPException,
        QuestionError,
        StoreError,
        ExtractorError,
        Exception,
    ):
        app.add_exception_handler(kind, _handle)


def checked(validate: Callable[[Any], T], content: object, *where: str) -> T:
    """What pydantic makes of what came in. Raises RequestValidationError, with the fields below
    `where`."""
    try:
        return validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        raise RequestValidationError([{**e, "loc": (*where, *e["loc"])} for e in errors]) from None


async def _handle(request: Request, error: Exception) -> Response:
    extra = error.headers if isinstance(error, HTTPException) else None
    return respond(problem_of(error), request.scope, extra)


def respond(
    problem: Problem, scope: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """The document of a problem, `application/problem+json`."""
    rule = RULES[problem.rule]
    document: dict[str, Any] = {
        "type": f"/problems/{problem.rule}",
        "title": rule.title,
        "status": rule.status,
        "detail": problem.detail,
        "rule": problem.rule,
        "request_id": scope.get("state", {}).get("request_id", ""),
    }
    if problem.errors:
        document["errors"] = problem.errors
    return JSONResponse(
        document,
        status_code=rule.status,
        headers={**(headers or {}), **_HEADERS.get(problem.rule, {})},
        media_type=MEDIA_TYPE,
    )


def problem_of(error: Exception) -> Problem:
    """The problem that an error of any room is; what nobody expected is logged and `internal`."""
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _invalid(error)
        case HTTPException():
            return _of_status(error)
        case QuestionError() | InvalidQuestion() | NotFound() if error.rule in RULES:
            return Problem(error.rule, str(error))
        case StoreTimeout():
            return Problem("timeout", f"the database took too long: {error}")
        case NotPermitted():
            return Problem("store_not_permitted", str(error))
        case TransientStoreError():
            return Problem("store_unavailable", f"the database cannot be reached: {error}")
        case ImageError():
            return Problem("image_unreadable", str(error))
        case ExtractorError():
            return Problem("network_unavailable", str(error))
        case TimeoutError():
            return Problem("timeout", "the request took too long")
    logger.error("unexpected error", exc_info=error)
    return Problem("internal", "an unexpected error; the log has it under this request id")


def _of_status(error: HTTPException) -> Problem:
    rules = {404: "route_unknown", 405: "method_not_allowed", 413: "body_too_large"}
    rule = rules.get(error.status_code, "body_invalid")
    details = {
        "route_unknown": "there is nothing at this path; /openapi.json describes what there is",
        "method_not_allowed": "this path has other methods; the header Allow names them",
    }
    return Problem(rule, details.get(rule) or _lower(error.detail))


def _invalid(error: RequestValidationError) -> Problem:
    # A field that may be left out is a union in Python; "should be null" is no help to anybody.
    errors = [e for e in error.errors() if e["type"] != "none_required"] or error.errors()
    found = [{"field": _field(e["loc"]), "message": _message(e["msg"])} for e in errors]
    first = found[0]
    field, kind = first["field"].partition(".")[0], errors[0]["type"]
    rule = _FIELD_RULES.get(field, "request_invalid")
    if field == "vector":
        rule = _VECTOR_RULES.get(kind, rule)
    if kind == "json_invalid":
        rule = "body_invalid"
    if kind == "extra_forbidden":  # whatever it holds: it has no place in this question
        rule = "arrangement_of_vector" if field == "consistent" else "request_invalid"
    where = f"{first['field']}: " if first["field"] else ""
    return Problem(rule, where + _lower(first["message"]), errors=found[:20])


def _field(location: tuple[int | str, ...]) -> str:
    """The path to a field, without where FastAPI looked and without Python's types."""
    path = location[1:] if location and location[0] in ("body", "path", "query") else location
    return ".".join(str(part) for part in path if not _OF_PYTHON.search(str(part)))


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
