"""A run is alive for as long as it works, whatever happens to its connection."""

import threading
import time

import psycopg
import pytest
from sqlalchemy import Connection, Engine

from db.catalog import open_source
from db.ledger import start_run
from db.specs import StoredSpec
from flows import heartbeat
from flows.heartbeat import Heartbeat


@pytest.mark.parametrize("error", [psycopg.OperationalError("gone"), RuntimeError("unforeseen")])
def test_a_beat_that_fails_is_followed_by_others_on_a_new_connection(
    store: Engine, spec: StoredSpec, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    seen: list[Connection] = []
    enough = threading.Event()

    def renew(connection: Connection, _run_id: int, _term_s: float) -> None:
        seen.append(connection)
        if len(seen) == 1:
            raise error
        enough.set()

    monkeypatch.setattr(heartbeat, "renew_leases", renew)
    run = start_run(store, open_source(store, "file:///beating"), spec)
    with Heartbeat(store, run, term_s=0.03):
        assert enough.wait(30)
    assert seen[0] is not seen[1]


def test_a_run_whose_connection_was_ended_is_alive_again_long_before_the_next_beat(
    store: Engine, spec: StoredSpec
) -> None:
    run = start_run(store, open_source(store, "file:///beating"), spec)
    pid = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {} AND granted"
    with Heartbeat(store, run, term_s=3600.0), store.connect() as admin:
        before = admin.exec_driver_sql(pid.format(run)).scalar_one()
        admin.exec_driver_sql(f"SELECT pg_terminate_backend({before}, 10000)")
        deadline = time.monotonic() + 30
        while (found := admin.exec_driver_sql(pid.format(run)).scalar()) in (None, before):
            assert time.monotonic() < deadline
            admin.rollback()
            time.sleep(0.05)
        assert found
