"""Bringing a database to the schema that this code speaks."""

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from packaging.version import Version
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError

from .engine import first_line, make_engine, store_errors
from .errors import ConfigurationError, SchemaError
from .models import SCHEMA

logger = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).parent.parent / "migrations"
MINIMUM_PGVECTOR = Version("0.8.4")  # older ones corrupt indexes and carry a CVE
UPGRADE_LOCK = 0x70617463  # two upgrades at once would race for the same tables


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, bound to a connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def upgrade(url: URL, revision: str = "head") -> bool:
    """Migrates the database; True if anything changed. Idempotent.

    Raises:
        ConfigurationError: no pgvector, one older than 0.8.4, or no right to create it.
        SchemaError: a newer patchstore has made the schema.
    """
    # Whatever limit the role or the database has: rows are moved for as long as it takes.
    engine = make_engine(url, vectors=False, statement_timeout_s=0)
    try:
        with store_errors(), engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": UPGRADE_LOCK})
            connection.commit()
            ensure_extension(connection)
            before = current_revision(connection)
            if before == head_revision():
                return False
            if before is not None and not _is_known(before):
                raise SchemaError(
                    f"the schema is at {before}, which a newer patchstore has made; update this one"
                )
            command.upgrade(alembic_config(connection), revision)
            connection.commit()
            return True
    finally:
        engine.dispose()


def downgrade(url: URL, revision: str = "base") -> None:
    """Takes the schema back; data in dropped tables is lost."""
    engine = make_engine(url, vectors=False)
    try:
        with store_errors(), engine.connect() as connection:
            command.downgrade(alembic_config(connection), revision)
            connection.commit()
    finally:
        engine.dispose()


def ensure_extension(connection: Connection) -> None:
    """Creates pgvector where it is missing and checks its version.

    Raises:
        ConfigurationError: in one line, with what to do.
    """
    available = connection.execute(
        text("SELECT default_version FROM pg_available_extensions WHERE name = 'vector'")
    ).scalar()
    installed = _installed_version(connection)
    if installed is None:
        if available is None:
            raise ConfigurationError(
                f"this Postgres has no pgvector; install pgvector {MINIMUM_PGVECTOR} or newer on "
                "its server (https://github.com/pgvector/pgvector#installation)"
            )
        _create_extension(connection)
        installed = _installed_version(connection) or "0"
    if Version(installed) < MINIMUM_PGVECTOR:
        raise ConfigurationError(
            f"pgvector {installed} is older than {MINIMUM_PGVECTOR}; update it on the server, then "
            "run in this database as a superuser: ALTER EXTENSION vector UPDATE"
        )


def _create_extension(connection: Connection) -> None:
    try:
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        connection.commit()
    except DBAPIError as error:
        connection.rollback()
        if getattr(error.orig, "sqlstate", None) == "42501":
            raise ConfigurationError(
                "this role may not create the pgvector extension; have a superuser run in this "
                "database: CREATE EXTENSION vector"
            ) from error
        raise ConfigurationError(
            f"pgvector cannot be created: {first_line(error.orig or error)}"
        ) from error


def _installed_version(connection: Connection) -> str | None:
    version = connection.execute(
        text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    ).scalar()
    return None if version is None else str(version)


def head_revision() -> str | None:
    """The revision that this code speaks."""
    return _scripts().get_current_head()


def _is_known(revision: str) -> bool:
    return revision in {script.revision for script in _scripts().walk_revisions()}


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return ScriptDirectory.from_config(config)


def current_revision(connection: Connection) -> str | None:
    """The database's revision; None on an empty one."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    revision = context.get_current_revision()
    connection.rollback()
    return revision


def check_schema(connection: Connection) -> None:
    """Raises SchemaError unless the schema is the one that this code speaks."""
    current, head = current_revision(connection), head_revision()
    if current != head:
        raise SchemaError(
            f"the database's schema is {current or 'empty'}, this patchstore needs {head}; "
            "run: patchstore db upgrade"
        )
