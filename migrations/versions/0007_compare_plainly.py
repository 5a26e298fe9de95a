"""A plain question is answered by one statement without an index, too.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-27
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import run_script

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces functions that searches call, and makes one for each spec; no row is touched."""
    run_script(driver_connection(op.get_bind()), HERE / "0007_compare_plainly.sql")


def downgrade() -> None:
    """Brings those of 0002 and 0004 back."""
    run_script(driver_connection(op.get_bind()), HERE / "0007_downgrade.sql")
