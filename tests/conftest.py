"""One embedded Postgres and one Prefect API for each process; a fresh database for each test."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
import yaml
from hypothesis import settings
from PIL import Image
from sqlalchemy import URL, Engine

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"

_numbers = count()

# How long an example takes depends on what else the machine does.
settings.register_profile("patchstore", deadline=None)
settings.load_profile("patchstore")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of the run's own: nothing of the developer's store is read or written."""
    folder = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("PATCHSTORE_", "PREFECT_"))]:
        del os.environ[name]
    os.environ["PATCHSTORE_HOME"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[str]:
    """The admin URL of the embedded Postgres of this run."""
    from db.server import _embedded

    postgres = _embedded(home / "postgres")
    # Half of the time would be waiting for the disk, at every CREATE DATABASE.
    execute(postgres.get_uri(), "ALTER SYSTEM SET fsync = off")
    execute(postgres.get_uri(), "SELECT pg_reload_conf()")
    yield postgres.get_uri()
    postgres.stop()


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """The name of a migrated database to clone."""
    from db.migrate import upgrade

    name = "template_patchstore"
    execute(server, f"CREATE DATABASE {name}")
    upgrade(url_of(server, name))
    return name


@pytest.fixture
def database(server: str, template: str) -> Iterator[URL]:
    """A fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield url_of(server, name)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def empty_database(server: str) -> Iterator[URL]:
    """A fresh database with nothing in it."""
    name = f"test_{next(_numbers)}"
    execute(server, f"CREATE DATABASE {name}")
    yield url_of(server, name)
    execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database: URL) -> Iterator[Engine]:
    """An engine on a fresh, migrated database."""
    from db.engine import make_engine

    engine = make_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and weights; tests that need it skip where it is not."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real pictures and weights is not beside this checkout")
    return SHARED


def execute(url: str, statement: str) -> None:
    """Runs one statement outside a transaction."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def url_of(server: str, name: str) -> URL:
    """The URL of a database on the run's server."""
    from db.engine import parse_url

    return parse_url(server).set(database=name)


@pytest.fixture(scope="session")
def prefect_api(home: Path) -> Iterator[str]:
    """The URL of this run's Prefect API. Prefect reads its settings on import: import it after."""
    from flows import environment, local_server

    server = environment.prepare(home)
    assert server is not None
    server.wait()
    yield server.api_url
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    local_server.stop(environment.prefect_home(home))


@pytest.fixture
def store(database: URL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """A fresh database as the process's own store, as flows and commands see it."""
    from db.server import connect

    plain = database.set(drivername="postgresql").render_as_string(hide_password=False)
    monkeypatch.setenv("PATCHSTORE_DATABASE_URL", plain)
    connect.cache_clear()
    engine = connect()
    yield engine
    engine.dispose()
    connect.cache_clear()


class Bucket:
    """A bucket of an S3 server on this machine.

    Attributes:
        url: `s3://NAME`.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client, self._name = client, name
        self.url = f"s3://{name}"
        client.create_bucket(Bucket=name)

    def put(self, key: str, content: bytes) -> str:
        """Writes an object; returns its URL."""
        self._client.put_object(Bucket=self._name, Key=key, Body=content)
        return f"{self.url}/{key}"

    def delete(self, key: str) -> None:
        """Deletes an object."""
        self._client.delete_object(Bucket=self._name, Key=key)


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A client of an S3 server, which the environment tells everybody of."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "tests")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield boto3.client("s3")
    server.stop()


@pytest.fixture
def bucket(s3: Any) -> Bucket:
    """An empty bucket."""
    return Bucket(s3, f"bucket-{next(_numbers)}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for pictures."""
    path = tmp_path / "pictures"
    path.mkdir()
    return path


Paint = Callable[..., Path]


@pytest.fixture
def paint(folder: Path) -> Paint:
    """Writes a picture of seeded noise, 96 x 80 unless told, into `folder`."""

    def write(name: str, seed: int = 0, size: tuple[int, int] = (96, 80)) -> Path:
        width, height = size
        pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """`docker-compose.yml` as Compose reads it where none of its variables is set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    document: dict[str, Any] = yaml.safe_load(text)
    return document
