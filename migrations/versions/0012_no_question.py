"""No question among many is refused where it should be, and an array may have any bounds.

Revision ID: 0012
Revises: 0011
Create Date: 2026-11-30
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import grant_functions, run_script

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces a function; no row is touched."""
    _run("0012_no_question.sql")


def downgrade() -> None:
    """Brings back what was before."""
    _run("0012_downgrade.sql")


def _run(script: str) -> None:
    driver = driver_connection(op.get_bind())
    run_script(driver, HERE / script)
    grant_functions(driver)
