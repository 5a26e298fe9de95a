"""A plain question is answered by one statement.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-25
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import run_script

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces the functions that ask an index; no row is touched."""
    run_script(driver_connection(op.get_bind()), HERE / "0004_plain_question.sql")


def downgrade() -> None:
    """Brings those of 0002 back."""
    run_script(driver_connection(op.get_bind()), HERE / "0004_downgrade.sql")
