"""Puts the service together."""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, PlainTextResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from pydantic.json_schema import models_json_schema
from sqlalchemy import Engine

from . import browse, health, problems, search
from .auth import Gate, Scope, Token, parse_tokens, warn_of_expired
from .direct import Direct
from .middleware import Requests
from .problems import MEDIA_TYPE, RULES, Problem
from .schemas import ProblemOut, SearchBody, SearchForm
from .service import Service
from .settings import ServeSettings

PAGE = Path(__file__).parent / "page"
# Names of this machine only; another site's page can make none of them its own.
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_PROBLEM = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemOut"}}}}


def create_app(
    engine: Engine, settings: ServeSettings | None = None, *, address: str = "127.0.0.1"
) -> Any:
    """The service over a store, as an ASGI application.

    Without tokens everybody who reaches it may do everything, so it answers to this machine's own
    names only, and to the address that it listens to, as a URL has it.

    Raises:
        PatchstoreError: `PATCHSTORE_API_TOKENS` is malformed.
    """
    settings = settings or ServeSettings()
    tokens = parse_tokens(settings.api_tokens.get_secret_value())
    warn_of_expired(tokens)
    service = Service(engine, settings)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        threading.Thread(target=service.warm, name="warm", daemon=True).start()
        yield
        service.close()

    app = FastAPI(
        redirect_slashes=False,  # to whatever host the request names
        title="patchstore",
        version=version("patchstore"),
        lifespan=lifespan,
        docs_url=None,  # its pages come from another host
        redoc_url=None,
    )
    app.state.service = service
    problems.install(app)
    app.include_router(health.probes, tags=["operate"])
    for router, scope, tag in _guarded():
        app.include_router(
            router,
            tags=[tag],
            dependencies=_gate(tokens, scope),
            responses=_responses(bool(tokens)),
        )
    _add_page(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    (route,) = (each for each in search.router.routes if isinstance(each, APIRoute))
    return Requests(
        Direct(
            app,
            route,
            partial(search.search, service=service),
            Gate(tokens, "read") if tokens else None,
        ),
        service.metrics,
        timeout_s=settings.api_request_timeout_s,
        max_bytes=settings.max_upload_bytes,
        max_held=settings.uploads_at_once_bytes,
        hosts=None if tokens else LOOPBACK | {address},
    )


def _guarded() -> list[tuple[APIRouter, Scope, str]]:
    return [
        (search.router, "read", "search"),
        (browse.router, "read", "browse"),
        (browse.admin, "admin", "browse"),
        (health.numbers, "read", "operate"),
    ]


def _gate(tokens: Sequence[Token], scope: Scope) -> list[Any]:
    return [Depends(Gate(tokens, scope))] if tokens else []


def _responses(protected: bool) -> dict[int | str, dict[str, Any]]:
    statuses = {rule.status for rule in RULES.values()} - {405}
    return {
        status: {"description": "; ".join(sorted(_titles(status))), **_PROBLEM}
        for status in sorted(statuses)
        if protected or status != 401
    }


def _titles(status: int) -> set[str]:
    return {rule.title for rule in RULES.values() if rule.status == status}


def _add_page(app: FastAPI) -> None:
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @app.get("/problems/{rule}", include_in_schema=False)
    async def problem(rule: str) -> PlainTextResponse:
        """Where the `type` of a problem leads."""
        if rule not in RULES:
            raise Problem("route_unknown", f"there is no problem {rule[:100]!r}")
        return PlainTextResponse(f"{RULES[rule].status} {RULES[rule].title} ({rule})\n")


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with the two bodies that one path takes; made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            summary="Where else does something like this patch occur?",
            routes=app.routes,
        )
        _, bodies = models_json_schema(
            [(SearchBody, "validation"), (SearchForm, "validation"), (ProblemOut, "serialization")],
            ref_template="#/components/schemas/{model}",
        )
        definitions = bodies["$defs"]
        definitions["SearchForm"] = _as_form(definitions["SearchForm"])
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        app.openapi_schema = schema
    return app.openapi_schema


def _as_form(schema: dict[str, Any]) -> dict[str, Any]:
    """A form's fields are text, which is never null; and one of them is a file."""
    fields = {name: _without_null(field) for name, field in schema["properties"].items()}
    image = {"type": "string", "format": "binary", "description": "The picture's file."}
    return {**schema, "properties": {"image": image, **fields}, "required": ["image"]}


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in field.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return field
    rest = {key: value for key, value in field.items() if key not in ("anyOf", "default")}
    return {**kinds[0], **rest}
