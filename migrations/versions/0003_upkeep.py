"""Aliases of specs; what audits found; when indexes were built.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-25
"""

from pathlib import Path

from alembic import op

from db.engine import driver_connection

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | None = None
depends_on: str | None = None

HERE = Path(__file__).parent


def upgrade() -> None:
    """Adds three tables; `find_spec` and the view `specs` learn of aliases."""
    run("0003_upkeep.sql")


def downgrade() -> None:
    """Forgets aliases and audits; no vector is touched."""
    run("0003_downgrade.sql")


def run(script: str) -> None:
    """A whole script through the driver: colons and percent signs are no parameters in it."""
    driver_connection(op.get_bind()).execute((HERE / script).read_bytes())
