"""Connections, and what a driver's error means."""

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from db import engine as under_test
from db.engine import is_transient, make_engine, parse_url, store_errors, translate
from db.errors import (
    ConfigurationError,
    InvalidQuestion,
    NotFound,
    NotPermitted,
    SchemaError,
    StoreError,
    StoreTimeout,
    TransientStoreError,
)
from db.settings import StoreSettings

MEANINGS = [
    *[
        (state, TransientStoreError)
        for state in sorted(under_test.TRANSIENT_STATES - {under_test.TIMEOUT_STATE})
    ],
    (under_test.TIMEOUT_STATE, StoreTimeout),
    *[(state, TransientStoreError) for state in ("08000", "08001", "08003", "08006", "08P01")],
    *[(state, SchemaError) for state in sorted(under_test.MISSING_SCHEMA_STATES)],
    *[(state, InvalidQuestion) for state in sorted(under_test.INVALID_QUESTION_STATES)],
    ("P0002", NotFound),
    ("42501", NotPermitted),
    *[(state, ConfigurationError) for state in ("23505", "23514", "54000")],
]


@pytest.mark.parametrize(("state", "meaning"), MEANINGS)
def test_every_sqlstate_means_one_thing(module_store, state, meaning):
    raise_it = f"DO $$ BEGIN RAISE EXCEPTION E'first\\nsecond' USING ERRCODE = '{state}'; END $$"
    connection = module_store.engine.connect()
    with connection, pytest.raises(StoreError) as error, store_errors():
        connection.exec_driver_sql(raise_it)
    assert type(error.value) is meaning
    assert "first" in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is not None


def test_an_error_of_our_own_passes_unchanged():
    lost = StoreError("x")
    with pytest.raises(StoreError) as error, store_errors():
        raise lost
    assert error.value is lost


@pytest.mark.parametrize("error", [psycopg.OperationalError("x"), psycopg.InterfaceError("x")])
def test_a_lost_connection_without_a_sqlstate_is_transient(error):
    assert is_transient(error)


def test_a_programming_mistake_is_not_transient():
    assert not is_transient(psycopg.ProgrammingError("x"))
    assert isinstance(translate(psycopg.DataError()), InvalidQuestion)


def test_a_pool_that_has_no_connection_left_is_transient():
    with pytest.raises(TransientStoreError), store_errors():
        raise PoolTimeout("QueuePool limit of size 8 overflow 10 reached")


def test_a_connection_terminated_in_use_is_transient_and_the_next_one_works(engine, admin):
    with pytest.raises(TransientStoreError), store_errors(), engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        connection.execute(text("SELECT 1"))
    with store_errors(), engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_connection_terminated_in_the_pool_is_replaced_unseen(engine, admin):
    with engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_a_connection_lost_without_a_word_is_found_after_a_long_idle_time(engine, monkeypatch):
    def backend():
        with engine.connect() as connection:
            return connection.scalar(text("SELECT pg_backend_pid()"))

    first = backend()
    assert backend() == first
    monkeypatch.setattr(under_test, "LONG_IDLE_S", 0.0)
    monkeypatch.setattr(engine.dialect, "do_ping", lambda _connection: False)
    assert backend() != first


@pytest.mark.parametrize("target", ["/postgres?host={folder}", "@127.0.0.1:1/postgres"])
def test_a_server_that_is_not_there_is_transient_and_keeps_the_password(tmp_path, target):
    credentials = "//" if target.startswith("/") else "//somebody:s3cret"
    engine = make_engine(parse_url(f"postgresql:{credentials}{target.format(folder=tmp_path)}"))
    with pytest.raises(TransientStoreError) as error, store_errors():
        engine.connect()
    for text_ in (str(error.value), repr(error.value.__cause__), repr(engine), str(engine.url)):
        assert "s3cret" not in text_
        assert "\n" not in str(error.value)
    engine.dispose()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "not a url",
        "s3cret@host/db",
        "mysql://u:s3cret@host/db",
        "sqlite:///s3cret.db",
        "postgresql://u@host:s3cret/db",
        "postgresql//u:s3cret@host",
    ],
)
def test_a_malformed_url_is_refused_without_showing_it(url):
    with pytest.raises(ConfigurationError, match="expected postgresql://") as error:
        parse_url(url)
    assert "s3cret" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_any_postgres_url_gets_our_driver(scheme):
    url = parse_url(f"{scheme}://u:p%40ss@host:5433/db?sslmode=require")
    assert url.drivername == "postgresql+psycopg"
    assert (url.password, url.port, url.query["sslmode"]) == ("p@ss", 5433, "require")


def test_settings_show_no_password(monkeypatch):
    monkeypatch.setenv("PATCHSTORE_DATABASE_URL", "postgresql://u:s3cret@host/db")
    assert "s3cret" not in f"{StoreSettings()!r} {StoreSettings()} {StoreSettings().model_dump()}"


def test_a_refused_statement_shows_no_parameter(engine):
    statement = text("SELECT 1 / CAST(:x AS integer) + :y")
    with engine.connect() as connection, pytest.raises(StoreError) as error, store_errors():
        connection.execute(statement, {"x": 0, "y": 4711})
    assert "4711" not in f"{error.value} {error.value.__cause__}"


def test_pgvector_off_the_search_path_is_said_with_its_schema(engine, admin):
    engine.dispose()
    admin.execute("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions")
    with pytest.raises(SchemaError, match="in the schema extensions, which is not on the search"):
        engine.connect()
    admin.execute("DROP EXTENSION vector CASCADE")
    with pytest.raises(SchemaError, match=r"no pgvector extension; run: patchstore db upgrade"):
        engine.connect()


@pytest.mark.parametrize(("query", "idle"), [({}, "15"), ({"keepalives_idle": "7"}, "7")])
def test_a_server_that_falls_silent_is_noticed_unless_the_url_says_otherwise(
    module_store, query, idle
):
    engine = make_engine(module_store.engine.url.update_query_dict(query))
    with engine.connect() as connection:
        set_ = under_test.driver_connection(connection).info.get_parameters()
    engine.dispose()
    assert (set_["keepalives_idle"], set_["tcp_user_timeout"]) == (idle, "60000")


@pytest.mark.parametrize("autocommit", [False, True])
def test_the_server_is_told_how_long_a_client_may_be_silent(database, autocommit):
    engine = make_engine(database, autocommit=autocommit)
    with engine.connect() as connection:
        connection.rollback()
        told = connection.exec_driver_sql(
            "SELECT name FROM pg_settings WHERE source = 'session' AND name LIKE 'tcp_%%'"
        )
        assert len(told.all()) == 4
    engine.dispose()


def test_a_session_is_as_this_code_needs_it_whatever_the_server_has(database):
    """By SET: poolers refuse other options at the start of a connection."""
    elsewhere = (
        r"-c default_transaction_isolation=repeatable\ read -c datestyle=German "
        "-c standard_conforming_strings=off -c statement_timeout=1h"
    )
    url = database.update_query_dict({"options": elsewhere})
    engine = make_engine(url, statement_timeout_s=2.5, lock_timeout_s=1)
    expected = {
        "transaction_isolation": "read committed",
        "datestyle": "ISO, DMY",
        "standard_conforming_strings": "on",
        "statement_timeout": "2500ms",
        "lock_timeout": "1s",
    }
    with engine.connect() as connection:
        for name, value in expected.items():
            assert connection.exec_driver_sql(f"SHOW {name}").scalar() == value
        sent = under_test.driver_connection(connection).info.get_parameters().get("options")
    assert sent == elsewhere
    engine.dispose()
