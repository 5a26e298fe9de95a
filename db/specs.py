"""Specs: immutable recipes, each with a partition of its own.

The recipe's meaning belongs to the extractor; here it is canonical JSON, a digest, a dimension and
a metric.
"""

import json
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, text

from .engine import store_errors
from .errors import InvalidQuestion, SpecConflict
from .functions import become_owner, for_reader
from .metric import MAX_STORED_DIM, METRICS, Metric

# Rows of 512 to 768 dimensions are read ten times faster when they are not moved out of line;
# wider ones would waste most of a page each.
INLINE_DIM = 768
# What a condition on vectors of all specs begins with: their keys begin with the spec, and before
# Postgres 18 no index helps without it.
OF_ANY_SPEC = "= ANY (ARRAY (SELECT id FROM patchstore.feature_spec))"


@dataclass(frozen=True)
class NewSpec:
    """What is needed to register a recipe."""

    name: str
    digest: str
    recipe: dict[str, Any]
    dim: int
    metric: str
    weights_source: str


@dataclass(frozen=True)
class StoredSpec:
    """A registered recipe."""

    id: int
    name: str
    digest: str
    recipe: dict[str, Any]
    dim: int
    metric: Metric
    weights_source: str

    @property
    def partition(self) -> str:
        """The table that holds this spec's vectors, with its schema."""
        return f"patchstore.patch_feature_s{self.id}"


def add_spec(engine: Engine, spec: NewSpec) -> StoredSpec:
    """Registers a recipe under a name and makes its partition. Idempotent for the same recipe.

    Adding the same recipe again only updates where its weights are found.

    Raises:
        SpecConflict: the name stands for another recipe, and the message shows each difference; or
            it is an alias.
        InvalidQuestion: an unknown metric, or more dimensions than pgvector stores.
    """
    if spec.metric not in METRICS:
        raise InvalidQuestion(f"metric {spec.metric!r} is unknown; one of {', '.join(METRICS)}")
    if not 1 <= spec.dim <= MAX_STORED_DIM:
        raise InvalidQuestion(
            f"a vector of {spec.dim} dimensions cannot be stored: pgvector takes 1 to "
            f"{MAX_STORED_DIM}; pool the layer (--pooling avg) instead of flattening it"
        )
    with store_errors(), engine.begin() as connection:
        lock_names(connection)
        known = _find(connection, spec.name)
        if known is None:
            _refuse_alias(connection, spec.name)
            connection.execute(
                text(
                    "INSERT INTO patchstore.feature_spec "
                    "(name, digest, recipe, dim, metric, distance_operator, weights_source) "
                    "VALUES (:name, :digest, :recipe, :dim, :metric, :operator, :weights_source)"
                ),
                _columns(spec),
            )
            added = _stored(_require(connection, spec.name))
            become_owner(connection, local=True)
            _create_partition(connection, added)
            connection.execute(
                text("SELECT patchstore.prepare_nearest(patchstore.find_spec(:name))"),
                {"name": added.name},
            )
            return added
        if known.digest != spec.digest:
            raise SpecConflict(
                f"spec {spec.name!r} exists with another recipe "
                f"({'; '.join(_differences(known.recipe, spec.recipe))}); a recipe never changes: "
                "give the new one another name"
            )
        connection.execute(
            text("UPDATE patchstore.feature_spec SET weights_source = :source WHERE id = :id"),
            {"source": spec.weights_source, "id": known.id},
        )
        return _stored(_require(connection, spec.name))


def get_spec(engine: Engine, name: str) -> StoredSpec:
    """The spec of that name, or that the alias of that name stands for.

    Raises:
        NotFound: names the specs that exist.
    """
    with store_errors(), engine.connect() as connection:
        return _stored(_require(connection, name))


def lock_names(connection: Connection) -> None:
    """One at a time gives or takes the names of specs and aliases, up to the transaction's end."""
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('patchstore.add_spec'))"))


def list_specs(engine: Engine) -> list[StoredSpec]:
    """All specs, in the order in which they were added."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(text("SELECT * FROM patchstore.feature_spec ORDER BY id"))
        return [_stored(row) for row in rows]


def recorded_precision(engine: Engine, spec: StoredSpec, device_kind: str) -> str | None:
    """The precision that was found good for this spec on this kind of device, if any was."""
    with store_errors(), engine.connect() as connection:
        precision = connection.execute(
            text(
                "SELECT precision FROM patchstore.precision_check "
                "WHERE spec_id = :spec AND device_kind = :kind"
            ),
            {"spec": spec.id, "kind": device_kind},
        ).scalar()
        return None if precision is None else str(precision)


def record_precision(
    engine: Engine,
    spec: StoredSpec,
    *,
    device_kind: str,
    precision: str,
    min_cosine: float,
    detail: str,
) -> str:
    """Keeps the outcome of a precision check; the first one recorded stands, and is returned."""
    with store_errors(), engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO patchstore.precision_check "
                "(spec_id, device_kind, precision, min_cosine, detail) "
                "VALUES (:spec, :kind, :precision, :cosine, :detail) ON CONFLICT DO NOTHING"
            ),
            {
                "spec": spec.id,
                "kind": device_kind,
                "precision": precision,
                "cosine": min_cosine,
                "detail": detail,
            },
        )
    return recorded_precision(engine, spec, device_kind) or precision


def _columns(spec: NewSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "digest": spec.digest,
        "recipe": json.dumps(spec.recipe, sort_keys=True),
        "dim": spec.dim,
        "metric": spec.metric,
        "operator": METRICS[spec.metric].operator,
        "weights_source": spec.weights_source,
    }


def _find(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(
        text("SELECT * FROM patchstore.feature_spec WHERE name = :name"), {"name": name}
    ).one_or_none()


def _require(connection: Connection, name: str) -> Row[Any]:
    found = connection.execute(text("SELECT * FROM patchstore.find_spec(:name)"), {"name": name})
    return found.one()


def _refuse_alias(connection: Connection, name: str) -> None:
    taken = connection.execute(
        text("SELECT FROM patchstore.spec_alias WHERE name = :name"), {"name": name}
    )
    if taken.one_or_none() is not None:
        raise SpecConflict(f"{name!r} is an alias of a spec; give the new spec another name")


def _stored(row: Row[Any]) -> StoredSpec:
    return StoredSpec(
        id=row.id,
        name=row.name,
        digest=row.digest,
        recipe=row.recipe,
        dim=row.dim,
        metric=METRICS[row.metric],
        weights_source=row.weights_source,
    )


def _differences(known: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{field}: {known.get(field)!r} in the store, {new.get(field)!r} now"
        for field in sorted(known.keys() | new.keys())
        if known.get(field) != new.get(field)
    ]


def _create_partition(connection: Connection, spec: StoredSpec) -> None:
    """Made first and attached after: that takes the weaker lock on the parent."""
    table = spec.partition
    statements = [
        f"CREATE TABLE {table} (LIKE patchstore.patch_feature INCLUDING DEFAULTS "
        "INCLUDING CONSTRAINTS)",
        f"ALTER TABLE {table} ADD CONSTRAINT ck_dim CHECK (vector_dims(embedding) = {spec.dim})",
        f"ALTER TABLE {table} ADD CONSTRAINT ck_spec CHECK (spec_id = {spec.id})",
        f"ALTER TABLE patchstore.patch_feature ATTACH PARTITION {table} FOR VALUES IN ({spec.id})",
        f"ALTER TABLE {table} DROP CONSTRAINT ck_spec",
    ]
    if spec.dim <= INLINE_DIM:
        statements.insert(1, f"ALTER TABLE {table} SET (toast_tuple_target = 8160)")
    statements.append(for_reader(f"GRANT SELECT ON {table} TO patchstore_reader;"))
    for statement in statements:
        connection.execute(text(statement))
