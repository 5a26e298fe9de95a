"""Runs whose Prefect API goes away."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest

from flows.errors import PrefectApiAway
from flows.prefect_api import run_flow


class Road:
    """A way to a server that can be closed: what arrives at `url` is handed on, and back."""

    def __init__(self, server: httpx.URL) -> None:
        self._server = (server.host, server.port or 80)
        self._door = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.url = str(server.copy_with(port=self._door.getsockname()[1]))
        threading.Thread(target=self._let_in, daemon=True).start()

    def close(self) -> None:
        for end in (self._door, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _let_in(self) -> None:
        with suppress(OSError):
            while True:
                here, there = self._door.accept()[0], socket.create_connection(self._server)
                self._ends += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=_hand_on, args=pair, daemon=True).start()


def _hand_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)


@pytest.fixture
def road(prefect_api: str) -> Iterator[Road]:
    """The way to the tests' Prefect API, which its client takes; a refused call is not repeated."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    road = Road(httpx.URL(prefect_api))
    with temporary_settings({PREFECT_API_URL: road.url, PREFECT_CLIENT_MAX_RETRIES: 0}):
        yield road
    road.close()


def test_a_prefect_api_that_goes_away_is_one_line(road: Road) -> None:
    from prefect import flow

    work = []

    @flow
    def run(what: str) -> None:
        road.close()
        work.append(what)

    with pytest.raises(PrefectApiAway, match=r"what was finished is stored, run the same"):
        run_flow(run, "done")
    assert work == ["done"]


def test_a_run_whose_prefect_api_stays_ends_in_its_state(road: Road) -> None:
    from prefect import flow

    @flow
    def run() -> int:
        return 5

    assert run_flow(run).result() == 5
