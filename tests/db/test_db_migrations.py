"""From an empty database up, down and up again; and every way in which a database is not ready."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psycopg
import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import text

from db import migrate
from db.aliases import promote
from db.engine import make_engine
from db.errors import ConfigurationError, SchemaError
from db.index import build_index, is_indexed, rebuild_index
from db.migrate import check_schema, current_revision, downgrade, head_revision, upgrade
from db.reports import status
from db.search import SearchOptions, search
from db.specs import get_spec

TABLES = {
    "alembic_version",
    "audit",
    "extraction",
    "feature_spec",
    "image",
    "image_location",
    "index_build",
    "ingest_run",
    "patch_feature",
    "precision_check",
    "source",
    "spec_alias",
}


def dsn(url):
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def query(url, statement):
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        result = connection.execute(statement)
        return result.fetchall() if result.description else []


def objects(url):
    """Tables, functions, sequences and types of our schema."""
    return query(
        url,
        "WITH ours AS (SELECT oid FROM pg_namespace WHERE nspname = 'patchstore') "
        "SELECT relname, relkind::text FROM pg_class JOIN ours ON ours.oid = relnamespace "
        "UNION ALL SELECT proname, 'f' FROM pg_proc JOIN ours ON ours.oid = pronamespace "
        "UNION ALL SELECT typname, 't' FROM pg_type JOIN ours ON ours.oid = typnamespace "
        "ORDER BY 1, 2",
    )


@pytest.fixture
def connect():
    """Opens connections without pgvector's types, and disposes of their engines."""
    engines = []

    def open_(url):
        engines.append(make_engine(url, vectors=False))
        return engines[-1].connect()

    yield open_
    for engine in engines:
        engine.dispose()


def test_an_empty_database_goes_up_down_and_up_again(empty_database):
    assert upgrade(empty_database)
    up = objects(empty_database)
    assert {name for name, kind in up if kind in "rp"} == TABLES
    downgrade(empty_database)
    assert {name for name, kind in objects(empty_database) if kind == "r"} == {"alembic_version"}
    assert not [name for name, kind in objects(empty_database) if kind in "fSv"]
    assert upgrade(empty_database)
    assert objects(empty_database) == up


def test_a_full_store_goes_down_and_up_again(database, store):
    spec = store.spec()
    store.ingest(spec, {"a": "1"})
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    store.engine.dispose()
    downgrade(database)
    assert upgrade(database)
    assert store.shown(store.spec()) == set()


def test_a_store_of_schema_0002_is_upgraded_and_answers_the_same(database, store):
    spec = store.spec()
    store.ingest(spec, {"a": "1", "b": "2"})
    build_index(store.engine, spec, threshold=0, memory_mb=16)
    at_head = objects(database)
    store.engine.dispose()
    downgrade(database, "0002")
    questions = (
        "SELECT * FROM patchstore.similar_patches('tiny', '[1,0,0,0]', k => 5)",
        "SELECT name, digest, recipe, dim, metric, created_at, indexed FROM patchstore.specs",
    )
    before = [query(database, question) for question in questions]
    assert upgrade(database)
    assert [query(database, question) for question in questions] == before
    assert objects(database) == at_head
    assert promote(store.engine, spec, "live") is None
    assert rebuild_index(store.engine, spec, memory_mb=16)


def older_revisions():
    """All but the newest, the first one first."""
    script = ScriptDirectory(str(migrate.MIGRATIONS))
    return [revision.revision for revision in script.walk_revisions()][:0:-1]


@pytest.mark.parametrize("revision", older_revisions())
def test_a_store_of_every_older_schema_is_upgraded_and_answers(empty_database, revision):
    assert upgrade(empty_database, revision)
    query(empty_database, (Path(__file__).parent / "store_0001.sql").read_text())
    assert upgrade(empty_database)
    engine = make_engine(empty_database)
    try:
        indexed, plain = get_spec(engine, "indexed"), get_spec(engine, "plain")
        hits = search(engine, indexed, np.float32([1, 0.1, 0]), SearchOptions(9)).hits
        assert [(hit.uri, hit.box[0], hit.metadata) for hit in hits] == [
            ("/photos/a.jpg", 0, {"shelf": 3}),
            ("/photos/a.jpg", 8, {"shelf": 3}),
        ]
        (hit,) = search(engine, plain, np.float32([0, 0]), SearchOptions(9)).hits
        assert hit.distance == 5
        assert is_indexed(engine, indexed)
        (found,) = status(engine)
        assert (found.found, found.done, found.failed, found.patches) == (2, 1, 1, 2)
    finally:
        engine.dispose()


def test_an_upgrade_of_an_upgraded_database_changes_nothing(database):
    before = objects(database)
    assert not upgrade(database)
    assert objects(database) == before


def test_two_upgrades_at_once_both_succeed(empty_database):
    with ThreadPoolExecutor(2) as pool:
        changed = list(pool.map(upgrade, [empty_database] * 2))
    assert sorted(changed) == [False, True]


def test_models_and_migrations_agree_with_partitions_and_an_index_present(store, database, connect):
    spec = store.spec()
    store.ingest(spec, {"a": "1"})
    assert build_index(store.engine, spec, threshold=0, memory_mb=16)
    with connect(database) as connection:
        command.check(migrate.alembic_config(connection))


def test_the_revision_of_an_empty_database_is_none(empty_database, connect):
    with connect(empty_database) as connection:
        assert current_revision(connection) is None
        with pytest.raises(SchemaError, match=r"schema is empty.*patchstore db upgrade"):
            check_schema(connection)


def test_an_upgraded_database_has_the_schema_that_the_code_speaks(database, connect):
    with connect(database) as connection:
        assert current_revision(connection) == head_revision()
        check_schema(connection)


def test_another_revision_is_named(database, connect):
    query(database, "UPDATE patchstore.alembic_version SET version_num = '9999'")
    with connect(database) as connection, pytest.raises(SchemaError, match="schema is 9999"):
        check_schema(connection)


def test_a_schema_that_a_newer_patchstore_has_made_is_left_alone(database):
    query(database, "UPDATE patchstore.alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=r"schema is at 9999, which a newer patchstore has made"):
        upgrade(database)


def test_a_database_without_pgvector_says_what_to_run(empty_database):
    engine = make_engine(empty_database)
    with pytest.raises(SchemaError, match=r"no pgvector.*patchstore db upgrade"):
        get_spec(engine, "x")
    engine.dispose()


def test_a_database_without_our_schema_says_what_to_run(empty_database):
    query(empty_database, "CREATE EXTENSION vector")
    engine = make_engine(empty_database)
    with pytest.raises(SchemaError, match="patchstore db upgrade"):
        get_spec(engine, "x")
    engine.dispose()


def refusal(url):
    with pytest.raises(ConfigurationError) as error:
        upgrade(url)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("version", ["0.8.3", "0.5", "0.7.99"])
def test_a_pgvector_too_old_is_named_with_what_to_do(empty_database, version):
    query(empty_database, "CREATE EXTENSION vector")
    query(
        empty_database,
        f"UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'vector'",
    )
    assert refusal(empty_database).startswith(f"pgvector {version} is older than 0.8.4; ")
    assert not query(empty_database, "SELECT 1 FROM pg_namespace WHERE nspname = 'patchstore'")


def test_a_server_without_pgvector_is_named_with_what_to_do(empty_database):
    query(
        empty_database,
        f"ALTER DATABASE {empty_database.database} SET extension_control_path = '/nowhere'",
    )
    assert refusal(empty_database).startswith("this Postgres has no pgvector; install pgvector")


def test_a_role_that_may_not_create_pgvector_is_told_who_may(owner):
    assert refusal(owner) == (
        "this role may not create the pgvector extension; have a superuser run in this database: "
        "CREATE EXTENSION vector"
    )


def test_an_owner_without_other_rights_migrates_where_pgvector_exists(empty_database, owner):
    query(empty_database, "CREATE EXTENSION vector")
    assert upgrade(owner)
    downgrade(owner)
    assert upgrade(owner)


def test_an_owner_of_the_schema_alone_migrates(empty_database, owner):
    """A DBA made it, and lets nobody make others."""
    query(empty_database, "CREATE EXTENSION vector")
    query(empty_database, f"CREATE SCHEMA patchstore AUTHORIZATION {owner.username}")
    query(empty_database, f"ALTER DATABASE {empty_database.database} OWNER TO CURRENT_USER")
    assert upgrade(owner)


@pytest.mark.parametrize("revision", ["0001", "0006"])
def test_what_a_superuser_upgrades_and_adds_stays_the_owners(
    store, empty_database, owner, revision
):
    query(empty_database, "CREATE EXTENSION vector")
    assert upgrade(owner, revision)
    assert upgrade(empty_database)
    admin, engine = make_engine(empty_database), make_engine(owner)
    try:
        added = type(store)(admin).spec()
        type(store)(engine).ingest(added, {"a.jpg": "a"})
        promote(engine, added, "default")
        (hit,) = search(engine, added, store.vectors(1)[0], SearchOptions(k=5, exact=True)).hits[:1]
        assert hit.uri == "a.jpg"
    finally:
        admin.dispose()
        engine.dispose()


def test_a_limit_of_the_database_ends_no_upgrade(empty_database):
    with psycopg.connect(dsn(empty_database), autocommit=True) as connection:
        connection.execute(
            f"ALTER DATABASE {empty_database.database} SET statement_timeout = '1ms'"
        )
    assert upgrade(empty_database)


def test_a_role_that_may_not_create_roles_migrates_without_the_reader(
    server, template, empty_database, owner
):
    query(empty_database, "CREATE EXTENSION vector")
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("ALTER ROLE patchstore_reader RENAME TO patchstore_reader_elsewhere")
        try:
            assert upgrade(owner)
        finally:
            admin.execute("ALTER ROLE patchstore_reader_elsewhere RENAME TO patchstore_reader")
    assert {name for name, kind in objects(owner) if kind in "rp"} == TABLES


def test_a_role_that_may_only_connect_is_refused_in_one_line(database, server):
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("CREATE ROLE stranger LOGIN")
        engine = make_engine(database.set(username="stranger"))
        try:
            with pytest.raises(ConfigurationError, match="permission denied") as error:
                get_spec(engine, "x")
            assert "\n" not in str(error.value)
        finally:
            engine.dispose()
            admin.execute("DROP ROLE stranger")


def test_pgvector_in_another_schema_can_be_migrated(empty_database, connect):
    query(empty_database, "CREATE SCHEMA extensions")
    query(empty_database, "CREATE EXTENSION vector SCHEMA extensions")
    assert upgrade(empty_database)
    with connect(empty_database) as connection:
        path = connection.execute(text("SHOW search_path")).scalar_one()
    assert "extensions" not in path  # the functions find it by themselves
