"""A patch named by its file's URI is one of what that file shows.

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-27
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import grant_functions, pin_search_path, run_script

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces three functions that searches call; no row is touched."""
    _run("0008_what_a_file_shows.sql")


def downgrade() -> None:
    """Brings those of 0002 and 0007 back."""
    _run("0008_downgrade.sql")


def _run(script: str) -> None:
    driver = driver_connection(op.get_bind())
    run_script(driver, HERE / script)
    pin_search_path(driver, "similar_to_patch")
    grant_functions(driver)
