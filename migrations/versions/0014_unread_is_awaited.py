"""A new content that could not be read just now hides the old one no more: the next run reads it.

Revision ID: 0014
Revises: 0013
Create Date: 2026-12-01
"""

from alembic import op
from sqlalchemy import text

from db.engine import driver_connection
from db.functions import find_extension, grant_functions

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | None = None
depends_on: str | None = None

# Inlined into the statement that asks, like the condition that it replaces. The words are those of
# `db.ledger.UNREAD`.
_IS_AWAITED = """
CREATE FUNCTION patchstore.is_awaited(e patchstore.extraction) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(e.state, 'pending') IN ('pending', 'leased')
        OR coalesce(starts_with(e.error, 'cannot be read: '), false)
$$
"""

# What these functions say else stays as it is, so they are not written out again; two of them hold
# the condition in a text. In `images_at` the row has another letter.
_FUNCTIONS = {
    "images_at": "e",
    "locate_hits": "n",
    "narrow": "n",
    "refresh_visibility": "n",
    "shown_location": "n",
    "shown_sql": "n",
}
_BEFORE = "coalesce({row}.state, 'pending') IN ('pending', 'leased')"
_AFTER = "patchstore.is_awaited({row})"


def upgrade() -> None:
    """Replaces functions, and shows again what was hidden."""
    driver = driver_connection(op.get_bind())
    driver.execute(_IS_AWAITED)
    _replace(_BEFORE, _AFTER)
    grant_functions(driver)
    _refresh()


def downgrade() -> None:
    """Brings back what was before."""
    _replace(_AFTER, _BEFORE)
    op.execute("DROP FUNCTION patchstore.is_awaited(patchstore.extraction)")
    _refresh()


def _replace(old: str, new: str) -> None:
    connection = op.get_bind()
    driver = driver_connection(connection)
    find_extension(driver)
    for name, row in _FUNCTIONS.items():
        written: str = connection.execute(
            text("SELECT pg_get_functiondef(CAST(:name AS regproc))"),
            {"name": f"patchstore.{name}"},
        ).scalar_one()
        is_text = name in ("narrow", "shown_sql")
        before, after = (
            condition.format(row=row).replace("'", "''" if is_text else "'")
            for condition in (old, new)
        )
        assert written.count(before) == 1, f"{name} is not as 0013 left it"
        driver.execute(written.replace(before, after).encode())


def _refresh() -> None:
    op.execute(
        "SELECT patchstore.refresh_visibility(ARRAY("
        "  SELECT l.previous_image_id FROM patchstore.image_location l"
        "    JOIN patchstore.extraction e ON e.image_id = l.image_id"
        "   WHERE l.previous_image_id IS NOT NULL AND starts_with(e.error, 'cannot be read: ')))"
    )
