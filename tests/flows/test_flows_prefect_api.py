"""Runs whose Prefect API goes away."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx
import pytest


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
    """A way to the tests' Prefect API."""
    road = Road(httpx.URL(prefect_api))
    yield road
    road.close()


RUN = """
import sys
from prefect import flow
from flows.errors import PrefectApiAway
from flows.prefect_api import run_flow

@flow
def run():
    print("at work", flush=True)
    sys.stdin.readline()
    print("worked")
    return 5

try:
    print(run_flow(run).result())
except PrefectApiAway as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("closed", "said"), [(True, "the Prefect API went away during the run; "), (False, "5")]
)
def test_a_prefect_api_that_goes_away_during_a_run_is_one_line(
    road: Road, closed: bool, said: str
) -> None:
    # In a process of its own: Prefect's threads would go on trying the closed way in this one.
    client = {"PREFECT_API_URL": road.url, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", RUN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | client,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        if closed:
            road.close()
        lines = process.communicate("\n", timeout=240)[0].splitlines()
    assert lines[0] == "worked"
    assert lines[1].startswith(said)
    assert len(lines) == 2
