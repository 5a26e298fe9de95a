"""The index of a spec as the settings ask for it, for the flows that keep one."""

import logging

from sqlalchemy import Engine

from db.index import build_index, drop_leftovers, is_indexed, is_outgrown, rebuild_index
from db.settings import StoreSettings
from db.specs import StoredSpec

from .progress import listener

logger = logging.getLogger(__name__)


def keep_index(engine: Engine, stored: StoredSpec) -> bool:
    """Builds the index where it is due and missing; True if it was built now.

    What a killed build left beside an index that stands is dropped.
    """
    if is_indexed(engine, stored) and (left := drop_leftovers(engine, stored)):
        logger.info("dropped %d indexes that killed builds of %s left", left, stored.name)
    settings = StoreSettings()
    if is_outgrown(engine, stored):
        logger.warning(
            "the index of %s was built for fewer rows, and searches may miss some of today's; "
            "run: patchstore reindex --spec %s --if-needed",
            stored.name,
            stored.name,
        )
    return build_index(
        engine,
        stored,
        threshold=settings.index_threshold,
        memory_mb=settings.maintenance_work_mem_mb,
        on_progress=listener().share,
    )


def renew_index(engine: Engine, stored: StoredSpec) -> bool:
    """Builds the index anew; False where there is none, or another process is at it."""
    memory_mb = StoreSettings().maintenance_work_mem_mb
    return rebuild_index(engine, stored, memory_mb=memory_mb, on_progress=listener().share)
