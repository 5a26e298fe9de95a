"""Facts about the database for whoever looks for what is wrong; nothing is judged or changed."""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, text

from .engine import store_errors
from .migrate import current_revision

READER = "patchstore_reader"


@dataclass(frozen=True)
class Memory:
    """The server's own settings, in bytes; `workers` help to build an index."""

    shared_buffers: int
    maintenance_work_mem: int
    workers: int
    shared_memory: str


def postgres_version(engine: Engine) -> str:
    """Such as `18.4`."""
    with store_errors(), engine.connect() as connection:
        return str(connection.execute(text("SHOW server_version")).scalar_one()).split()[0]


def pgvector_version(engine: Engine) -> str | None:
    """The installed one; None where the extension is not in this database."""
    with store_errors(), engine.connect() as connection:
        version = connection.execute(
            text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
        ).scalar()
        return None if version is None else str(version)


def schema_revision(engine: Engine) -> str | None:
    """The database's revision; None on an empty one."""
    with store_errors(), engine.connect() as connection:
        return current_revision(connection)


def clock_ahead_s(engine: Engine) -> float:
    """How far the database's clock is ahead of this machine's, to half a round trip."""
    with store_errors(), engine.connect() as connection:
        connection.execute(text("SELECT 1"))  # connecting takes longer than asking
        before = datetime.now(UTC)
        theirs: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        after = datetime.now(UTC)
        return (theirs - before - (after - before) / 2).total_seconds()


def memory(engine: Engine) -> Memory:
    """What Postgres may use."""
    with store_errors(), engine.connect() as connection:
        row = connection.execute(
            text(
                "SELECT pg_size_bytes(current_setting('shared_buffers')) AS shared_buffers, "
                "  pg_size_bytes(current_setting('maintenance_work_mem')) AS maintenance_work_mem, "
                "  current_setting('max_parallel_maintenance_workers')::integer AS workers, "
                "  current_setting('dynamic_shared_memory_type') AS shared_memory"
            )
        ).one()
        return Memory(**row._asdict())


def tables_without_rights(engine: Engine) -> list[str]:
    """Tables that this role may not read and write."""
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    held = " AND ".join(f"has_table_privilege(oid, '{right}')" for right in rights)
    return _tables(engine, f"NOT ({held})")


def tables_of_others(engine: Engine) -> list[str]:
    """Tables whose owner this role may not act as: it can neither add specs nor build indexes."""
    return _tables(engine, "NOT pg_has_role(relowner, 'USAGE')")


def _tables(engine: Engine, condition: str) -> list[str]:
    with store_errors(), engine.connect() as connection:
        names = connection.execute(
            text(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') "
                f"AND relnamespace = 'patchstore'::regnamespace AND {condition} ORDER BY relname"
            )
        )
        return list(names.scalars())


def reader_may_search(engine: Engine) -> bool | None:
    """Whether patchstore_reader can do what it is for; None where there is no such role."""
    with store_errors(), engine.connect() as connection:
        found: bool | None = connection.execute(
            text(
                "SELECT has_schema_privilege(r.oid, 'patchstore', 'USAGE')"
                "   AND has_table_privilege(r.oid, 'patchstore.patches', 'SELECT')"
                "   AND has_table_privilege(r.oid, 'patchstore.images', 'SELECT')"
                "   AND has_table_privilege(r.oid, 'patchstore.specs', 'SELECT')"
                "   AND (SELECT bool_and(has_function_privilege(r.oid, p.oid, 'EXECUTE'))"
                "          FROM pg_proc p WHERE p.pronamespace = 'patchstore'::regnamespace"
                "           AND p.proname LIKE 'similar%') "
                "FROM pg_roles r WHERE r.rolname = :reader"
            ),
            {"reader": READER},
        ).scalar()
        return found
