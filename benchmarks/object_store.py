"""Reading pictures out of an object store, by how many are read at a time.

An S3 server on this machine, each of whose answers begins 50 ms late, as those of a store do that
is some way off. One batch read and decoded, as a run does it; each number once a round in turn.

    python -m benchmarks.object_store --images FOLDER
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from db.ledger import Lease
from flows.batch import Batch, extract_patches
from flows.sources import source_at
from patchstore.bench import home as homes
from patchstore.bench.report import table

PICTURES = 150
ROUNDS = 3
LATE_S = 0.05
READERS = (1, 2, 4, 8, 16)
SPEC: Any = SimpleNamespace(patch_size=224, stride=112, edge="cover", scales=(1.0,))


def main() -> None:
    """Measures and prints."""
    arguments = homes.parser(__doc__).parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "benchmark"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    leases = fill(homes.spread(homes.image_files(arguments.images), PICTURES))
    answer_late()
    fastest = dict.fromkeys(READERS, float("inf"))
    for _ in range(ROUNDS):
        for readers in READERS:
            fastest[readers] = min(fastest[readers], seconds(leases, readers))
    server.stop()
    rates = {readers: len(leases) / fastest[readers] for readers in READERS}
    lines = [
        (str(readers), f"{rate:.1f}", f"{rate / rates[1]:.1f}") for readers, rate in rates.items()
    ]
    print(table(("read at a time", "pictures/s", "to one at a time"), lines))


def fill(files: Sequence[Path]) -> list[Lease]:
    """Puts pictures into a bucket; returns leases of them."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    leases = []
    for number, file in enumerate(files):
        content = file.read_bytes()
        client.put_object(Bucket="bucket", Key=f"{number}{file.suffix}", Body=content)
        uri = f"s3://bucket/{number}{file.suffix}"
        digest = hashlib.sha256(content).digest()
        leases.append(Lease(1, number, number, uri, digest, len(content)))
    return leases


def answer_late() -> None:
    """From here on each request waits before it is sent."""
    call = S3FileSystem._call_s3

    async def late(self: S3FileSystem, *arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(LATE_S)
        return await call(self, *arguments, **options)

    S3FileSystem._call_s3 = late


def seconds(leases: list[Lease], readers: int) -> float:
    """How long one batch takes to be read and decoded."""
    os.environ["PATCHSTORE_READ_THREADS"] = str(readers)
    source, batch = source_at("s3://bucket"), Batch(1, leases)
    begun = time.perf_counter()
    extract_patches(batch, source, SPEC, 10**9, last_try=True)
    assert len(batch.decoded) == len(leases)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
