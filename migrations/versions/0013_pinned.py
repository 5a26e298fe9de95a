"""Many questions in one call find pgvector whatever the caller's search_path, as one does.

Revision ID: 0013
Revises: 0012
Create Date: 2026-12-01
"""

from alembic import op

from db.engine import driver_connection
from db.functions import pin_search_path

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    """Pins what 0012 had replaced."""
    pin_search_path(driver_connection(op.get_bind()), "similar_patches_many")


def downgrade() -> None:
    """Leaves it pinned: it does no harm."""
