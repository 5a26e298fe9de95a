"""Services as processes of their own, over a benchmark's home: ours, and the least there can be."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from patchstore.bench.home import COMMAND, environment


@dataclass(frozen=True)
class Service:
    """A running service: its URL, its process, and the file that its log goes to."""

    url: str
    pid: int
    log: Path


@contextmanager
def running_service(home: Path, **settings: str) -> Iterator[Service]:
    """A service that is ready, network included; stopped afterwards.

    Args:
        home: of the store.
        settings: further environment variables.
    """
    with _running(home, "serve", COMMAND, "serve", "--port", "0", **settings) as service:
        while httpx.get(f"{service.url}/readyz").status_code != 200:
            time.sleep(0.1)
        yield service


@contextmanager
def least_service(home: Path, url: str) -> Iterator[Service]:
    """What is in `search_least`, over the store of a home by its URL."""
    # Not with its folder on the path, whose copy.py is not the one that others import.
    command = (sys.executable, "-P", Path(__file__).with_name("search_least.py"), url)
    with _running(home, "least", *command) as service:
        yield service


@contextmanager
def _running(home: Path, name: str, *command: str | Path, **settings: str) -> Iterator[Service]:
    log = home / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            env={**environment(home), **settings},
            cwd=home,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Service(_wait_for_url(log, process), process.pid, log)
    finally:
        process.terminate()
        process.wait()


def _wait_for_url(log: Path, process: "subprocess.Popen[bytes]") -> str:
    while process.poll() is None:
        if found := re.search(r"http://\S+", log.read_text()):
            url = found[0]
            try:
                httpx.get(f"{url}/healthz")
            except httpx.TransportError:
                pass
            else:
                return url
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} ended with {process.returncode}:\n{log.read_text()}")
