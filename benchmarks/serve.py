"""Questions about pictures by HTTP, beside what they are made of.

Over a store of its own, with one network in float32:

- one client: a picture sent by HTTP, beside the bare forward pass of one prepared patch plus the
  SQL search of its vector; asked for: at most 1.3 times as long;
- eight clients at once: pictures answered a second, beside the forward pass of full batches; asked
  for: at least 80%.

The clients run on the same machine and share its cores with the service. So they send requests that
were made before, and then by httpx, which makes each one as it is sent. Pictures are photographs
of the folder, their shorter side brought to --side pixels.

    python -m benchmarks.serve --images FOLDER --backbone resnet18 --weights random:0
"""

import argparse
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from urllib.parse import urljoin

import httpx
import numpy as np
import psycopg
import torch
from numpy.typing import NDArray
from pgvector import Vector
from pgvector.psycopg import register_vector
from PIL import Image

from db.engine import make_engine, parse_url
from db.specs import get_spec
from extractor.allocator import keep_freed_memory
from extractor.backbone import load_backbone
from extractor.features import FeatureExtractor
from extractor.images import read_image
from extractor.network import noise as made_of_noise
from extractor.spec import FeatureSpec
from patchstore.api.settings import ServeSettings
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .clients import at_once, meet
from .lean_client import LeanClient
from .search_http import PATH
from .service import running_service

CLIENTS = 8
WARM_UP = 20
K = 10

Ask = Callable[[int], None]  # about the picture of that number
Client = Callable[[str, Sequence[bytes]], AbstractContextManager[Ask]]  # of a service's URL


def main() -> None:
    """Measures and prints."""
    arguments = _arguments()
    files = homes.image_files(arguments.images)
    uploads = [jpeg(path, arguments.side) for path in homes.spread(files, arguments.queries)]
    keep_freed_memory(large_pages=True)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, homes.spec_options(arguments))
        homes.ingest(home, sample_folder(home, homes.spread(files, arguments.stored)))
        extractor = extractor_of(url)
        batched = batched_rate(extractor, arguments.seconds)
        with running_service(home) as service:
            parts = one_client(url, service.url, extractor, uploads)
            rates = {
                how: many_clients(client, service.url, uploads, arguments.seconds)
                for how, client in {"HTTP": by_ready_bodies, "HTTP, httpx": by_httpx}.items()
            }
        again = batched_rate(extractor, arguments.seconds)
        line = machine(url)
    print(table(("one client", "median, ms", "p99, ms"), rows(parts)))
    made_of = np.median(parts["bare forward pass"] + parts["SQL search"])
    print(f"\nHTTP to its parts: {np.median(parts['picture by HTTP']) / made_of:.2f}\n")
    reference = (batched + again) / 2
    print(
        table(
            ("what", "pictures/s", "to the batched pass"),
            [
                ["forward pass, full batches, before", f"{batched:.1f}", ""],
                ["forward pass, full batches, after", f"{again:.1f}", ""],
                *(
                    [f"{CLIENTS} clients by {how}", f"{rate:.1f}", f"{rate / reference:.2f}"]
                    for how, rate in rates.items()
                ),
            ],
        )
    )
    print(f"\n{len(uploads)} pictures, shorter side {arguments.side} pixels, {arguments.backbone}")
    print(line)


def jpeg(path: Path, side: int) -> bytes:
    """A photograph, smaller, as it is sent."""
    picture = Image.fromarray(read_image(path))
    ratio = side / min(picture.size)
    size = round(picture.width * ratio), round(picture.height * ratio)
    file = io.BytesIO()
    picture.resize(size).save(file, "JPEG", quality=90)
    return file.getvalue()


def sample_folder(home: Path, files: Sequence[Path]) -> Path:
    """A folder with links to these files."""
    folder = home / "pictures"
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number:05}{file.suffix}").symlink_to(file)
    return folder


def extractor_of(url: str) -> FeatureExtractor:
    """The network of the store's spec, as the service has it."""
    engine = make_engine(parse_url(url))
    stored = get_spec(engine, homes.SPEC)
    engine.dispose()
    recipe = FeatureSpec.model_validate(stored.recipe)
    backbone = load_backbone(recipe, stored.weights_source)
    batch_size = ServeSettings().api_batch_size
    return FeatureExtractor(recipe, backbone, batch_size=batch_size, small_passes=True)


def noise(extractor: FeatureExtractor, patches: int) -> torch.Tensor:
    """Prepared patches, float32 (N, 3, S, S), channels last."""
    return made_of_noise(patches, extractor.spec.side).to(extractor.device)


def batched_rate(extractor: FeatureExtractor, seconds: float) -> float:
    """Patches a second of the bare forward pass in full batches."""
    batch = noise(extractor, extractor.batch_size)
    for _ in range(3):
        extractor.forward(batch)
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        extractor.forward(batch).cpu()
        done += len(batch)
    return done / (time.perf_counter() - begun)


def one_client(
    url: str, service: str, extractor: FeatureExtractor, uploads: Sequence[bytes]
) -> dict[str, NDArray[np.float64]]:
    """Milliseconds of each part and of the whole, question by question, in turns."""
    patch = noise(extractor, 1)
    vector = Vector(extractor.forward(patch)[0].cpu().numpy())
    found: dict[str, list[float]] = {
        name: []
        for name in ("bare forward pass", "SQL search", "picture by HTTP", "picture by HTTP, httpx")
    }
    with (
        psycopg.connect(url, autocommit=True) as connection,
        by_ready_bodies(service, uploads) as ask_about,
        by_httpx(service, uploads) as ask_by_httpx,
    ):
        register_vector(connection)
        for number in [*range(min(WARM_UP, len(uploads))), *range(len(uploads))]:
            begun = time.perf_counter()
            extractor.forward(patch).cpu()
            computed = time.perf_counter()
            connection.execute(
                "SELECT * FROM patchstore.similar_patches(%s, %s, %s)",
                (homes.SPEC, vector, K),
                binary=True,
            ).fetchall()
            searched = time.perf_counter()
            ask_about(number)
            asked = time.perf_counter()
            ask_by_httpx(number)
            moments = (begun, computed, searched, asked, time.perf_counter())
            for name, (start, end) in zip(found, pairwise(moments), strict=True):
                found[name].append(1000 * (end - start))
    return {name: np.array(values[WARM_UP:]) for name, values in found.items()}


def ask(client: httpx.Client, upload: bytes) -> None:
    """One picture by HTTP."""
    answer = client.send(request(str(client.base_url), upload))
    check(answer.raise_for_status().content)


def request(service: str, upload: bytes) -> httpx.Request:
    """The question about a picture."""
    files, options = {"image": ("a.jpg", upload)}, {"k": str(K)}
    return httpx.Request("POST", urljoin(service, PATH), files=files, data=options)


def check(answer: bytes) -> None:
    """Raises RuntimeError unless as many hits came as were asked for."""
    if len(json.loads(answer)["hits"]) != K:
        raise RuntimeError(repr(answer[:300]))


def many_clients(client: Client, service: str, uploads: Sequence[bytes], seconds: float) -> float:
    """Pictures answered a second while all clients ask."""
    tasks = [(client, service, uploads[n::CLIENTS], seconds) for n in range(CLIENTS)]
    return sum(at_once(_rate, tasks))


def _rate(client: Client, service: str, uploads: Sequence[bytes], seconds: float) -> float:
    with client(service, uploads) as ask_about:
        for number in range(3):
            ask_about(number)
        meet()
        done, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            ask_about(done % len(uploads))
            done += 1
        return done / (time.perf_counter() - begun)


@contextmanager
def by_httpx(service: str, uploads: Sequence[bytes]) -> Iterator[Ask]:
    """As most Python programs ask, whose client builds each request."""
    with httpx.Client(base_url=service, timeout=60) as client:
        yield lambda number: ask(client, uploads[number])


@contextmanager
def by_ready_bodies(service: str, uploads: Sequence[bytes]) -> Iterator[Ask]:
    """At the least cost to the client, which shares the service's cores."""
    with closing(LeanClient(service)) as client:
        requests = [request(service, upload) for upload in uploads]
        ready = [
            client.request(PATH, each.read(), each.headers["Content-Type"]) for each in requests
        ]
        yield lambda number: check(client.send(ready[number]))


def rows(parts: dict[str, NDArray[np.float64]]) -> list[list[str]]:
    """A row for each part."""
    return [
        [name, f"{np.median(values):.2f}", f"{np.percentile(values, 99):.2f}"]
        for name, values in parts.items()
    ]


def _arguments() -> argparse.Namespace:
    parser = homes.parser(__doc__)
    parser.set_defaults(backbone="resnet18")
    parser.add_argument("--queries", type=int, default=200, help="pictures that are sent")
    parser.add_argument("--stored", type=int, default=100, help="pictures in the store")
    parser.add_argument("--side", type=int, default=224, help="shorter side of a sent picture")
    parser.add_argument("--seconds", type=float, default=15.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
