"""The embedded server, before it is started."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import psycopg
import pytest

import db.server
from db.errors import ConfigurationError, TransientStoreError
from db.server import (
    FolderLock,
    _create_database,
    _embedded,
    _forget_dead,
    _start_embedded,
    is_in_use,
)
from db.settings import StoreSettings


def test_a_home_with_a_space_in_its_path_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"a space in its path.*PATCHSTORE_HOME"):
        _start_embedded(tmp_path / "my home")


def test_a_home_whose_socket_would_lie_in_a_folder_of_everybodys_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"so long a path.*PATCHSTORE_HOME"):
        _start_embedded(tmp_path / ("long" * 25))


def test_who_starts_it_locks_the_home_and_not_a_file_of_the_machine(server, home):
    running = _embedded(home / "postgres")
    assert running._lock.folder == home


def test_whose_store_is_in_it_uses_it_until_they_end(server, home):
    settings = StoreSettings(home=home)
    assert not is_in_use(StoreSettings(home=home / "nowhere"))
    assert not is_in_use(settings)
    user = subprocess.Popen(
        [sys.executable, "-c", f"{start_in(home)}; print(); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    user.stdout.readline()
    assert is_in_use(settings)
    user.communicate()
    assert not is_in_use(settings)


def test_who_locks_a_folder_has_it_alone_and_leaves_nothing_in_it(tmp_path):
    other = os.open(tmp_path, os.O_RDONLY)
    with FolderLock(tmp_path), pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stranger():
    """A process that is no Postgres."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.communicate()


def test_a_number_that_another_process_has_now_is_no_server(tmp_path, stranger):
    left = tmp_path / "postgres" / "postmaster.pid"
    left.parent.mkdir()
    left.write_text(f"{stranger.pid}\n{left.parent}\n1700000000\n5432\n/tmp\n\n1 2\nready\n")
    assert db.server.stop_embedded(StoreSettings(home=tmp_path)) is False
    assert stranger.poll() is None
    assert not left.exists()


def test_the_lock_of_a_killed_servers_socket_keeps_no_other_from_starting(tmp_path_factory):
    home = tmp_path_factory.mktemp("h")
    assert _start_embedded(home)
    number = int((home / "postgres" / "postmaster.pid").read_text().partition("\n")[0])
    psutil.Process(number).kill()
    psutil.wait_procs([psutil.Process(number)] if psutil.pid_exists(number) else [], timeout=30)
    # The server of root is another user's, and Postgres asks only about that user's processes.
    user = None if os.geteuid() else "pgserver"
    with subprocess.Popen(["sleep", "600"], user=user) as stranger:
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            left = home / "postgres" / name
            left.write_text(left.read_text().replace(str(number), str(stranger.pid)))
        told = url_of(home)
        stranger.kill()
    assert told.returncode == 0, told.stderr
    assert "Postgres: stopped" in command(home, "stop", "--force").stderr


def start_in(home):
    """The code of a process that has its store there."""
    return (
        "from pathlib import Path; from db.server import _start_embedded; "
        f"_start_embedded(Path({str(home)!r}))"
    )


def url_of(home):
    """`patchstore db url`, in a process of its own."""
    return command(home, "db", "url")


def command(home, *words):
    own = {**os.environ, "PATCHSTORE_HOME": str(home)}
    line = [sys.executable, "-m", "patchstore", *words]
    return subprocess.run(line, env=own, capture_output=True, text=True)


@pytest.mark.parametrize("torn", ["", "\n", "12", "four"])
def test_what_a_lost_machine_left_half_written_is_forgotten(tmp_path, torn):
    left = tmp_path / "postgres" / "postmaster.pid"
    left.parent.mkdir()
    left.write_text(torn.replace("12", str(2**22 - 1)))
    _forget_dead(left.parent)
    assert not left.exists()


def test_a_first_command_that_is_killed_leaves_a_home_in_which_the_next_one_starts(
    tmp_path_factory,
):
    home = tmp_path_factory.mktemp("killed")
    home.chmod(0o700)
    first = subprocess.Popen([sys.executable, "-c", start_in(home)], start_new_session=True)
    while not list(home.glob("postgres*/PG_VERSION")):  # of which initdb writes more for seconds
        assert first.poll() is None
        time.sleep(0.001)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    server = _embedded(home / "postgres")
    try:
        with psycopg.connect(server.get_uri()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert [path.name for path in home.iterdir()] == ["postgres"]
        assert not home.stat().st_mode & 0o066  # root has let its Postgres pass, and nobody read
    finally:
        server.stop()


def test_a_server_that_runs_is_left_alone(server, home):
    _forget_dead(home / "postgres")
    assert (home / "postgres" / "postmaster.pid").exists()


def test_a_server_that_takes_no_connection_is_an_error_of_the_store(tmp_path, monkeypatch):
    away = SimpleNamespace(get_uri=lambda: f"postgresql://postgres@/postgres?host={tmp_path}")
    monkeypatch.setattr(db.server, "_embedded", lambda _pgdata: away)
    (tmp_path / "home" / "postgres").mkdir(parents=True)
    with pytest.raises(TransientStoreError):
        _start_embedded(tmp_path / "home")


def test_a_server_that_recovers_from_a_crash_is_waited_for(server, monkeypatch):
    connect, tries = psycopg.connect, []

    def recovering(*arguments, **options):
        tries.append(1)
        if len(tries) < 3:
            raise psycopg.OperationalError("FATAL:  the database system is in recovery mode")
        return connect(*arguments, **options)

    monkeypatch.setattr(db.server.psycopg, "connect", recovering)
    _create_database(server)
    assert len(tries) == 3


STARTING = "123\n{folder}\n1700000000\n5432\n{folder}\n\n1 2\n{state}\n"


@pytest.mark.parametrize("ends", ["ready   ", None])
def test_a_server_that_still_starts_is_waited_for(tmp_path, monkeypatch, ends):
    pid = tmp_path / "postmaster.pid"
    pid.write_text(STARTING.format(folder=tmp_path, state="starting"))
    looks = []

    def sleep(_seconds):
        looks.append(1)
        if len(looks) == 3:
            pid.write_text(STARTING.format(folder=tmp_path, state=ends)) if ends else pid.unlink()

    monkeypatch.setattr(db.server.time, "sleep", sleep)
    db.server._wait_while_it_starts(tmp_path)
    assert len(looks) == 3


def test_a_server_that_recovers_for_long_is_said_to(tmp_path, monkeypatch):
    (tmp_path / "postmaster.pid").write_text(STARTING.format(folder=tmp_path, state="starting"))
    monkeypatch.setattr(db.server, "RECOVERY_S", 0)
    with pytest.raises(ConfigurationError, match="still recovering from a crash; try again"):
        db.server._wait_while_it_starts(tmp_path)
