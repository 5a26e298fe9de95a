"""Searches with every option; by the place of a stored patch; many questions at once.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-24
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import grant_functions, pin_search_path, run_script

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent

# Each pinned function sets and restores the search_path, 3 us a call. Those that a search calls run
# under the search_path of the function that was asked.
_HELPERS = """
DO $$
DECLARE f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
              WHERE p.pronamespace = 'patchstore'::regnamespace
                AND p.proname NOT LIKE 'similar%' AND p.proname <> 'refresh_visibility'
    LOOP EXECUTE format('ALTER FUNCTION %s RESET search_path', f); END LOOP;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'patchstore_reader') THEN
        REVOKE EXECUTE ON FUNCTION patchstore.prepare_nearest(patchstore.feature_spec)
          FROM patchstore_reader;
    END IF;
END $$
"""


def upgrade() -> None:
    """Replaces the search functions; no row is touched."""
    run("0002_search.sql")
    op.execute(_HELPERS)


def downgrade() -> None:
    """Brings the search functions of 0001 back."""
    op.execute("DROP INDEX patchstore.ix_image_location_prefix")
    op.execute("DROP INDEX patchstore.ix_image_location_metadata")
    op.execute("DROP VIEW patchstore.patches, patchstore.images, patchstore.specs")
    op.execute(
        """
        DO $$
        DECLARE f regprocedure;
        BEGIN
            FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
                      WHERE p.pronamespace = 'patchstore'::regnamespace
            LOOP EXECUTE format('DROP FUNCTION %s CASCADE', f); END LOOP;
        END $$
        """
    )
    op.execute("DROP TYPE patchstore.question, patchstore.hit")
    run("0001_functions.sql")


def run(script: str) -> None:
    """A script, and what is to be done after one that makes functions."""
    driver = driver_connection(op.get_bind())
    run_script(driver, HERE / script)
    pin_search_path(driver)
    grant_functions(driver)
