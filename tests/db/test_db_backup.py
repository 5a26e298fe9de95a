"""A dump of a living store, restored elsewhere: searches answer the same, the ledger goes on."""

import subprocess

import numpy as np
import psycopg
import pytest

from db.engine import make_engine
from db.gauges import read_gauges
from db.index import build_index, is_indexed
from db.ledger import reclaim
from db.migrate import check_schema, upgrade
from db.reports import status
from db.search import SearchOptions, search
from db.server import program_folder

FILES = {f"{n}.jpg": f"content {n}" for n in range(40)}


def program(name, *arguments):
    subprocess.run([program_folder() / name, *arguments], check=True, capture_output=True)


def dsn(url):
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@pytest.fixture
def restored(store, server, empty_database, owner, tmp_path):
    """A store like `store` at its dump, of no superuser, and its spec; a run went on."""
    spec = store.spec()
    store.ingest(spec, {**FILES, "gone.jpg": "gone"})
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    store.scan(spec, {**FILES, "late.jpg": "late"})
    run = store.run(spec)
    dump = tmp_path / "patchstore.dump"
    with store.alive(run):
        store.lease(spec, run)
        program("pg_dump", "--format=custom", f"--file={dump}", dsn(store.engine.url))
    with psycopg.connect(dsn(empty_database), autocommit=True) as admin:
        admin.execute("CREATE EXTENSION vector")
        admin.execute(f"GRANT patchstore_reader TO {owner.username}")
    options = ("--no-owner", "--no-comments", "--exit-on-error")
    program("pg_restore", *options, f"--dbname={dsn(owner)}", dump)
    engine = make_engine(owner)
    yield type(store)(engine)
    engine.dispose()


def test_searches_answer_the_same(store, restored):
    spec = store.spec()
    assert is_indexed(restored.engine, spec)
    for options in (SearchOptions(k=20), SearchOptions(k=20, exact=True)):
        for question in store.vectors(5, seed=7):
            before = search(store.engine, spec, question, options)
            after = search(restored.engine, spec, question, options)
            assert [(h.uri, h.box) for h in after.hits] == [(h.uri, h.box) for h in before.hits]
            assert after.exact is before.exact
            assert np.allclose([h.distance for h in after.hits], [h.distance for h in before.hits])


def test_the_ledger_goes_on_where_it_was(store, restored):
    spec = restored.spec()
    assert status(restored.engine) == status(store.engine)
    assert read_gauges(restored.engine).specs[0].expired_leases == 1  # of the run that went on
    counts = restored.scan(spec, {**FILES, "late.jpg": "late"})
    assert (counts.unchanged, counts.new, counts.changed) == (41, 0, 0)
    assert reclaim(restored.engine, spec, max_attempts=25) == 1
    (lease,) = restored.lease(spec)
    restored.write(spec, lease)
    assert restored.lease(spec) == []
    assert restored.shown(spec) == {*FILES, "late.jpg"}


def test_the_restored_schema_is_the_one_that_this_version_speaks_to(restored):
    with restored.engine.connect() as connection:
        check_schema(connection)
    assert not upgrade(restored.engine.url)


def test_a_reader_may_search_what_was_restored(restored):
    with restored.engine.connect() as connection:
        connection.exec_driver_sql("SET ROLE patchstore_reader")
        question = "SELECT count(*) FROM patchstore.similar_patches('tiny', '[1,0,0,0]', k => 5)"
        assert connection.exec_driver_sql(question).scalar_one() == 5
