"""A ledger with made-up images, for what is measured without pictures or a network."""

import hashlib

from sqlalchemy import Engine

from db.catalog import SeenFile, finish_scan, open_source, record_files, start_scan
from db.specs import NewSpec, StoredSpec, add_spec

SEEN_AT_ONCE = 1000


def made_up_spec(engine: Engine, name: str, dim: int) -> StoredSpec:
    """A spec that no network belongs to."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    return add_spec(engine, NewSpec(name, digest, {"made up": name}, dim, "cosine", "nowhere"))


def add_images(engine: Engine, spec: StoredSpec, root: str, count: int) -> int:
    """Records `count` images as pending, as a scan does; returns the source's id."""
    source = open_source(engine, root)
    started = start_scan(engine)
    for first in range(0, count, SEEN_AT_ONCE):
        uris = [f"{root}{n:08}.png" for n in range(first, min(count, first + SEEN_AT_ONCE))]
        files = [
            SeenFile(uri, 1, "", hashlib.sha256(uri.encode()).digest(), None, None) for uri in uris
        ]
        record_files(engine, source, spec, files, started)
    finish_scan(engine, source, spec, started, complete=True)
    return source
