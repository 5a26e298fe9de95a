"""Tokens, limits, probes and numbers: what an operator relies on."""

import asyncio
import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import httpx
import psycopg
import pytest
from sqlalchemy import Engine

from db import browse
from db.engine import make_engine
from db.errors import NotFound
from patchstore.api import embedder, health, service
from patchstore.api.app import create_app
from patchstore.api.auth import parse_tokens, warn_of_expired
from patchstore.api.problems import RULES
from patchstore.api.settings import ServeSettings
from patchstore.errors import PatchstoreError

READ, ADMIN, OLD = "r" * 32, "a" * 32, "o" * 32


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(shelf, serve):
    tokens = f"read:{READ}, admin:{ADMIN}@2099-01-01 read:{OLD}@2020-01-01T12:00:00+02:00"
    with (
        serve(shelf.engine, ServeSettings(api_tokens=tokens)) as url,
        httpx.Client(base_url=url) as http,
    ):
        yield http


def test_a_token_whose_time_has_ended_is_told_to_the_log_and_never_shown(caplog) -> None:
    warn_of_expired(parse_tokens(f"read:{READ} admin:{OLD}@2020-01-01"))
    assert [record.getMessage() for record in caplog.records] == [
        "entry 2 of PATCHSTORE_API_TOKENS opens nothing: its time ended at 2020-01-01 00:00 UTC"
    ]


@pytest.mark.parametrize(
    ("headers", "status", "rule"),
    [
        ({}, 401, "token_missing"),
        ({"Authorization": f"Basic {READ}"}, 401, "token_missing"),
        (bearer("x" * 32), 401, "token_unknown"),
        (bearer(READ[:-1]), 401, "token_unknown"),
        (bearer(OLD), 401, "token_expired"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/specs"),
        ("GET", "/v1/images/1/picture.jpg"),
        ("GET", "/metrics"),
        ("POST", "/v1/search"),
    ],
)
def test_who_has_no_good_token_is_refused(guarded, method, path, headers, status, rule) -> None:
    answer = guarded.request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["rule"]) == (status, rule)
    assert answer.headers["www-authenticate"].startswith("Bearer")


def test_a_reader_may_ask_and_not_write(guarded) -> None:
    assert guarded.get("/v1/specs", headers=bearer(READ)).status_code == 200
    asked = guarded.post("/v1/search", json={"patch_id": 1}, headers=bearer(READ))
    assert asked.status_code == 200
    refused = guarded.put("/v1/images/1/metadata", json={}, headers=bearer(READ))
    assert (refused.status_code, refused.json()["rule"]) == (403, "scope_missing")


def test_a_body_is_not_looked_at_before_its_token(guarded) -> None:
    for content in (b"{bad", iter([b"x" * 1_000_000] * 21)):
        answer = guarded.put("/v1/images/1/metadata", content=content)
        assert (answer.status_code, answer.json()["rule"]) == (401, "token_missing")


def test_an_administrator_may_do_both(guarded) -> None:
    assert guarded.get("/v1/specs", headers=bearer(ADMIN)).status_code == 200
    assert guarded.put("/v1/images/1/metadata", json={}, headers=bearer(ADMIN)).status_code == 200


def test_probes_and_the_page_need_no_token(guarded) -> None:
    for path in ("/healthz", "/readyz", "/", "/openapi.json"):
        assert guarded.get(path).status_code == 200


def test_the_description_says_that_a_token_is_needed(guarded, http) -> None:
    def schemes(client: httpx.Client) -> dict:
        return client.get("/openapi.json").json()["components"].get("securitySchemes", {})

    assert "HTTPBearer" in schemes(guarded)
    assert schemes(http) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("write:" + READ, "does not begin with read: or admin:"),
        (READ, "does not begin with read: or admin:"),
        ("read:short", "a token of 5 characters"),
        (f"read:{READ}@soon", "'soon', which is no date"),
        (f"read:{READ} read:", "entry 2 of PATCHSTORE_API_TOKENS"),
        (",", "holds no token; unset it, or give one"),
        (" ", "holds no token; unset it, or give one"),
        (f"read:{READ} admin:{READ}", "entry 2 of PATCHSTORE_API_TOKENS has the token of an earl"),
    ],
)
def test_a_malformed_token_is_named_by_its_place_and_never_shown(text, message) -> None:
    with pytest.raises(PatchstoreError, match=message) as refused:
        parse_tokens(text)
    assert READ not in str(refused.value)


def test_settings_never_show_a_token() -> None:
    assert READ not in repr(ServeSettings(api_tokens=f"read:{READ}"))


def test_an_unprotected_service_answers_to_names_of_this_machine_only(http) -> None:
    answer = http.get("/v1/specs", headers={"Host": "rebound.example:80"})
    assert (answer.status_code, answer.json()["rule"]) == (421, "host_unknown")
    assert http.get("/v1/specs", headers={"Host": "LocalHost:80"}).status_code == 200


@pytest.mark.parametrize(("host", "status"), [("127.0.0.2", 200), ("127.0.0.3", 421)])
def test_an_unprotected_service_answers_to_the_address_that_it_listens_to(
    engine: Engine, host: str, status: int
) -> None:
    transport = httpx.ASGITransport(create_app(engine, ServeSettings(), address="127.0.0.2"))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.get(f"http://{host}:8080/healthz")

    assert asyncio.run(ask()).status_code == status


def test_a_request_keeps_its_id(http) -> None:
    assert (
        http.get("/healthz", headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
    )
    made = http.get("/healthz", headers={"X-Request-ID": "not\tmine"}).headers["x-request-id"]
    assert len(made) == 32


def test_a_search_is_refused_by_any_other_method(http) -> None:
    answer = http.get("/v1/search")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["rule"] == "method_not_allowed"


def test_a_head_is_answered_as_a_get_without_its_body(http) -> None:
    for path in ("/", "/healthz", "/v1/images/1", "/v1/images/0", "/v1/patches/1/thumbnail.jpg"):
        asked, told = http.get(path), http.head(path)
        assert (told.status_code, told.content) == (asked.status_code, b"")
        assert told.headers["content-type"] == asked.headers["content-type"]
    assert http.head("/v1/search").status_code == 405


def test_every_request_has_a_line_in_the_log(http, caplog, wait_until) -> None:
    def lines() -> list[str]:
        return [line for line in caplog.messages if "id=mine-" in line]

    with caplog.at_level(logging.INFO, logger="patchstore.api.requests"):
        http.get("/v1/images/1", headers={"X-Request-ID": "mine-2"})
        http.get("/v1/%0Aforged", headers={"X-Request-ID": "mine-3"})
        wait_until(lambda: len(lines()) == 2)  # a line comes after its answer
    assert lines()[0].startswith("GET /v1/images/1 200 ")
    assert lines()[1].startswith("GET /v1/\\nforged 404 ")


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/search"), ("PUT", "/v1/images/1/metadata")]
)
def test_a_body_that_is_too_large_is_refused_before_it_is_read(
    shelf, serve, method, path, chunked
) -> None:
    body = [b"x" * 10_000] * 20
    with serve(shelf.engine, ServeSettings(api_max_upload_mb=0.1)) as url:
        answer = httpx.request(
            method,
            f"{url}{path}",
            content=iter(body) if chunked else b"".join(body),
            headers={"content-type": "application/json"},
        )
    assert (answer.status_code, answer.json()["rule"]) == (413, "body_too_large")


def test_json_is_no_larger_than_what_can_be_asked(http) -> None:
    for count, status in ((100_000, 200), (200_000, 413)):
        body = {"patch_id": 1, "image_ids": [2**62 + number for number in range(count)]}
        assert http.post("/v1/search", json=body).status_code == status


def test_who_goes_away_in_the_middle_of_a_body_is_no_error_of_the_service(
    http, caplog, wait_until
) -> None:
    address = http.base_url.host, http.base_url.port
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\n"
    head += "X-Request-ID: gone\r\nContent-Length: 1000\r\n\r\n{{"
    with caplog.at_level(logging.INFO):
        for kind in ("application/json", "multipart/form-data; boundary=b"):
            with socket.create_connection(address) as connection:
                connection.sendall(head.format(kind).encode())
        wait_until(lambda: sum("id=gone" in line for line in caplog.messages) == 2)
    assert all(" 400 " in line for line in caplog.messages if "id=gone" in line)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: " + 66_000 * b"a",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + 6_600 * b"X-One: 1\r\n",
        b"GET /" + 66_000 * b"a",
    ],
    ids=["header", "headers", "path"],
)
@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_without_end_ends_the_connection(http, before: bytes, sent: bytes) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port), 60) as connection:
        connection.sendall(before)
        if before:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
        for start in range(0, len(sent), 10_000):
            connection.sendall(sent[start : start + 10_000])
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.endswith(b"\r\n\r\nThe head is longer than 65536 bytes.")


@pytest.mark.parametrize("pieces", [1, 2, 7])
@pytest.mark.parametrize("connection", [b"Upgrade, HTTP2-Settings", b"close, Upgrade"])
def test_a_question_that_offers_another_protocol_is_answered_by_this_one(
    http, connection: bytes, pieces: int
) -> None:
    """As Java's HttpClient and `curl --http2` ask; its body ran as a request of its own."""
    body = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = (
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: %s\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        b"Content-Length: %d\r\n\r\n"
    ) % (connection, len(body))
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    sent = head + body + (b"" if b"close" in connection else last)
    with socket.create_connection((http.base_url.host, http.base_url.port), 60) as socket_:
        size = -(-len(sent) // pieces)
        for start in range(0, len(sent), size):
            socket_.sendall(sent[start : start + size])
            time.sleep(0.05)
        answer = b"".join(iter(lambda: socket_.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 400 ") and b"/problems/body_invalid" in answer
    assert b"invalid number" not in answer and b"EOF while parsing" not in answer
    assert answer.count(b"HTTP/1.1 200 OK") == (0 if b"close" in connection else 1)


def test_a_length_of_more_digits_than_python_reads_is_a_length(http) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port), 60) as connection:
        connection.sendall(head + b"Content-Length: " + 5_000 * b"0" + b"2\r\n\r\n{}")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 422 ")


def test_a_form_in_a_charset_that_does_not_fit_is_the_clients_mistake(http) -> None:
    field = b'--XX\r\nContent-Disposition: form-data; name="spec"\r\n\r\ntiny\r\n--XX--\r\n'
    kind = "multipart/form-data; charset=undefined; boundary=XX"
    answer = http.post("/v1/search", content=field, headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["rule"]) == (400, "body_invalid")


def test_chunks_of_a_body_whose_names_have_no_end_end_the_connection(http) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port), 60) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n1;")
        with suppress(ConnectionError):  # it is closed while more is sent
            for _ in range(20):
                connection.sendall(10_000 * b"a")
            assert b"".join(iter(lambda: connection.recv(65_536), b"")) == b""


def test_more_requests_than_may_wait_are_refused_at_once(shelf, serve) -> None:
    settings = ServeSettings(api_max_waiting=2, api_connections=1)
    with serve(shelf.engine, settings) as url, ThreadPoolExecutor(3) as pool:
        with shelf.engine.connect() as blocker:
            blocker.exec_driver_sql("LOCK TABLE patchstore.image_location")
            asked = [pool.submit(httpx.get, f"{url}/v1/images", timeout=60) for _ in range(3)]
            refused = next(as_completed(asked)).result()
        statuses = sorted(each.result().status_code for each in asked)
        assert httpx.get(f"{url}/v1/images").status_code == 200
    assert (refused.status_code, refused.json()["rule"]) == (503, "network_busy")
    assert statuses == [200, 200, 503]


def test_bodies_in_hand_take_so_much_memory_and_no_more(shelf, serve, wait_until) -> None:
    settings = ServeSettings(api_uploads_at_once_mb=0.1)
    head = "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    with serve(shelf.engine, settings) as url, socket.socket() as first:
        first.connect((httpx.URL(url).host, httpx.URL(url).port))
        first.sendall(head.encode() + b" " * 150_000)  # alone, and more than all may have

        def answer() -> httpx.Response:
            return httpx.post(f"{url}/v1/search", json={"patch_id": 1}, timeout=60)

        wait_until(lambda: answer().status_code == 503)
        assert answer().json()["rule"] == "network_busy"
        assert answer().headers["retry-after"] == "1"
        first.sendall(b" " * 50_000)
        assert b" 400 " in first.recv(65_536).partition(b"\r\n")[0]  # no JSON
        wait_until(lambda: answer().status_code != 503)


def test_a_body_that_comes_too_slowly_is_the_senders_matter(shelf, serve) -> None:
    head = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
    head += b"Content-Type: application/json\r\n\r\n{"
    with serve(shelf.engine, ServeSettings(api_request_timeout_s=0.5)) as url:
        address = httpx.URL(url).host, httpx.URL(url).port
        with socket.create_connection(address, 60) as connection:
            connection.sendall(head)
            answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"rule":"body_timeout"' in answer


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: "], ids=["none", "half"])
@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_head_that_does_not_come_is_not_waited_for_without_end(
    shelf, serve, monkeypatch, before: bytes, sent: bytes
) -> None:
    with serve(shelf.engine) as url:
        monkeypatch.setattr("patchstore.api.server.HEAD_S", 0.5)
        address = httpx.URL(url).host, httpx.URL(url).port
        with socket.create_connection(address, 60) as connection:
            connection.sendall(before)
            if before:
                assert connection.recv(65_536).startswith(b"HTTP/1.1 200 OK")
            connection.sendall(sent)
            assert connection.recv(65_536) == b""


def test_a_statement_that_takes_too_long_is_a_timeout(shelf, serve) -> None:
    engine = make_engine(shelf.engine.url, statement_timeout_s=0.1)
    blocker = shelf.engine.connect()
    try:
        blocker.exec_driver_sql("LOCK TABLE patchstore.image_location")
        with serve(engine) as url:
            answer = httpx.get(f"{url}/v1/images")
    finally:
        blocker.close()
        engine.dispose()
    assert (answer.status_code, answer.json()["rule"]) == (504, "timeout")


def test_a_request_that_takes_too_long_is_a_timeout(shelf, serve) -> None:
    blocker = shelf.engine.connect()
    try:
        blocker.exec_driver_sql("LOCK TABLE patchstore.image_location")
        with serve(shelf.engine, ServeSettings(api_request_timeout_s=0.5)) as url:
            answer = httpx.get(f"{url}/v1/images", timeout=60)
    finally:
        blocker.close()
    assert (answer.status_code, answer.json()["rule"]) == (504, "timeout")


def test_a_database_that_is_away_is_said_and_comes_back(own_shelf, serve, allow) -> None:
    with serve(own_shelf.engine) as url:
        allow(False)
        away = httpx.post(f"{url}/v1/search", json={"patch_id": 1})
        ready = httpx.get(f"{url}/readyz")
        alive = httpx.get(f"{url}/healthz")
        allow(True)
        back = httpx.post(f"{url}/v1/search", json={"patch_id": 1})
    assert (away.status_code, away.json()["rule"]) == (503, "store_unavailable")
    assert (ready.status_code, alive.status_code, back.status_code) == (503, 200, 200)


def test_why_a_database_is_away_is_not_told_to_whoever_has_no_token(
    own_shelf, serve, allow, caplog
) -> None:
    with serve(own_shelf.engine, ServeSettings(api_tokens=f"read:{READ}")) as url:
        allow(False)
        ready = httpx.get(f"{url}/readyz")
        allow(True)
    assert (ready.status_code, ready.json()["database"]) == (503, "away")
    assert any("the database is away: " in line and len(line) > 30 for line in caplog.messages)


def test_where_weights_should_be_is_not_told_to_whoever_has_no_token(
    own_shelf, serve, caplog
) -> None:
    with own_shelf.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE patchstore.feature_spec SET weights_source = '/gone.pth'"
        )
    with serve(own_shelf.engine, ServeSettings(api_tokens=f"read:{READ}")) as url:
        ready = httpx.get(f"{url}/readyz")
    assert (ready.status_code, ready.json()["network"]) == (200, "unavailable")
    assert any("/gone.pth is gone" in line for line in caplog.messages)


def test_questions_that_wait_for_connections_do_not_make_the_database_silent(shelf, serve) -> None:
    settings = ServeSettings(api_connections=1)
    with serve(shelf.engine, settings) as url, ThreadPoolExecutor(3) as pool:
        with shelf.engine.connect() as blocker:
            blocker.exec_driver_sql("LOCK TABLE patchstore.image_location")
            asked = [pool.submit(httpx.get, f"{url}/v1/images", timeout=60) for _ in range(2)]
            assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
            assert not any(each.done() for each in asked)
        assert {each.result().status_code for each in asked} == {200}


def test_a_database_that_says_nothing_is_not_waited_for_and_asked_once(
    shelf, serve, monkeypatch, wait_until
) -> None:
    with serve(shelf.engine) as url:
        frozen, asked = threading.Event(), []

        def ask(_engine: object) -> str:
            asked.append(1)
            assert frozen.wait(60)
            return "ok"

        monkeypatch.setattr(service, "PROBE_S", 0.05)
        monkeypatch.setattr(health, "_database", ask)
        silent = [httpx.get(f"{url}/readyz", timeout=60) for _ in range(3)]
        assert len(asked) == 1
        frozen.set()
        wait_until(lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)
    assert {answer.status_code for answer in silent} == {503}
    assert "does not answer within" in silent[0].json()["database"]


def test_questions_that_wait_do_not_make_the_database_silent(
    shelf, serve, monkeypatch, wait_until
) -> None:
    with serve(shelf.engine, ServeSettings(api_connections=1)) as url:
        held, waiting = threading.Event(), []

        def wait(*_arguments: object) -> None:
            waiting.append(1)
            assert held.wait(60)
            raise NotFound("no image", "image_unknown")

        monkeypatch.setattr(browse, "get_image", wait)
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(httpx.get, f"{url}/v1/images/1", timeout=60) for _ in range(2)]
            wait_until(lambda: len(waiting) == 2)
            assert httpx.get(f"{url}/readyz", timeout=60).status_code == 200
            held.set()
            assert {each.result().status_code for each in asked} == {404}


@pytest.fixture
def reader(shelf, server):
    """An engine of a role that may only read."""
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("CREATE ROLE shelf_reader LOGIN IN ROLE patchstore_reader")
        engine = make_engine(shelf.engine.url.set(username="shelf_reader"))
        yield engine
        engine.dispose()
        admin.execute("DROP ROLE shelf_reader")


def test_a_service_that_may_only_read_answers_all_but_what_writes(shelf, serve, reader) -> None:
    image = shelf.ids["0.png"]
    with serve(reader) as url, httpx.Client(base_url=url, timeout=60) as http:
        asked = [
            http.post("/v1/search", json={"patch_id": 1, "k": 3}),
            http.post("/v1/search", files={"image": shelf.content("0.png")}),
            *map(http.get, ("/v1/images", f"/v1/images/{image}/patches", "/v1/specs", "/v1/stats")),
            *map(http.get, ("/v1/patches/1/thumbnail.jpg", "/readyz", "/metrics")),
        ]
        refused = http.put(f"/v1/images/{image}/metadata", json={"shelf": 3})
    assert {answer.status_code for answer in asked} == {200}
    assert "patchstore_up 1.0" in asked[-1].text
    assert (refused.status_code, refused.json()["rule"]) == (403, "store_not_permitted")


def test_prometheus_sees_requests_searches_and_forward_passes(http, shelf) -> None:
    http.post("/v1/search", files={"image": ("a.png", shelf.content("0.png"))})
    answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'patchstore_http_requests_total{method="POST",route="/v1/search",status="200"}',
        'patchstore_search_seconds_count{by="patch",question="image"}',
        "patchstore_forward_patches_count",
    ):
        assert line in answer.text


def test_a_network_that_cannot_be_loaded_leaves_the_other_questions(own_shelf, serve) -> None:
    with own_shelf.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE patchstore.feature_spec SET weights_source = '/gone.pth', "
            "recipe = jsonb_set(recipe, '{weights}', '\"gone.pth\"')"
        )
    picture = {"image": ("a.png", own_shelf.content("0.png"))}
    with serve(own_shelf.engine) as url:
        assert "/gone.pth" in httpx.get(f"{url}/readyz").json()["network"]
        stored = httpx.post(f"{url}/v1/search", json={"patch_id": 1})
        sent = httpx.post(f"{url}/v1/search", files=picture)
        with own_shelf.engine.begin() as connection:
            connection.exec_driver_sql(
                "UPDATE patchstore.feature_spec SET weights_source = 'random:0', "
                "recipe = jsonb_set(recipe, '{weights}', '\"random:0\"')"
            )
        # By its name, for which no spec is kept that was as it was before.
        again = httpx.post(f"{url}/v1/search", files=picture, data={"spec": own_shelf.spec.name})
        assert httpx.get(f"{url}/readyz").json()["network"] == "warm"
    assert (stored.status_code, again.status_code) == (200, 200)
    assert (sent.status_code, sent.json()["rule"]) == (503, "network_unavailable")


def test_whatever_goes_wrong_with_the_network_is_no_waiting_for_ever(
    shelf, serve, monkeypatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("of the driver")

    monkeypatch.setattr(embedder, "load_extractor", fail)
    with serve(shelf.engine) as url:
        assert httpx.get(f"{url}/readyz").json()["network"] == "unavailable: of the driver"


def test_a_network_may_take_longer_to_load_than_a_request(shelf, serve, monkeypatch) -> None:
    load = embedder.load_extractor

    def load_slowly(*arguments: object, **options: object) -> object:
        time.sleep(1)
        return load(*arguments, **options)

    monkeypatch.setattr(embedder, "load_extractor", load_slowly)
    with serve(shelf.engine, ServeSettings(api_request_timeout_s=0.5)) as url:
        assert httpx.get(f"{url}/readyz").json()["network"] == "warm"


def test_every_problem_of_the_service_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
    for name, rule in RULES.items():
        assert f"| {rule.status} | `{name}` | {rule.title} |" in page


def test_nobody_reaches_a_service_from_outside_without_a_token(
    monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    from patchstore.cli.serve import serve as command

    monkeypatch.delenv("PATCHSTORE_API_TOKENS", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(PatchstoreError, match="PATCHSTORE_API_TOKENS"):
            command(host=host, port=0)
