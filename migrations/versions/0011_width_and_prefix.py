"""An index is searched as widely as its rows ask for, however it was built; a prefix by its index.

Revision ID: 0011
Revises: 0010
Create Date: 2026-11-30
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import grant_functions, run_script

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Replaces functions; no row is touched."""
    _run("0011_width_and_prefix.sql")


def downgrade() -> None:
    """Brings back what was before."""
    _run("0011_downgrade.sql")


def _run(script: str) -> None:
    driver = driver_connection(op.get_bind())
    run_script(driver, HERE / script)
    grant_functions(driver)
