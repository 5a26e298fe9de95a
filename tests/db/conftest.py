"""A store that is driven like a run drives it: scan, lease, write. Vectors are seeded numpy."""

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import psycopg
import pytest
from sqlalchemy import URL, Connection, Engine, text

from db import catalog, ledger, reports, writer
from db.catalog import ScanCounts, SeenFile
from db.engine import driver_connection, make_engine, parse_url
from db.ledger import Lease, LeaseLimits
from db.specs import NewSpec, StoredSpec, add_spec

ROOT = "file:///pictures"
DIM = 4


# What `refresh_visibility` keeps, said in another way: read from the files.
EXPECTED_VISIBLE = """
SELECT e.spec_id, e.image_id FROM patchstore.extraction e WHERE e.state = 'done' AND EXISTS (
    SELECT FROM patchstore.image_location l
      LEFT JOIN patchstore.extraction n ON n.spec_id = e.spec_id AND n.image_id = l.image_id
     WHERE l.vanished_at IS NULL AND (l.image_id = e.image_id OR (
           l.previous_image_id = e.image_id
           AND (n.state IS NULL OR n.state IN ('pending', 'leased')
                OR n.error LIKE 'cannot be read: %'))))
ORDER BY 1, 2
"""


_numbers = itertools.count()


@pytest.fixture
def owner(server: str, empty_database: URL) -> Iterator[URL]:
    """A role that owns the database and may nothing else; the URL of the database as that role."""
    name = f"owner_{next(_numbers)}"
    database = empty_database.database
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEROLE NOCREATEDB")
        admin.execute(f"ALTER DATABASE {database} OWNER TO {name}")
        yield empty_database.set(username=name)
        admin.execute(f"ALTER DATABASE {database} OWNER TO CURRENT_USER")
        whole = empty_database.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(whole, autocommit=True) as inside:
            inside.execute(f"DROP OWNED BY {name} CASCADE")
        admin.execute(f"DROP ROLE {name}")


class Store:
    """What an ingest run does to a database, with contents and vectors given by hand."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def spec(self, name: str = "tiny", dim: int = DIM, metric: str = "cosine") -> StoredSpec:
        recipe = {"name": name, "dim": dim, "metric": metric}
        digest = hashlib.sha256(repr(recipe).encode()).hexdigest()
        return add_spec(self.engine, NewSpec(name, digest, recipe, dim, metric, "nowhere"))

    def source(self, root: str = ROOT) -> int:
        return catalog.open_source(self.engine, root)

    def scan(
        self,
        spec: StoredSpec,
        files: Mapping[str, str | None],
        *,
        root: str = ROOT,
        complete: bool = True,
        touched: bool = False,
    ) -> ScanCounts:
        """Sees these contents under these URIs; None is a file that cannot be read.

        `touched`: every file has a new mark, so that its content is read again.
        """
        source, started = self.source(root), catalog.start_scan(self.engine)
        known = catalog.known_files(self.engine, source, list(files))
        same = [
            uri
            for uri, content in files.items()
            if not touched and uri in known and known[uri] == as_known(content)
        ]
        catalog.touch_unchanged(self.engine, source, same, started)
        seen = [seen_file(uri, content) for uri, content in files.items() if uri not in same]
        counts = catalog.record_files(self.engine, source, spec, seen, started)
        counts.found += len(same)
        counts.unchanged += len(same)
        counts.vanished = catalog.finish_scan(self.engine, source, spec, started, complete=complete)
        return counts

    def run(self, spec: StoredSpec, root: str = ROOT) -> int:
        return ledger.start_run(self.engine, self.source(root), spec)

    def lease(
        self,
        spec: StoredSpec,
        run: int | None = None,
        *,
        images: int = 1_000,
        pixels: int = 10**12,
        term_s: float = 600.0,
        root: str = ROOT,
    ) -> list[Lease]:
        run = self.run(spec, root) if run is None else run
        limits = LeaseLimits(images, pixels, term_s)
        return ledger.lease_batch(self.engine, spec, self.source(root), run, limits)

    def write(
        self, spec: StoredSpec, lease: Lease, vectors: np.ndarray | None = None
    ) -> list[Lease]:
        """Writes one image; returns its lease where it was lost."""
        return writer.replace_patches(self.engine, spec, [result(spec, lease, vectors)])

    def write_all(self, spec: StoredSpec, leases: Sequence[Lease]) -> list[Lease]:
        """Writes images in one transaction; returns the leases that were lost."""
        results = [result(spec, lease) for lease in leases]
        return writer.replace_patches(self.engine, spec, results)

    def ingest(
        self, spec: StoredSpec, files: Mapping[str, str | None], *, root: str = ROOT
    ) -> ScanCounts:
        """A whole run: every pending image gets vectors seeded by its content."""
        counts = self.scan(spec, files, root=root)
        for lease in self.lease(spec, root=root):
            self.write(spec, lease, content_vectors(lease.sha256, spec.dim))
        return counts

    def load(
        self, spec: StoredSpec, images: Mapping[str, np.ndarray], *, root: str = ROOT
    ) -> dict[str, int]:
        """Stores these vectors for these URIs; returns each URI's image id."""
        self.scan(spec, {uri: uri for uri in images}, root=root)
        ids = {}
        for lease in self.lease(spec, root=root):
            self.write(spec, lease, images[lease.uri])
            ids[lease.uri] = lease.image_id
        return ids

    @staticmethod
    def vectors(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
        """Seeded unit vectors, float32 (n, dim)."""
        return random_vectors(n, dim, seed)

    @staticmethod
    def boxes(n: int) -> tuple[np.ndarray, np.ndarray]:
        """A row of boxes, int32 (n, 4), and their scales, float32 (n,)."""
        return row_of_boxes(n)

    @staticmethod
    def content(name: str, dim: int = DIM) -> np.ndarray:
        """The vectors that `ingest` stores for a content."""
        return content_vectors(digest(name), dim)

    def shown(self, spec: StoredSpec) -> set[str]:
        """The URIs that searches can find."""
        return {uri for rows in reports.patch_matrix(self.engine, spec) for uri in rows.uris}

    def visible(self) -> list[tuple]:
        """Specs and images that searches show, by the ledger."""
        return self.sql(
            "SELECT spec_id, image_id FROM patchstore.extraction WHERE visible ORDER BY 1, 2"
        )

    def expected_visible(self) -> list[tuple]:
        """The same, by what the files say."""
        return self.sql(EXPECTED_VISIBLE)

    def shown_vectors(self, spec: StoredSpec) -> np.ndarray:
        return np.concatenate([rows.vectors for rows in reports.patch_matrix(self.engine, spec)])

    def status(self, spec: StoredSpec) -> reports.SourceStatus:
        (status,) = reports.status(self.engine, spec=spec.name)
        return status

    def sql(self, statement: str, **values: object) -> list[tuple]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return [tuple(row) for row in result] if result.returns_rows else []

    def scalar(self, statement: str, **values: object):
        return self.sql(statement, **values)[0][0]

    @contextmanager
    def alive(self, run: int) -> Iterator[Connection]:
        """The connection of a process that lives; closing it is that process's death."""
        with self.engine.connect() as connection:
            ledger.show_alive(connection, run)
            pid = driver_connection(connection).info.backend_pid
            try:
                yield connection
            finally:
                connection.invalidate()
        # The server notices a moment later.
        while self.scalar("SELECT count(*) FROM pg_stat_activity WHERE pid = :pid", pid=pid):
            time.sleep(0.01)


def mark(content: str | None) -> str:
    return f"mark of {content}"


def as_known(content: str | None) -> catalog.KnownFile:
    return catalog.KnownFile(mark(content), readable=True, vanished=False)


def digest(content: str) -> bytes:
    return hashlib.sha256(content.encode()).digest()


def seen_file(uri: str, content: str | None, width: int = 10, height: int = 10) -> SeenFile:
    if content is None:
        return SeenFile(uri, 0, mark(content), None, error="cannot be read: no permission")
    return SeenFile(uri, len(content), mark(content), digest(content), width, height)


def random_vectors(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def content_vectors(sha256: bytes, dim: int = DIM) -> np.ndarray:
    return random_vectors(3, dim, int.from_bytes(sha256[:4], "big"))


def result(
    spec: StoredSpec, lease: Lease, vectors: np.ndarray | None = None
) -> writer.ImagePatches:
    vectors = random_vectors(3, spec.dim, lease.image_id) if vectors is None else vectors
    return writer.ImagePatches(lease, *row_of_boxes(len(vectors)), vectors)


def row_of_boxes(n: int) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.array([(8 * i, 0, 8, 8) for i in range(n)], dtype=np.int32).reshape(n, 4)
    return boxes, np.ones(n, dtype=np.float32)


@pytest.fixture
def store(engine: Engine) -> Store:
    return Store(engine)


@pytest.fixture
def admin(database: URL) -> Iterator[psycopg.Connection]:
    """A superuser's second connection to the test's database, in autocommit."""
    with psycopg.connect(as_dsn(database), autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def module_store(server: str, template: str, request: pytest.FixtureRequest) -> Iterator[Store]:
    """One store for all the questions of a file: they change nothing."""
    name = f"module_{request.module.__name__.rpartition('.')[2]}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    engine = make_engine(parse_url(server).set(database=name))
    yield Store(engine)
    engine.dispose()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def as_dsn(url: URL) -> str:
    """The URL as psycopg wants it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)
