"""Who may only read can run the commands that only read.

Revision ID: 0010
Revises: 0009
Create Date: 2026-11-28
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection
from db.functions import grant_functions, run_script

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Grants what reading takes, and replaces a function; no row is touched."""
    _run("0010_reader_serves.sql")


def downgrade() -> None:
    """Takes the grants back, and brings the function of 0002 back."""
    _run("0010_downgrade.sql")


def _run(script: str) -> None:
    driver = driver_connection(op.get_bind())
    run_script(driver, HERE / script)
    grant_functions(driver)
