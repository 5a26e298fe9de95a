"""One word for how a URI begins; failed images by an index.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-25
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import run_script

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Adds a function that searches and lists of images share, and an index; no row is touched."""
    run_script(driver_connection(op.get_bind()), HERE / "0005_prefix_and_failed.sql")


def downgrade() -> None:
    """Writes the condition out again, and drops the index."""
    run_script(driver_connection(op.get_bind()), HERE / "0005_downgrade.sql")
