"""All visible patches of a spec as one transaction sees them, for work that goes over the store."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from .engine import driver_connection
from .nearest import PATCH, Patches, PatchMatrix, Vectors
from .specs import StoredSpec

FETCHED = 1_000  # vectors read at a time
URIS = 100_000  # that are kept in memory

_COLUMNS = ("id", "image_id", "x", "y", "width", "height")


class Snapshot:
    """A spec's visible patches in the order of their ids, on a connection in REPEATABLE READ.

    Attributes:
        total: how many there are.
    """

    def __init__(self, connection: Connection, spec: StoredSpec) -> None:
        """Raises SpecBuilding while nothing is searchable yet."""
        self.connection, self.spec = connection, spec
        self.total = _count(connection, spec)
        self._uris: dict[int, str] = {}

    def stretches(self, rows: int) -> Iterator[Patches]:
        """`PATCH` records of all patches, so many at a time."""
        last = 0
        while True:
            found = self.connection.execute(
                text(f"{_patches_sql(self.spec)} AND p.id > :last ORDER BY p.id LIMIT {rows}"),
                {"last": last},
            ).all()
            if not found:
                return
            patches = records(found)
            yield patches
            last = int(patches["id"][-1])

    def copy(self, folder: Path | None, on_share: Callable[[float], None]) -> PatchMatrix:
        """The patches with their vectors in two files in `folder`, mapped into memory.

        The files have no name: whatever ends the process, nothing is left of them.
        """
        count = 0
        with TemporaryFile(dir=folder) as patches, TemporaryFile(dir=folder) as vectors:
            for stretch, values in self._read():
                patches.write(stretch.tobytes())
                vectors.write(values.tobytes())
                count += len(stretch)
                on_share(count / self.total)
            patches.flush()
            vectors.flush()
            return PatchMatrix(
                np.memmap(patches, PATCH, "r", shape=(count,)),
                np.memmap(vectors, np.float32, "r", shape=(count, self.spec.dim)),
                self.spec.metric,
            )

    def uris(self, image_ids: NDArray[np.int64]) -> list[str]:
        """Where each of these images is shown."""
        ids: list[int] = image_ids.tolist()
        if len(self._uris) > URIS:
            self._uris.clear()
        unknown = list({*ids} - self._uris.keys())
        if unknown:
            found = self.connection.execute(
                text(
                    "SELECT i, l.uri FROM unnest(CAST(:images AS bigint[])) i "
                    "CROSS JOIN LATERAL patchstore.shown_location(:spec, i) l"
                ),
                {"images": unknown, "spec": self.spec.id},
            )
            self._uris.update((row.i, row.uri) for row in found)
        return [self._uris[image_id] for image_id in ids]

    def _read(self) -> Iterator[tuple[Patches, Vectors]]:
        with driver_connection(self.connection).cursor("snapshot", binary=True) as cursor:
            cursor.execute(f"{_patches_sql(self.spec, 'embedding')} ORDER BY p.id".encode())
            while rows := cursor.fetchmany(FETCHED):
                vectors: list[Any] = [row[-1] for row in rows]
                yield (
                    records([row[:-1] for row in rows]),
                    np.stack([vector.to_numpy() for vector in vectors]),
                )


def records(rows: Sequence[Sequence[Any]]) -> Patches:
    """`PATCH` records of rows of id, image_id, x, y, width, height."""
    numbers = np.array([tuple(row) for row in rows], np.int64).reshape(len(rows), len(_COLUMNS))
    found: Patches = np.empty(len(rows), PATCH)
    found["id"], found["image_id"], found["box"] = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
    return found


def _count(connection: Connection, spec: StoredSpec) -> int:
    total = connection.execute(
        text(
            "SELECT coalesce(sum(patch_count), 0) FROM patchstore.extraction "
            "WHERE spec_id = :spec AND visible"
        ),
        {"spec": spec.id},
    ).scalar_one()
    if not total:
        connection.execute(
            text("SELECT patchstore.check_built(s) FROM patchstore.feature_spec s WHERE id = :id"),
            {"id": spec.id},
        )
    return int(total)


def _patches_sql(spec: StoredSpec, *columns: str) -> str:
    names = ", ".join(f"p.{name}" for name in (*_COLUMNS, *columns))
    return (
        f"SELECT {names} FROM {spec.partition} p JOIN patchstore.extraction e "
        f"ON e.spec_id = {spec.id} AND e.image_id = p.image_id AND e.visible "
        f"WHERE p.spec_id = {spec.id}"
    )
