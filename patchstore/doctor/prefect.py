"""Checks of the Prefect API that is configured."""

from collections.abc import Iterator
from importlib.metadata import version

from packaging.version import Version

from flows.checkup import read_api, read_pools, shown_url
from flows.errors import PrefectApiError

from .finding import Finding, ok, problem, warning

CLOCK_S = 5.0  # its answers tell whole seconds


def check_api() -> Iterator[Finding]:
    """That it answers, in a version that this one speaks to, at the same time of day."""
    ours = version("prefect")
    try:
        api = read_api()
    except PrefectApiError as error:
        yield problem("prefect", str(error), "see PREFECT_API_URL, and whether the server runs")
        return
    if Version(api.version).release[:2] < Version(ours).release[:2]:
        text = f"the server is {api.version}, older than this machine's {ours}"
        yield problem("prefect", text, "update the server")
    elif api.version != ours:
        text = f"the server is {api.version}, this machine has {ours}"
        yield warning("prefect", text, "install the same version on both")
    else:
        yield ok("prefect", f"{shown_url()} answers, version {api.version}")
    if abs(api.ahead_s) > CLOCK_S:
        text = f"Prefect's clock is {abs(api.ahead_s):.0f} s off this machine's"
        yield warning("clock", text, "let both machines keep time by NTP")


def check_workers() -> Iterator[Finding]:
    """That somebody works for each pool of processes."""
    for pool in read_pools():
        if pool.type != "process":
            continue
        if pool.paused:
            yield warning("workers", f"the pool {pool.name} is paused", "resume it in Prefect")
        elif pool.online:
            yield ok("workers", f"{pool.online} for the pool {pool.name}")
        else:
            seen = "ever" if pool.silent_s is None else f"for {pool.silent_s:.0f} s"
            text = f"none was seen for the pool {pool.name} {seen}"
            yield warning("workers", text, f"patchstore worker --pool {pool.name}")
