"""Alembic's entry: the schema `patchstore` only, on the connection that `db.migrate` gives."""

from alembic import context
from sqlalchemy import Connection, text

from db.models import SCHEMA, metadata


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Our schema only; leaf partitions are made with each spec, not by migrations."""
    if kind == "schema":
        return name == SCHEMA
    return not (kind == "table" and name is not None and name.startswith("patch_feature_s"))


def run(connection: Connection) -> None:
    """Runs the migrations in one transaction each, never waiting long for a lock."""
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.commit()
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table_schema=SCHEMA,
        include_schemas=True,
        include_name=include_name,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
    connection.execute(text("RESET lock_timeout"))


run(context.config.attributes["connection"])
