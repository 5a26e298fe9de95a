"""All checks in their order; what cannot be reached is said once."""

from db.engine import make_engine
from db.server import database_url, is_made
from db.settings import StoreSettings
from flows import environment

from . import database, host
from .finding import Finding, ok, run

WAIT_S = 5.0


def examine() -> list[Finding]:
    """Looks at everything; changes nothing, but starts an embedded Postgres that is stopped."""
    return run((*host.CHECKS, check_store, check_prefect))


def check_store() -> list[Finding]:
    """The database, as far as it can be reached and understood."""
    settings = StoreSettings()
    if not is_made(settings):
        return [ok("postgres", "none yet: the first command makes the embedded one")]
    engine = make_engine(database_url(settings), vectors=False, connections=1, wait_s=WAIT_S)
    try:
        found = run(database.REACH, engine)
        for checks in (database.SERVER_CHECKS, database.STORE_CHECKS):
            if _is_well(found):  # else the same would be said again by each of the others
                found += run(checks, engine)
        return found
    finally:
        engine.dispose()


def check_prefect() -> list[Finding]:
    """The Prefect API, if one is configured."""
    if environment.configured_api() is None:
        return [ok("prefect", "no PREFECT_API_URL: commands start a server of their own")]
    environment.prepare(StoreSettings().resolved_home())
    from . import prefect  # it reads its settings on import

    found = run((prefect.check_api,))
    if _is_well(found):
        found += run((prefect.check_workers,))
    return found


def _is_well(found: list[Finding]) -> bool:
    return all(finding.level != "problem" for finding in found)
