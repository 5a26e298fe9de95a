"""Building the HNSW index: seconds by workers, with room for the graph and without.

Stores real patch vectors as benchmarks.search does (the same --cache), then builds the index of
the same rows again and again: without workers and with some, in the memory that the graph is
estimated to take and in six tenths of it. pgvector says after how many rows the graph no longer
fits. Exit code 1 where it does not fit into the estimate. The last line is what patchstore chooses.

For fewer than 60,000 rows of 512 the memory is so little that Postgres starts no workers.

    python -m benchmarks.index --images FOLDER --weights FILE --cache vectors.npz
"""

import re
import time

import psycopg
from sqlalchemy import Engine

from db.build_plan import plan_build
from db.engine import make_engine, parse_url
from db.index import build_index, index_definition, index_name
from db.settings import StoreSettings
from db.specs import StoredSpec, get_spec
from patchstore.bench import home as homes
from patchstore.bench.report import machine, table

from .search_store import count_rows, known_vectors, pictures, store, store_parser

WORKERS = (0, 1, 2)
NO_ROOM = re.compile(r"no longer fits into maintenance_work_mem after (\d+) tuples")


def main() -> None:
    """Measures and prints."""
    arguments = store_parser(__doc__, rows=100_000).parse_args()
    options = homes.spec_options(arguments)
    known = known_vectors(options, arguments.images, arguments.cache, arguments.rows)
    with homes.temporary_home() as home:
        url = homes.add_spec(home, options)
        engine = make_engine(parse_url(url))
        spec = get_spec(engine, homes.SPEC)
        chosen = pictures(known, arguments.rows)
        store(engine, spec, known, chosen)
        rows = count_rows(known, chosen)
        needed_mb = plan_build(spec.dim, rows, memory_mb=1 << 20, workers=0).needed_mb
        lines: list[tuple[object, ...]] = []
        fits = True
        for memory_mb in (needed_mb, needed_mb * 6 // 10):
            for workers in WORKERS:
                seconds, held = build(url, spec, rows, memory_mb, workers)
                lines.append((f"{memory_mb} MiB", workers, held or "all", f"{seconds:.0f}"))
                fits &= memory_mb < needed_mb or held is None
        lines.append(("patchstore's choice", "", "", f"{chosen_seconds(engine, spec):.0f}"))
        line = machine(url)
        engine.dispose()
    print(table(("memory", "workers", "rows that fitted", "seconds"), lines))
    print(f"\n{rows:,} rows of {spec.dim}; the graph is estimated to take {needed_mb} MiB.\n{line}")
    raise SystemExit(not fits)


def build(
    url: str, spec: StoredSpec, rows: int, memory_mb: int, workers: int
) -> tuple[float, int | None]:
    """Builds and drops an index; returns seconds, and how many rows fitted unless all did."""
    notices: list[str] = []
    with psycopg.connect(url, autocommit=True) as connection:
        connection.add_notice_handler(lambda notice: notices.append(str(notice.message_primary)))
        connection.execute(f"SET maintenance_work_mem = '{memory_mb}MB'".encode())
        connection.execute(f"SET max_parallel_maintenance_workers = {workers}".encode())
        begun = time.perf_counter()
        connection.execute(
            f"CREATE INDEX CONCURRENTLY measured {index_definition(spec, rows)}".encode()
        )
        seconds = time.perf_counter() - begun
        connection.execute("DROP INDEX patchstore.measured")
    fitted = NO_ROOM.search(" ".join(notices))
    return seconds, fitted and int(fitted[1])


def chosen_seconds(engine: Engine, spec: StoredSpec) -> float:
    """How long a run's own build takes."""
    memory_mb = StoreSettings().maintenance_work_mem_mb
    begun = time.perf_counter()
    if not build_index(engine, spec, threshold=0, memory_mb=memory_mb):
        raise SystemExit(f"{index_name(spec)} was not built")
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
