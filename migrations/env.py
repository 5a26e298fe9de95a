"""Alembic's entry: the schema `patchstore` only, on the connection that `db.migrate` gives."""

from alembic import context
from sqlalchemy import Connection, text

from db.functions import become_owner
from db.models import SCHEMA, metadata


def include_name(name: str | None, kind: str, parents: object) -> bool:
    """Our schema only; leaf partitions are made with each spec, not by migrations."""
    if kind == "schema":
        return name == SCHEMA
    return not (kind == "table" and name is not None and name.startswith("patch_feature_s"))


def run(connection: Connection) -> None:
    """Runs the migrations in one transaction each, never waiting long for a lock."""
    # Only where it is missing: IF NOT EXISTS asks for the right to create it first.
    if connection.execute(text("SELECT to_regnamespace(:name)"), {"name": SCHEMA}).scalar() is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    become_owner(connection)
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
    connection.execute(text("RESET ROLE"))


run(context.config.attributes["connection"])
