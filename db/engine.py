"""Connections: one engine a process, and the one place where driver errors get a meaning."""

import logging
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import psycopg
from pgvector.psycopg import register_vector
from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from .errors import (
    ConfigurationError,
    InvalidQuestion,
    NotFound,
    NotPermitted,
    SchemaError,
    SpecBuilding,
    StoreTimeout,
    TransientStoreError,
)

logger = logging.getLogger(__name__)

# https://www.postgresql.org/docs/current/errcodes-appendix.html
TIMEOUT_STATE = "57014"
NOT_PERMITTED_STATE = "42501"
TRANSIENT_STATES = frozenset(
    {
        *("57P01", "57P02", "57P03"),  # the server shuts down, crashed, or starts
        *("40001", "40P01", "55P03"),  # serialization, deadlock, lock not available
        *(TIMEOUT_STATE, "25P03", "57P05"),  # a timeout of a statement, a transaction, a session
        *("53100", "53200", "53300"),  # no room on the disk, in memory, for a connection
        "25006",  # the server only reads: it has just become a standby, or is about to be no more
    }
)
CONNECTION_CLASS = "08"
LONG_IDLE_S = 30.0
# A server whose machine is gone says nothing: by the kernel's own limits a statement would wait for
# its answer for two hours. https://www.postgresql.org/docs/current/libpq-connect.html
NETWORK = {
    "keepalives_idle": 15,  # s without a word until the first question whether it is there
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # ms that the server may also take no more of a COPY
}
# Of each session, whatever its role or database has: by SET, for a pooler knows no other options.
# And the other way round: a client that is gone without a word would keep its locks for as long.
# https://www.postgresql.org/docs/current/runtime-config-connection.html
_SESSION: dict[str, str | int] = {
    "tcp_keepalives_idle": 15,
    "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    # What statements count on that look again at what another transaction has committed meanwhile.
    "default_transaction_isolation": "'read committed'",
    # As psycopg reads and writes values.
    "datestyle": "iso",
    "standard_conforming_strings": "on",
}
# Raised by our functions; a number too large for its type, as a k of ten digits; text that is not
# of the type, or that no text of Postgres can hold; JSON that is nested too deeply.
INVALID_QUESTION_STATES = frozenset({"22023", "22003", "22P02", "22P05", "22021", "54001"})
MISSING_SCHEMA_STATES = frozenset({"3F000", "42P01", "42883", "42703"})


def parse_url(url: str) -> URL:
    """The SQLAlchemy URL of a Postgres URL, with the psycopg driver.

    Raises:
        ConfigurationError: if it is not a Postgres URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # ValueError: a port that is no number
        raise ConfigurationError(
            "PATCHSTORE_DATABASE_URL is not a URL; expected postgresql://user:password@host/database"
        ) from None
    if parsed.get_backend_name() not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"PATCHSTORE_DATABASE_URL names {parsed.drivername!r}; "
            "expected postgresql://user:password@host/database"
        )
    return parsed.set(drivername="postgresql+psycopg")


def make_engine(
    url: URL,
    *,
    vectors: bool = True,
    connections: int = 18,
    statement_timeout_s: float | None = None,
    lock_timeout_s: float | None = None,
    wait_s: float = 30.0,
    autocommit: bool = False,
) -> Engine:
    """An engine whose connections bind and return numpy vectors.

    Args:
        url: as `parse_url` gives it; options of libpq in it go before those that are set here.
        vectors: register pgvector's types; off only where the extension may not exist yet.
        connections: how many it opens at most.
        statement_timeout_s: after which the database stops a statement.
        lock_timeout_s: the same, for one that waits for a lock.
        wait_s: how long to wait for a free connection, and at most 10 s of it for a new one.
        autocommit: each statement by itself, which spares two round trips where it is the only one;
            `engine.begin` is no transaction then.
    """
    options: dict[str, int | str] = {
        **NETWORK,
        "connect_timeout": max(2, min(10, round(wait_s))),  # libpq takes no less than 2 s
        "application_name": "patchstore",
    }
    options = {name: value for name, value in options.items() if name not in url.query}
    timeouts = {"statement_timeout": statement_timeout_s, "lock_timeout": lock_timeout_s}
    limits = {name: round(1000 * s) for name, s in timeouts.items() if s is not None}
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_size=min(8, connections),
        max_overflow=max(0, connections - 8),
        pool_timeout=wait_s,
        connect_args=options,
        **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}),
    )
    event.listen(engine, "connect", partial(_set_up, {**_SESSION, **limits}))
    event.listen(engine, "checkin", _note_return)
    event.listen(engine, "checkout", partial(_check_alive, engine.dialect))
    if vectors:
        event.listen(engine, "connect", _register_vector)
    return engine


def _set_up(
    settings: dict[str, str | int], connection: "psycopg.Connection[object]", _record: object
) -> None:
    connection.execute(
        "; ".join(f"SET {name} = {value}" for name, value in settings.items()).encode()
    )
    if not connection.autocommit:
        connection.commit()


def _note_return(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["returned"] = time.monotonic()


def _check_alive(
    dialect: Dialect,
    connection: "psycopg.Connection[object]",
    record: ConnectionPoolEntry,
    _proxy: object,
) -> None:
    """Finds connections that the server has closed, so that the pool replaces them all.

    SQLAlchemy's own check is a round trip before every statement. But an idle connection has
    nothing to say, so one that can be read from was closed; only one that was idle for long may be
    lost without a word, by a firewall for instance.
    """
    idle_s = time.monotonic() - record.info.get("returned", time.monotonic())
    try:
        if _is_closed(connection) or (idle_s > LONG_IDLE_S and not dialect.do_ping(connection)):  # type: ignore[arg-type]
            raise InvalidatePoolError()
    except psycopg.Error:
        raise InvalidatePoolError() from None


def is_lost(connection: Connection) -> bool:
    """Whether the server has closed a connection that is idle."""
    try:
        return _is_closed(driver_connection(connection))
    except psycopg.Error:
        return True


def _is_closed(connection: "psycopg.Connection[Any]") -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _register_vector(connection: "psycopg.Connection[tuple[object, ...]]", _record: object) -> None:
    try:
        register_vector(connection)
    except psycopg.ProgrammingError:
        elsewhere = connection.execute(
            "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'"
        ).fetchone()
        user = connection.info.user
        connection.close()  # SQLAlchemy forgets a connection that fails here
        if elsewhere is None:
            reason = "the database has no pgvector extension; run: patchstore db upgrade"
        else:
            reason = (
                f"pgvector is in the schema {elsewhere[0]}, which is not on the search_path of "
                f"{user}; add it there by ALTER ROLE ... SET search_path"
            )
        raise SchemaError(reason) from None


def driver_connection(connection: Connection) -> "psycopg.Connection[tuple[object, ...]]":
    """The psycopg connection below, for COPY and binary cursors."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


@contextmanager
def store_errors() -> Iterator[None]:
    """Turns driver errors into this room's, `from` the original.

    Raises:
        TransientStoreError: the same transaction may succeed in a moment.
        SchemaError: a table, column or function is missing.
        NotFound, InvalidQuestion: raised by our SQL functions (P0002, 22023), numbers out of range.
        NotPermitted: the role may not do this.
        ConfigurationError: anything else that the database refuses, in one line.
    """
    try:
        yield
    except DBAPIError as error:
        raise translate(error.orig or error) from error
    except (psycopg.Error, PoolTimeout) as error:
        raise translate(error) from error


def translate(error: BaseException) -> Exception:
    """The error of this room that a driver error means."""
    state = getattr(error, "sqlstate", None)
    line = first_line(error)
    if state == TIMEOUT_STATE:
        return StoreTimeout(line)
    if is_transient(error):
        return TransientStoreError(line)
    if state == "42P01" and "patch_feature_s" in line:  # whose partition went with it
        return NotFound(f"the spec has just been removed: {line}", "spec_unknown")
    if state in MISSING_SCHEMA_STATES:
        return SchemaError(f"{line}; run: patchstore db upgrade")
    rule = getattr(getattr(error, "diag", None), "constraint_name", None)
    if state == "P0002":
        kind = SpecBuilding if rule == "spec_building" else NotFound
        return kind(line, rule or "unknown")
    # The driver itself refuses text with a NUL in it, without an SQLSTATE.
    if state in INVALID_QUESTION_STATES or (state is None and isinstance(error, psycopg.DataError)):
        return InvalidQuestion(line, rule or "question_invalid")
    refused = f"the database refused: {line}"
    return NotPermitted(refused) if state == NOT_PERMITTED_STATE else ConfigurationError(refused)


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may succeed when tried again."""
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return state in TRANSIENT_STATES or str(state).startswith(CONNECTION_CLASS)
    # psycopg reports a refused or lost connection without an SQLSTATE.
    return isinstance(
        error, psycopg.OperationalError | psycopg.InterfaceError | InterfaceError | PoolTimeout
    )


def first_line(error: BaseException) -> str:
    """The first line of the server's message, without context and position."""
    diagnostic = getattr(error, "diag", None)
    primary = getattr(diagnostic, "message_primary", None)
    text = primary or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0]
