"""One running service over a store of real files, asked over a real socket."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psycopg
import pytest
from PIL import Image
from sqlalchemy import Engine

from db.catalog import SeenFile, open_source, record_files, start_scan
from db.engine import make_engine, parse_url
from db.ledger import LeaseLimits, finish_run, lease_batch, start_run
from db.specs import StoredSpec
from db.writer import ImagePatches, replace_patches
from extractor.arrays import DecodedImage, PatchFeatures
from extractor.backbone import ResolvedSpec, load_backbone, resolve
from extractor.features import FeatureExtractor
from extractor.grid import spec_grid
from extractor.images import read_image, read_size
from extractor.spec import Recipe
from patchstore.api.app import create_app
from patchstore.api.server import make_server
from patchstore.api.settings import ServeSettings
from patchstore.cli.serve import listen
from patchstore.store import register

RECIPE = Recipe(backbone="squeezenet1_1", weights="random:0", patch_size=48, stride=24)


@dataclass
class Shelf:
    """A store with pictures of seeded noise in it, each of 96 x 80 pixels: 9 patches.

    Attributes:
        ids: each picture's image id by its name.
    """

    engine: Engine
    folder: Path
    spec: StoredSpec
    ids: dict[str, int] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.folder / name

    def content(self, name: str) -> bytes:
        return self.path(name).read_bytes()


def paint(path: Path, seed: int, size: tuple[int, int] = (96, 80)) -> Path:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def ingest(shelf: Shelf, resolved: ResolvedSpec, files: list[Path]) -> None:
    """Stores real vectors of these files, as a run would."""
    source, started = open_source(shelf.engine, str(shelf.folder)), start_scan(shelf.engine)
    seen = []
    for path in files:
        content, (width, height) = path.read_bytes(), read_size(path)
        digest = hashlib.sha256(content).digest()
        seen.append(SeenFile(str(path), len(content), "mark", digest, width, height))
    record_files(shelf.engine, source, shelf.spec, seen, started)
    backbone = load_backbone(resolved.spec, resolved.weights_source)
    extractor = FeatureExtractor(resolved.spec, backbone, device="cpu")
    run = start_run(shelf.engine, source, shelf.spec)
    for lease in lease_batch(shelf.engine, shelf.spec, source, run, LeaseLimits(99, 10**9, 60.0)):
        pixels = read_image(Path(lease.uri))
        grid = spec_grid(resolved.spec, pixels.shape[1], pixels.shape[0])
        (result,) = extractor.extract([DecodedImage(pixels, grid)])
        assert isinstance(result, PatchFeatures)
        patches = ImagePatches(lease, result.boxes, result.scales, result.vectors)
        replace_patches(shelf.engine, shelf.spec, [patches])
        shelf.ids[Path(lease.uri).name] = lease.image_id
    finish_run(shelf.engine, run, "completed", None)


@contextmanager
def fresh_shelf(server: str, template: str, folder: Path, name: str) -> Iterator[Shelf]:
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    engine = make_engine(parse_url(server).set(database=name))
    resolved = resolve(RECIPE)
    shelf = Shelf(engine, folder, register(engine, "tiny", resolved))
    ingest(shelf, resolved, [paint(folder / f"{n}.png", n) for n in range(4)])
    yield shelf
    engine.dispose()
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def shelf(server: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """A store that tests only ask."""
    with fresh_shelf(server, template, tmp_path_factory.mktemp("shelf"), "api_shelf") as shelf:
        yield shelf


@pytest.fixture(scope="module")
def module_shelf(
    server: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shelf]:
    """A store that the tests of one file may change."""
    with fresh_shelf(server, template, tmp_path_factory.mktemp("own"), "api_module_shelf") as shelf:
        yield shelf


@pytest.fixture
def own_shelf(server: str, template: str, tmp_path: Path) -> Iterator[Shelf]:
    """A store that one test may change."""
    with fresh_shelf(server, template, tmp_path, "api_own_shelf") as shelf:
        yield shelf


@pytest.fixture
def allow(own_shelf: Shelf, server: str) -> Callable[[bool], None]:
    """Lets nobody into the database of `own_shelf`, and throws out who is in; or in again."""
    name = own_shelf.engine.url.database

    def set_allowed(yes: bool) -> None:
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {yes}")
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,)
            )

    return set_allowed


@contextmanager
def serving(engine: Engine, settings: ServeSettings | None = None) -> Iterator[str]:
    """The URL of a running service."""
    app = create_app(engine, settings or ServeSettings())
    listener = listen("127.0.0.1", 0)
    server = make_server(app)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
        yield url
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Polls until something holds."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.02)


Serve = Callable[..., AbstractContextManager[str]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Starts a service of a test's own: `with serve(engine, settings) as url`."""
    return serving


@pytest.fixture(name="wait_until", scope="session")
def _wait_until() -> Callable[..., None]:
    return wait_until


@pytest.fixture(scope="session")
def url(shelf: Shelf) -> Iterator[str]:
    with serving(shelf.engine) as url:
        yield url


@pytest.fixture(scope="session")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
