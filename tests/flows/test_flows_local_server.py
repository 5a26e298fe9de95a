"""One small Prefect server for each home."""

import os
import signal
import subprocess
import sys
import time
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import environment, local_server


@pytest.fixture
def idle_server(tmp_path: Path) -> Path:
    """A home whose stand-in server (no Prefect, so that it starts at once) leaves when idle."""
    folder = tmp_path / "prefect"
    folder.mkdir()
    return folder


def wait_for(condition: object, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_two_commands_share_one_server(prefect_api: str, home: Path) -> None:
    again = local_server.ensure(environment.prefect_home(home))
    assert again.api_url == prefect_api
    assert again.is_healthy()


def test_a_configured_api_is_used_and_none_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PATCHSTORE_DATABASE_URL", "postgresql://db.example/store")
    assert environment.prepare(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_postgres_is_in_use_whose_prefect_ever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.delenv("PATCHSTORE_DATABASE_URL", raising=False)
    assert environment.prepare(tmp_path) is None
    folder = environment.prefect_home(tmp_path)
    assert local_server.is_in_use(folder)
    assert not (folder / "server.json").exists()
    os.close(local_server._in_use.pop(folder))
    assert not local_server.is_in_use(folder)


WATCHER = """
import sys, threading
from itertools import chain, repeat
from pathlib import Path
from flows import local_server
local_server.LINGER_S = local_server.POLL_S = 0.2
print("up", flush=True)
local_server._leave_when_idle(Path(sys.argv[1]))
"""

USER = """
import sys, fcntl
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_SH)
print("up", flush=True)
sys.stdin.read()
"""


def start(code: str, argument: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(argument), local_server.MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_the_server_stays_while_a_command_runs_and_leaves_after_a_killed_one(
    idle_server: Path,
) -> None:
    user = start(USER, idle_server / "in-use.lock")
    watcher = start(WATCHER, idle_server)
    assert not wait_for(lambda: watcher.poll() is not None, seconds=1.0)
    os.kill(user.pid, signal.SIGKILL)
    assert wait_for(lambda: watcher.poll() is not None)
    assert watcher.returncode == -signal.SIGTERM
    for process in (user, watcher):
        process.communicate()


def test_a_number_that_another_process_has_now_is_not_our_server(idle_server: Path) -> None:
    (idle_server / "server.json").write_text(f'{{"pid": {os.getpid()}, "port": 1}}')
    assert local_server.stop(idle_server) is False


def test_another_homes_server_that_has_the_number_now_is_not_ours(
    idle_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = f"python\0-m\0{local_server.MODULE}\0/home/theirs\0".encode()
    monkeypatch.setattr(Path, "read_bytes", lambda _path: theirs)
    assert local_server._is_alive(os.getpid(), Path("/home/theirs")) is True
    assert local_server._is_alive(os.getpid(), idle_server) is False


@pytest.mark.parametrize(("left", "alive"), [(2, True), (10_000, False)])
def test_a_server_whose_program_is_just_being_loaded_is_alive_and_a_zombie_is_not(
    monkeypatch: pytest.MonkeyPatch, left: int, alive: bool
) -> None:
    lines = chain([b""] * left, repeat(f"python\0{local_server.MODULE}\0/home/prefect\0".encode()))
    monkeypatch.setattr(Path, "read_bytes", lambda _path: next(lines))
    monkeypatch.setattr(local_server, "time", SimpleNamespace(sleep=lambda _seconds: None))
    assert local_server._is_alive(os.getpid(), Path("/home/prefect")) is alive


def test_a_server_that_ends_while_it_is_looked_at_stays_no_zombie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    def end_it(_path: Path) -> bytes:
        monkeypatch.undo()
        server.kill()
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        return b""  # as the kernel says of a process that is about to end

    monkeypatch.setattr(Path, "read_bytes", end_it)
    assert local_server._is_alive(server.pid, Path("/home/prefect")) is False
    assert not Path(f"/proc/{server.pid}").exists()
    server.communicate()


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit()))
print("up", flush=True)  # flows.local_server
time.sleep(60)
"""


def test_stopping_a_server_waits_until_it_is_gone(idle_server: Path) -> None:
    server = start(STUBBORN, idle_server)
    (idle_server / "server.json").write_text(f'{{"pid": {server.pid}, "port": 1}}')
    assert local_server.stop(idle_server) is True
    assert not Path(f"/proc/{server.pid}").exists()
    assert local_server.stop(idle_server) is False
    server.communicate()


@pytest.mark.parametrize("given", [None, "intern.example", "127.0.0.1,intern.example"])
def test_this_machine_is_reached_by_no_proxy(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv("NO_PROXY", given)
    for _ in range(2):
        environment._reach_by_no_proxy("127.0.0.1", "localhost")
        listed = os.environ["no_proxy"].split(",")
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
        expected = {"127.0.0.1", "localhost", *(given or "localhost").split(",")}
        assert sorted(listed) == sorted(expected)
