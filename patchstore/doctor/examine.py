"""All checks in their order; what cannot be reached is said once."""

from db.engine import make_engine
from db.server import database_url, is_made
from db.settings import StoreSettings
from flows import environment
from patchstore.errors import causes

from . import database, host
from .finding import Finding, ok, problem, run

WAIT_S = 5.0


def examine() -> list[Finding]:
    """Looks at everything; changes nothing, but starts an embedded Postgres that is stopped."""
    return [*run(host.CHECKS), *_examine_store(), *_examine_prefect()]


def _examine_store() -> list[Finding]:
    try:
        settings = StoreSettings()
        if not is_made(settings):
            return [ok("postgres", "none yet: the first command makes the embedded one")]
        engine = make_engine(database_url(settings), vectors=False, connections=1, wait_s=WAIT_S)
    except Exception as error:  # a setting, or a server that does not start
        return [problem("postgres", causes(error), "")]
    try:
        found = run(database.REACH, engine)
        for checks in (database.SERVER_CHECKS, database.STORE_CHECKS):
            if any(finding.level == "problem" for finding in found):
                break  # the same would be said again by each of the others
            found += run(checks, engine)
        return found
    finally:
        engine.dispose()


def _examine_prefect() -> list[Finding]:
    if environment.configured_api() is None:
        return [ok("prefect", "no PREFECT_API_URL: commands start a server of their own")]
    environment.prepare(StoreSettings().resolved_home())
    from . import prefect  # it reads its settings on import

    found = run((prefect.check_api,))
    if all(finding.level != "problem" for finding in found):
        found += run((prefect.check_workers,))
    return found
