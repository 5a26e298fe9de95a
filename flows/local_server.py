"""A Prefect API for people who have none: one small server for each home, shared by its commands.

Prefect's own temporary server belongs to one process: it costs seconds at every start, loses the
last task records at every exit, and outlives a killed command for ever. This one is started by the
first command, used by all, and leaves by itself once no command has run for a while. Each command
holds a shared lock on a file, which the kernel drops however the command ends.

Production has a server of its own: with `PREFECT_API_URL` set nothing here runs.
"""

import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from .errors import FlowError

MODULE = "flows.local_server"
LINGER_S = 120.0
POLL_S = 2.0
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
EXEC_TRIES = 25

_in_use: dict[Path, int] = {}  # file descriptors, held open, and so locked, until this process ends


class LocalServer:
    """The server of one home, running or about to be."""

    def __init__(self, folder: Path, port: int) -> None:
        """`folder` is Prefect's home."""
        self._folder = folder
        self._port = port

    @property
    def api_url(self) -> str:
        """What `PREFECT_API_URL` must be."""
        return f"http://127.0.0.1:{self._port}/api"

    @property
    def ui_url(self) -> str:
        """Where a person looks."""
        return f"http://127.0.0.1:{self._port}"

    def is_healthy(self) -> bool:
        """Whether it answers."""
        try:
            with urlopen(f"{self.api_url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def wait(self) -> None:
        """Waits until it answers. Raises FlowError, naming its log."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_healthy():
            pid = _read(self._folder).get("pid")
            if time.monotonic() > deadline or not _is_alive(pid, self._folder):
                raise FlowError(
                    f"the local Prefect server did not start; see {self._folder / 'server.log'}, "
                    "or set PREFECT_API_URL to a server of your own"
                )
            time.sleep(0.05)


def use(folder: Path) -> None:
    """Notes until this process ends that it needs the servers of this home."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder not in _in_use:
        _in_use[folder] = os.open(folder / "in-use.lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(_in_use[folder], fcntl.LOCK_SH)


def ensure(folder: Path) -> LocalServer:
    """Finds the home's server or starts one; returns at once, `LocalServer.wait` waits for it."""
    use(folder)
    with _exclusively(folder / "server.lock"):
        known = _read(folder)
        if _is_alive(known.get("pid"), folder):
            return LocalServer(folder, known["port"])
        # It is handed over listening: another program might take a port that is free until then.
        listener = socket.create_server(("127.0.0.1", 0))
        port, handed = listener.getsockname()[1], listener.fileno()
        with listener, (folder / "server.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(folder), str(handed)],
                pass_fds=[handed],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C stops the command, not everybody's server
                env=os.environ | _settings(LocalServer(folder, port)),
            )
        process.returncode = 0  # it outlives this process on purpose: nobody waits for it
        (folder / "server.json").write_text(json.dumps({"pid": process.pid, "port": port}))
    return LocalServer(folder, port)


def stop(folder: Path) -> bool:
    """Stops the home's server, and waits until it is gone; False if none was running.

    Whoever wants one meanwhile waits, too, and starts a new one.
    """
    if not folder.is_dir():
        return False
    with _exclusively(folder / "server.lock"):
        pid = _read(folder).get("pid")
        if not _is_alive(pid, folder):
            return False
        with suppress(ProcessLookupError):
            os.kill(int(pid or 0), signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while _is_alive(pid, folder) and time.monotonic() < deadline:
            time.sleep(0.05)
        (folder / "server.json").unlink(missing_ok=True)
    return True


def serve(folder: Path, listener: socket.socket) -> None:
    """Runs the server in this process until nobody has used it for a while."""
    import uvicorn

    gc.set_threshold(50_000)  # by default a fifth of the start is a search for garbage
    os.nice(10)  # it keeps records; the forward pass that it records goes first
    threading.Thread(target=_leave_when_idle, args=(folder,), daemon=True).start()
    config = uvicorn.Config(
        "prefect.server.api.server:create_app",
        factory=True,
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run([listener])


def _leave_when_idle(folder: Path) -> None:
    used_at = time.monotonic()
    while True:
        time.sleep(POLL_S)
        try:
            if is_in_use(folder):
                used_at = time.monotonic()
            elif time.monotonic() - used_at >= LINGER_S and _resigned(folder):
                break
        except OSError:
            break  # the home is gone
    os.kill(os.getpid(), signal.SIGTERM)


def _resigned(folder: Path) -> bool:
    """Whether the next command will start a server of its own: none has just begun to use this."""
    with _exclusively(folder / "server.lock"):
        if is_in_use(folder):
            return False
        (folder / "server.json").unlink(missing_ok=True)
    return True


def is_in_use(folder: Path) -> bool:
    """Whether a command runs that needs the servers of this home, which exists."""
    with (folder / "in-use.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _settings(server: LocalServer) -> dict[str, str]:
    return {
        # In memory, the place of a run that was on its way when the server ended stays taken.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": (
            "prefect.server.concurrency.lease_storage.filesystem"
        ),
        # By default runs are kept for ever; so they are for 90 days.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_UI_API_URL": server.api_url,
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


@contextmanager
def _exclusively(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(folder: Path) -> dict[str, int]:
    try:
        known: dict[str, int] = json.loads((folder / "server.json").read_text())
    except (OSError, ValueError):
        return {}
    return known


def _is_alive(pid: int | None, folder: Path) -> bool:
    """Whether that process is still this folder's server: numbers are given out again."""
    if pid is None:
        return False
    for _ in range(EXEC_TRIES):
        with suppress(ChildProcessError):  # a server of our own that died is a zombie until asked
            os.waitpid(pid, os.WNOHANG)
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # the latter if it goes as it is read
            return Path("/proc").is_dir() is False and _answers_signal(pid)
        if command:
            return {MODULE.encode(), os.fsencode(folder)} <= set(command.split(b"\0"))
        # Empty while the kernel puts the new program in its place, and from the moment that it
        # begins to end one: only then a zombie, which stays so.
        time.sleep(0.02)
    return False


def _answers_signal(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
