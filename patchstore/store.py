"""Opening the store for a command: find it, bring its schema up, find the spec."""

import json
from typing import TYPE_CHECKING

from sqlalchemy import Engine

from db.engine import make_engine, store_errors
from db.errors import NotFound
from db.migrate import check_schema, current_revision, upgrade
from db.server import connect, database_url
from db.settings import StoreSettings
from db.specs import NewSpec, StoredSpec, add_spec, get_spec, list_specs

from .words import DEFAULT_SPEC

if TYPE_CHECKING:
    from extractor.backbone import ResolvedSpec


def open_store() -> Engine:
    """The store, with its schema in place.

    An empty database and the embedded one are migrated on the way. A database of someone's own
    that holds an older schema is not: other programs may use it, so a person decides when.

    Raises:
        ConfigurationError: no pgvector, no right, no such database.
        SchemaError: an older or newer schema.
    """
    settings = StoreSettings()
    url = database_url(settings)
    if settings.is_embedded or _is_empty():
        upgrade(url)
    engine = connect()
    with store_errors(), engine.connect() as connection:
        check_schema(connection)
    return engine


def _is_empty() -> bool:
    engine = make_engine(database_url(), vectors=False)
    try:
        with store_errors(), engine.connect() as connection:
            return current_revision(connection) is None
    finally:
        engine.dispose()


def register(engine: Engine, name: str, resolved: "ResolvedSpec") -> StoredSpec:
    """Puts a resolved recipe into the store. Raises SpecConflict."""
    spec = resolved.spec
    return add_spec(
        engine,
        NewSpec(
            name=name,
            digest=spec.digest,
            recipe=json.loads(spec.canonical_json()),
            dim=spec.dim,
            metric=spec.metric,
            weights_source=resolved.weights_source,
        ),
    )


def spec_for_ingest(engine: Engine, name: str) -> StoredSpec:
    """The spec of that name; the default one is added when it is first used.

    Raises:
        NotFound: names the specs that exist.
        WeightsError: the default's pretrained weights are not here and cannot be had.
    """
    try:
        return get_spec(engine, name)
    except NotFound:
        if name != DEFAULT_SPEC:
            raise
    from extractor.backbone import resolve  # torch takes seconds: only who needs it pays
    from extractor.spec import Recipe

    return register(engine, name, resolve(Recipe()))


def spec_for_search(engine: Engine, name: str | None) -> StoredSpec:
    """The spec of that name; without one the default, or the only one there is. Raises NotFound."""
    if name is not None:
        return get_spec(engine, name)
    specs = list_specs(engine)
    if len(specs) == 1:
        return specs[0]
    try:
        return get_spec(engine, DEFAULT_SPEC)
    except NotFound as error:
        if not specs:
            raise
        names = ", ".join(sorted(spec.name for spec in specs))
        text = f'no spec was chosen, and none is called "{DEFAULT_SPEC}"; choose one of {names}'
        raise NotFound(text, error.rule) from None
