"""How widely an index is searched, by how it was built and what is left out.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-26
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import run_script

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces two functions that searches call; no row is touched."""
    run_script(driver_connection(op.get_bind()), HERE / "0006_search_width.sql")


def downgrade() -> None:
    """Brings those of 0002 back."""
    run_script(driver_connection(op.get_bind()), HERE / "0006_downgrade.sql")
