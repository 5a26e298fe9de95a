"""Aliases: names that stand for one spec today and for another one tomorrow.

`patchstore.find_spec` is the one place that resolves them, for every client.
"""

from sqlalchemy import Connection, Engine, text

from .engine import store_errors
from .errors import SpecConflict, SpecIncomplete
from .specs import StoredSpec, lock_names


def list_aliases(engine: Engine) -> dict[str, str]:
    """The spec's own name by each alias, in the order of the aliases."""
    with store_errors(), engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT a.name, s.name AS spec FROM patchstore.spec_alias a "
                "JOIN patchstore.feature_spec s ON s.id = a.spec_id ORDER BY a.name"
            )
        )
        return {row.name: row.spec for row in rows}


def promote(engine: Engine, spec: StoredSpec, alias: str, *, force: bool = False) -> str | None:
    """Makes the alias stand for the spec, in one transaction; returns what it stood for before.

    Args:
        engine: the store.
        spec: what searches by the alias will ask.
        alias: a new one, or one that stands for another spec.
        force: switch even where images are missing.

    Raises:
        SpecConflict: a spec has that name.
        SpecIncomplete: images of the alias are not computed under the spec, or none at all.
    """
    with store_errors(), engine.begin() as connection:
        lock_names(connection)
        if _is_spec(connection, alias):
            raise SpecConflict(f"{alias!r} is the name of a spec; give the alias another one")
        if not force:
            _check_complete(connection, spec, alias)
        before = connection.execute(
            text(
                "SELECT s.name FROM patchstore.spec_alias a "
                "JOIN patchstore.feature_spec s ON s.id = a.spec_id WHERE a.name = :alias"
            ),
            {"alias": alias},
        ).scalar()
        connection.execute(
            text(
                "INSERT INTO patchstore.spec_alias (name, spec_id) VALUES (:alias, :spec) "
                "ON CONFLICT (name) DO UPDATE SET spec_id = :spec, updated_at = now()"
            ),
            {"alias": alias, "spec": spec.id},
        )
        return None if before is None else str(before)


def remove_alias(engine: Engine, alias: str) -> None:
    """Takes an alias back; its spec stays. Nothing if there is none of that name."""
    with store_errors(), engine.begin() as connection:
        lock_names(connection)
        connection.execute(
            text("DELETE FROM patchstore.spec_alias WHERE name = :alias"), {"alias": alias}
        )


def _is_spec(connection: Connection, name: str) -> bool:
    return bool(
        connection.execute(
            text("SELECT EXISTS (SELECT FROM patchstore.feature_spec WHERE name = :name)"),
            {"name": name},
        ).scalar_one()
    )


def _check_complete(connection: Connection, spec: StoredSpec, alias: str) -> None:
    found = connection.execute(text(_MISSING), {"spec": spec.id, "alias": alias}).one()
    then = f"run: patchstore backfill --spec {spec.name}, or promote it with --force"
    if found.missing:
        raise SpecIncomplete(
            f"{found.missing} images are not computed under spec {spec.name!r} yet, such as "
            f"{found.example}; {then}"
        )
    if not found.shown:
        raise SpecIncomplete(f"nothing is computed under spec {spec.name!r} yet; {then}")


# What is queued of live images, and what was never queued: of what the alias shows now, and of the
# sources that were ingested under the spec.
_MISSING = """
WITH missing AS (
    SELECT e.image_id FROM patchstore.extraction e
     WHERE e.spec_id = :spec AND e.state IN ('pending', 'leased')
       AND EXISTS (SELECT FROM patchstore.image_location l
                    WHERE l.image_id = e.image_id AND l.vanished_at IS NULL)
    UNION
    SELECT o.image_id FROM patchstore.extraction o
      JOIN patchstore.spec_alias a ON a.spec_id = o.spec_id AND a.name = :alias
     WHERE o.visible
       -- What a file showed before counts by what it shows now.
       AND EXISTS (SELECT FROM patchstore.image_location l
                    WHERE l.image_id = o.image_id AND l.vanished_at IS NULL)
       AND NOT EXISTS (SELECT FROM patchstore.extraction e
                        WHERE e.spec_id = :spec AND e.image_id = o.image_id)
    UNION
    SELECT l.image_id FROM patchstore.image_location l
     WHERE l.vanished_at IS NULL AND l.image_id IS NOT NULL
       AND l.source_id IN (SELECT source_id FROM patchstore.ingest_run
                            WHERE spec_id = :spec)
       AND NOT EXISTS (SELECT FROM patchstore.extraction e
                        WHERE e.spec_id = :spec AND e.image_id = l.image_id)
)
SELECT (SELECT count(*) FROM missing) AS missing,
       (SELECT l.uri FROM missing m JOIN patchstore.image_location l ON l.image_id = m.image_id
         WHERE l.vanished_at IS NULL ORDER BY l.uri LIMIT 1) AS example,
       EXISTS (SELECT FROM patchstore.extraction
                WHERE spec_id = :spec AND visible) AS shown
"""
