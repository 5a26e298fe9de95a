"""The Prefect API as commands see it: a client and runs whose errors are one line for a person."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.deployments.runner import DeploymentApplyError
from prefect.settings import get_current_settings

from .errors import PrefectApiAway, PrefectApiError


@contextmanager
def prefect_api() -> Iterator[SyncPrefectClient]:
    """A client of the API of `PREFECT_API_URL`. Raises PrefectApiError, PrefectApiAway."""
    address = httpx.URL(str(get_current_settings().api.url)).copy_with(userinfo=b"")
    try:
        with get_client(sync_client=True) as client:
            if trouble := client.api_healthcheck():
                raise PrefectApiAway(
                    f"the Prefect API at {address} does not answer: {trouble}; "
                    "start it, or set PREFECT_API_URL to one that runs"
                ) from trouble
            yield client
    except httpx.HTTPStatusError as error:
        hint = "; see PREFECT_API_AUTH_STRING" if error.response.status_code == 401 else ""
        raise PrefectApiError(
            f"the Prefect API at {address} refuses: {error.response.status_code} "
            f"{error.response.text}{hint}"
        ) from error
    except (httpx.HTTPError, DeploymentApplyError) as error:
        raise PrefectApiError(f"the Prefect API at {address}: {error}") from error


def run_flow(flow: Callable[..., Any], *arguments: object) -> Any:
    """Runs a flow in this process; returns its final state.

    Raises:
        PrefectApiAway: the API does not answer, or went away and did not come back while Prefect's
            client tried.
    """
    try:
        return flow(*arguments, return_state=True)
    except RuntimeError as error:  # what Prefect's client makes of one that it cannot reach
        if not isinstance(error.__cause__, httpx.HTTPError):
            raise
        raise PrefectApiAway(
            f"the Prefect API does not answer: {error}; start it, or set PREFECT_API_URL to one "
            "that runs"
        ) from error
    except httpx.HTTPError as error:
        raise PrefectApiAway(
            "the Prefect API went away during the run; what was finished is stored, run the same "
            "command again to go on"
        ) from error
