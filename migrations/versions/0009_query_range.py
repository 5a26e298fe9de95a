"""Queries whose distances float32 cannot hold are refused.

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-28
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import grant_functions, run_script

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces two functions that searches call; no row is touched."""
    _run("0009_query_range.sql")


def downgrade() -> None:
    """Brings those of 0002 and 0008 back."""
    _run("0009_downgrade.sql")


def _run(script: str) -> None:
    driver = driver_connection(op.get_bind())
    run_script(driver, HERE / script)
    grant_functions(driver)
