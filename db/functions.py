"""What migrations that make SQL functions do before and after, and who may do what."""

from pathlib import Path
from typing import Any, LiteralString

import psycopg
from sqlalchemy import Connection, text

_FIND_EXTENSION = """
SELECT set_config('search_path', format('pg_catalog, %I', n.nspname), true)
  FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
"""

_PIN_SEARCH_PATH = """
DO $$
DECLARE
    f regprocedure;
    extension_schema text := (
        SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
         WHERE e.extname = 'vector');
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
              WHERE p.pronamespace = 'patchstore'::regnamespace AND {which}
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET search_path = pg_catalog, %I, pg_temp',
                       f, extension_schema);
    END LOOP;
END $$
"""

_FOR_READER = """
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        {statements}
    END IF;
END $$
"""


def become_owner(connection: Connection, *, local: bool = False) -> None:
    """Makes what is made from now on the schema owner's, whoever connects: a superuser may.

    Args:
        connection: of the store.
        local: until the transaction ends, not for the session.
    """
    owner = connection.execute(
        text(
            "SELECT quote_ident(pg_get_userbyid(nspowner)) FROM pg_namespace "
            "WHERE nspname = 'patchstore' AND pg_get_userbyid(nspowner) <> current_user "
            "  AND pg_has_role(nspowner, 'MEMBER')"
        )
    ).scalar()
    if owner is not None:
        connection.execute(text(f"SET {'LOCAL' if local else 'SESSION'} ROLE {owner}"))


def run_script(driver: "psycopg.Connection[Any]", script: Path) -> None:
    """Runs a whole file through the driver: colons and percent signs are no parameters in it."""
    find_extension(driver)
    driver.execute(script.read_bytes())


def find_extension(driver: "psycopg.Connection[Any]") -> None:
    """Puts pgvector's schema on this transaction's search_path: a script names its types bare."""
    driver.execute(_FIND_EXTENSION)


def pin_search_path(driver: "psycopg.Connection[Any]", name: LiteralString | None = None) -> None:
    """Lets functions find pgvector's operators whatever the caller's search_path is.

    All, or those of a name: one that others call has no need of it, and each setting takes time.
    """
    which: LiteralString = "true" if name is None else f"p.proname = '{name}'"
    driver.execute(_PIN_SEARCH_PATH.replace("{which}", which))


def grant_functions(driver: "psycopg.Connection[Any]") -> None:
    """Lets patchstore_reader, where it exists, and nobody else call every function that asks."""
    driver.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA patchstore FROM PUBLIC")
    grants = for_reader(
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA patchstore TO patchstore_reader; "
        "REVOKE EXECUTE ON FUNCTION patchstore.refresh_visibility(bigint[]) FROM patchstore_reader;"
    )
    driver.execute(grants.encode())


def for_reader(statements: str) -> str:
    """What runs statements, each with its semicolon, where there is the role patchstore_reader."""
    return _FOR_READER.replace("{statements}", statements)
