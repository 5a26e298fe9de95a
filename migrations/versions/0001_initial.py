"""The first schema: tables, search functions, views, the reader's role.

Written as SQL files beside this one: they are what a database administrator reads.

Revision ID: 0001
Revises:
Create Date: 2026-11-24
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import pin_search_path, run_script

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Creates everything in the schema `patchstore`."""
    driver = driver_connection(op.get_bind())
    for name in ("0001_tables.sql", "0001_functions.sql"):
        run_script(driver, HERE / name)
    pin_search_path(driver)


def downgrade() -> None:
    """Drops everything in the schema, partitions with their vectors included.

    The schema itself stays, for it holds Alembic's own table, and so does the role, which other
    databases of the cluster may use.
    """
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
    op.execute("DROP TYPE patchstore.hit")
    op.execute(
        "DROP TABLE patchstore.patch_feature, patchstore.extraction, patchstore.precision_check, "
        "patchstore.ingest_run, patchstore.image_location, patchstore.source, patchstore.image, "
        "patchstore.feature_spec"
    )
    op.execute("DROP SEQUENCE IF EXISTS patchstore.fence_seq, patchstore.patch_feature_id_seq")
