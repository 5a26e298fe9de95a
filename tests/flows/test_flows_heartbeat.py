"""A run is alive for as long as it works, whatever happens to its connection."""

import threading

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
