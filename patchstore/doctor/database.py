"""Checks of the database: its server, and the store in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from packaging.version import Version
from sqlalchemy import Engine

from db import checkup
from db.build_plan import MIB, plan_build
from db.gauges import read_gauges
from db.index import is_outgrown
from db.metric import MAX_INDEXED_DIM
from db.migrate import MINIMUM_PGVECTOR, head_revision
from db.settings import StoreSettings
from db.specs import list_specs

from .finding import Finding, ok, problem, warning

CLOCK_S = 2.0
SHARED_MEMORY = Path("/dev/shm")


def check_postgres(engine: Engine) -> Iterator[Finding]:
    """That it answers, and as what."""
    where = "embedded" if StoreSettings().is_embedded else engine.url.host or "local"
    yield ok("postgres", f"PostgreSQL {checkup.postgres_version(engine)} ({where})")


def check_pgvector(engine: Engine) -> Iterator[Finding]:
    """That the extension is there and not one that corrupts indexes."""
    version = checkup.pgvector_version(engine)
    if version is None:
        yield problem("pgvector", "the extension is not in this database", "patchstore db upgrade")
    elif Version(version) < MINIMUM_PGVECTOR:
        yield problem(
            "pgvector",
            f"{version} is older than {MINIMUM_PGVECTOR}",
            "update it on the server, then run as a superuser: ALTER EXTENSION vector UPDATE",
        )
    else:
        yield ok("pgvector", version)


def check_schema(engine: Engine) -> Iterator[Finding]:
    """That the tables are those that this version speaks to."""
    found, needed = checkup.schema_revision(engine), head_revision()
    if found == needed:
        yield ok("schema", f"revision {found}")
    else:
        text = f"revision {found or 'none'}, this patchstore needs {needed}"
        yield problem("schema", text, "patchstore db upgrade")


def check_clock(engine: Engine) -> Iterator[Finding]:
    """That both machines agree on the time."""
    ahead_s = checkup.clock_ahead_s(engine)
    text = f"the database's clock is {abs(ahead_s):.1f} s {'ahead' if ahead_s > 0 else 'behind'}"
    if abs(ahead_s) > CLOCK_S:
        yield warning("clock", text, "let both machines keep time by NTP")
    else:
        yield ok("clock", text)


def check_rights(engine: Engine) -> Iterator[Finding]:
    """That this role may do all that the commands do."""
    closed = checkup.tables_without_rights(engine)
    others = checkup.tables_of_others(engine)
    if closed:
        text = f"this role may not read and write {', '.join(closed)}"
        yield problem("rights", text, "grant it, or connect as the owner of the schema")
    elif others:
        text = f"this role does not own {', '.join(others)}: it can add no spec and build no index"
        yield warning("rights", text, "connect as the owner, or grant this role the owner's")
    else:
        yield ok("rights", "this role owns the tables")


def check_reader(engine: Engine) -> Iterator[Finding]:
    """That applications have a role that may only search."""
    may = checkup.reader_may_search(engine)
    advice = 'docs/sql.md, "A role that may only search", says how to make it'
    if may is None:
        yield warning("reader", f"there is no role {checkup.READER}", advice)
    elif not may:
        yield warning("reader", f"{checkup.READER} may not search", advice)
    else:
        yield ok("reader", f"{checkup.READER} may search")


def check_indexes(engine: Engine) -> Iterator[Finding]:
    """That each spec has an index when it is due, and a valid one."""
    stored = {spec.name: spec for spec in list_specs(engine)}
    for spec in read_gauges(engine).specs:
        name = f"index of {spec.spec}"
        if spec.invalid_indexes:
            text = f"invalid, left of a build that was stopped: {spec.invalid_indexes}"
            yield warning(name, text, "patchstore ingest FOLDER builds it anew")
        if is_outgrown(engine, stored[spec.spec]):
            text = f"built for far fewer than {spec.patches} patches: searches may miss some"
            yield warning(name, text, f"patchstore reindex --spec {spec.spec} --if-needed")
        elif spec.indexed:
            yield ok(name, f"{spec.patches} patches, indexes {spec.index_bytes / 1e9:.1f} GB")
        elif _is_due(spec.patches, stored[spec.spec].dim):
            text = f"none over {spec.patches} patches: every search compares with all of them"
            yield warning(name, text, "patchstore ingest FOLDER builds it")
        else:
            yield ok(name, f"{spec.patches} patches, searched exactly")


def check_index_memory(engine: Engine) -> Iterator[Finding]:
    """That indexes fit into the memory that searching and building them may use."""
    buffers, limit = checkup.memory(engine).shared_buffers, StoreSettings().maintenance_work_mem_mb
    dims = {spec.name: spec.dim for spec in list_specs(engine)}
    for spec in read_gauges(engine).specs:
        name, dim = f"memory for {spec.spec}", dims[spec.spec]
        if spec.indexed and spec.index_bytes > buffers:
            text = f"indexes {spec.index_bytes / 1e9:.1f} GB, shared_buffers {buffers / 1e9:.1f} GB"
            yield warning(name, text, "ALTER SYSTEM SET shared_buffers, and restart Postgres")
        plan = plan_build(dim, spec.patches, memory_mb=limit, workers=0)
        if not plan.fits and _is_due(spec.patches, dim):
            text = f"building the index fast takes {plan.needed_mb} MiB, it may use {limit}"
            yield warning(name, text, "raise PATCHSTORE_MAINTENANCE_WORK_MEM_MB")


def _is_due(patches: int, dim: int) -> bool:
    return patches > StoreSettings().index_threshold and dim <= MAX_INDEXED_DIM


def check_memory(engine: Engine) -> Iterator[Finding]:
    """What Postgres may use, and the shared memory that a parallel build takes."""
    memory, settings = checkup.memory(engine), StoreSettings()
    text = (
        f"shared_buffers {memory.shared_buffers / MIB:.0f} MiB, "
        f"{settings.maintenance_work_mem_mb} MiB for building an index"
    )
    here = settings.is_embedded or engine.url.host in (None, "", "localhost", "127.0.0.1", "::1")
    if here and memory.shared_memory == "posix" and SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free / MIB
        wanted = _shared_memory_mb(engine, memory.workers)
        if free < wanted:
            text += f", of which one takes {wanted} in {SHARED_MEMORY}, with {free:.0f} free"
            advice = "give the container more (shm_size); without, indexes are built by one process"
            yield warning("memory", text, advice)
            return
    yield ok("memory", text)


def _shared_memory_mb(engine: Engine, workers: int) -> int:
    """What the largest index build that takes workers asks for, MiB; 0 where none does."""
    limit = StoreSettings().maintenance_work_mem_mb
    dims = {spec.name: spec.dim for spec in list_specs(engine)}
    plans = [
        plan_build(dims[spec.spec], spec.patches, memory_mb=limit, workers=workers)
        for spec in read_gauges(engine).specs
    ]
    return max((plan.memory_mb for plan in plans if plan.workers), default=0)


def check_weights(engine: Engine) -> Iterator[Finding]:
    """That each spec's weights are on this machine and still those; nothing is downloaded."""
    from extractor.backbone import load_backbone
    from extractor.errors import WeightsError
    from extractor.spec import FeatureSpec
    from extractor.weights import find_weights, local_file, weights_place

    for spec in list_specs(engine):
        name = f"weights of {spec.name}"
        try:
            place = weights_place(spec.recipe["weights"], spec.weights_source)
            path = local_file(find_weights(spec.recipe["backbone"], place))
        except WeightsError as error:
            text = f"{spec.weights_source} is not on this machine"
            yield problem(name, text, str(error))
            continue
        if path is not None and not path.exists():
            yield warning(name, f"{path} is not there yet", "the next ingest downloads it")
            continue
        try:
            load_backbone(FeatureSpec.model_validate(spec.recipe), spec.weights_source)
        except WeightsError as error:
            yield problem(name, f"{path or place} is not what it was", str(error))
        else:
            yield ok(name, str(path or place))


def check_leases(engine: Engine) -> Iterator[Finding]:
    """Images that a dead run still claims."""
    expired = {spec.spec: spec.expired_leases for spec in read_gauges(engine).specs}
    for name, count in expired.items():
        if count:
            text = f"claimed by a run that is dead: {count} images of {name}"
            yield warning("leases", text, "patchstore ingest FOLDER takes them up")
    if not any(expired.values()):
        yield ok("leases", "none is held by a dead run")


def check_runs(engine: Engine) -> Iterator[Finding]:
    """How the last run over each source under each spec ended."""
    sources = read_gauges(engine).sources
    bad = [source for source in sources if source.state in ("failed", "crashed")]
    for source in bad:
        text = f"the last one over {source.source} ({source.spec}) has {source.state}"
        yield warning("runs", text, "patchstore status says why; run it again")
    if not bad:
        last = f"the last runs ({len(sources)}, one a source and spec)"
        yield ok("runs", f"none of {last} failed or crashed")


REACH = (check_postgres,)
SERVER_CHECKS = (check_pgvector, check_schema, check_clock)
STORE_CHECKS = (
    check_rights,
    check_reader,
    check_memory,
    check_indexes,
    check_index_memory,
    check_weights,
    check_leases,
    check_runs,
)
