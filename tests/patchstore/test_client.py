"""What the client sends and what it makes of answers; a transport plays the service."""

import ast
import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from patchstore import client as module
from patchstore.client import (
    ConnectionFailed,
    Hit,
    NotFound,
    NotReady,
    PatchstoreClient,
    PatchstoreError,
    ProblemError,
    Unauthorized,
)

ANSWER = {
    "spec": "default",
    "metric": "cosine",
    "exact": True,
    "question": {
        **{"image_ids": [3], "patch_id": 17, "box": [0, 0, 224, 224]},
        **{"width": None, "height": None, "vector": [0.5, 1.0]},
    },
    "hits": [
        {
            **{"patch_id": 91, "image_id": 8, "uri": "/photos/b.jpg", "box": [112, 0, 224, 224]},
            **{"scale": 1.0, "distance": 0.0812, "metadata": {"shelf": 3}, "matched": None},
            **{"thumbnail": "/v1/patches/91/thumbnail.jpg", "new_in_version_9": 1},
        }
    ],
    "took_ms": 4,
}
IMAGE = {
    **{"image_id": 8, "uri": "/photos/b.jpg", "width": 640, "height": None, "size_bytes": 9},
    **{"sha256": "ab", "metadata": {}, "picture": "/v1/images/8/picture.jpg", "colour": "red"},
    **{"first_seen": "2026-11-24T12:00:00Z", "last_seen": "2026-11-24T12:00:01.5+00:00"},
}


class Service:
    """Answers every request with the same, or with what a function gives; remembers them."""

    def __init__(self, answer: Any, status: int = 200, **headers: str) -> None:
        self.answer, self.status, self.headers = answer, status, headers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answer(request) if callable(self.answer) else self.answer
        if isinstance(answer, bytes):
            return httpx.Response(self.status, content=answer, headers=self.headers)
        return httpx.Response(self.status, json=answer, headers=self.headers)

    @property
    def body(self) -> Any:
        """The JSON of the only request."""
        (request,) = self.requests
        assert request.headers["Content-Type"] == "application/json"
        return json.loads(request.content)

    @property
    def form(self) -> dict[str, bytes]:
        """The fields of the only request's form."""
        (request,) = self.requests
        head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
        parts = message_from_bytes(head + request.content).get_payload()
        assert isinstance(parts, list)
        return {
            str(part.get_param("name", header="Content-Disposition")): part.get_payload(decode=True)
            for part in parts
        }


Open = Callable[..., tuple[PatchstoreClient, Service]]


@pytest.fixture
def open_client() -> Iterator[Open]:
    """A client of a service that answers so."""
    clients = []

    def open_(answer: Any = ANSWER, status: int = 200, **headers: str) -> Any:
        service = Service(answer, status, **headers)
        clients.append(PatchstoreClient(transport=httpx.MockTransport(service)))
        return clients[-1], service

    yield open_
    for client in clients:
        client.close()


def test_it_is_one_file_of_httpx_and_the_standard_library() -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    names = {
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module if node.level == 0 else "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert {str(n).partition(".")[0] for n in names} - sys.stdlib_module_names == {"httpx"}


def test_an_answer_is_read_and_what_is_new_in_it_ignored(open_client: Open) -> None:
    client, _ = open_client()
    answer = client.search(patch_id=17)
    assert (answer.spec, answer.metric, answer.exact) == ("default", "cosine", True)
    assert answer.question.box == (0, 0, 224, 224)
    assert (answer.question.image_ids, answer.question.vector) == ((3,), (0.5, 1.0))
    assert answer.hits == [
        Hit(
            **{"patch_id": 91, "image_id": 8, "uri": "/photos/b.jpg", "box": (112, 0, 224, 224)},
            **{"scale": 1.0, "distance": 0.0812, "metadata": {"shelf": 3}, "matched": None},
            thumbnail="/v1/patches/91/thumbnail.jpg",
        )
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.spec = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("question", "sent"),
    [
        ({"patch_id": 17}, {"patch_id": 17}),
        ({"vector": [1, 2.5]}, {"vector": [1.0, 2.5]}),
        ({"vector": np.array([1, 2.5], np.float32)}, {"vector": [1.0, 2.5]}),
        ({"place": ("/a.jpg", 112, 0)}, {"place": {"uri": "/a.jpg", "x": 112, "y": 0}}),
        ({"place": (3, 112, 0)}, {"place": {"image_id": 3, "x": 112, "y": 0}}),
    ],
)
def test_a_vector_or_a_stored_patch_goes_as_json(
    open_client: Open, question: dict[str, Any], sent: dict[str, Any]
) -> None:
    client, service = open_client()
    client.search(**question)
    defaults = {"k": 10, "by": "patch", "other_images": False, "exact": False, "merge": False}
    assert service.body == {**defaults, "with_vector": False, **sent}
    assert str(service.requests[0].url) == "http://127.0.0.1:8080/v1/search"


def test_every_option_goes_along(open_client: Open) -> None:
    client, service = open_client()
    options: dict[str, Any] = {
        **{"spec": "s", "k": 3, "by": "image", "other_images": True, "filter": {"shelf": 3}},
        **{"prefix": "/p", "image_ids": [1, 2], "touching": (0, 0, 5, 5), "max_distance": 0.5},
        **{"ef_search": 40, "exact": True, "merge": True, "with_vector": True},
    }
    client.search(patch_id=1, **options)
    assert service.body == {**options, "patch_id": 1, "touching": [0, 0, 5, 5]}


def test_numbers_may_be_numpys(open_client: Open) -> None:
    client, service = open_client()
    client.search(patch_id=np.int64(1), k=np.int64(3), max_distance=np.float32(0.5))  # type: ignore[arg-type]
    assert (service.body["patch_id"], service.body["k"], service.body["max_distance"]) == (
        1,
        3,
        0.5,
    )


@pytest.mark.parametrize("kind", ["bytes", "path", "file"])
def test_a_picture_goes_as_a_form(open_client: Open, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "query.jpg"
    path.write_bytes(b"\xff\xd8 pixels")
    image: Any = {"bytes": path.read_bytes(), "path": path, "file": io.BytesIO(path.read_bytes())}
    client, service = open_client()
    client.search(
        image=image[kind],
        region=(100, 50, 224, 224),
        consistent=True,
        filter={"shelf": 3},
        image_ids=[1, 2],
        touching=(0, 0, 5, 5),
        max_distance=0.25,
    )
    assert service.form == {
        **{"image": b"\xff\xd8 pixels", "region": b"100,50,224,224", "consistent": b"true"},
        **{"filter": b'{"shelf": 3}', "image_ids": b"[1, 2]", "touching": b"0,0,5,5"},
        **{"max_distance": b"0.25", "k": b"10", "by": b"patch", "other_images": b"false"},
        **{"exact": b"false", "merge": b"false", "with_vector": b"false"},
    }


def test_a_name_is_no_picture(open_client: Open) -> None:
    client, service = open_client()
    name: Any = "query.jpg"
    with pytest.raises(TypeError, match=r"image is the str 'query\.jpg'; give a Path"):
        client.search(image=name)
    assert service.requests == []


def test_a_vector_that_is_none_is_never_sent(open_client: Open) -> None:
    client, service = open_client()
    for vector in ([1.0, math.nan], np.full(3, np.inf)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            client.search(vector=vector)
    with pytest.raises(ValueError, match="one row of numbers"):
        client.search(vector=np.ones((2, 3)))
    assert service.requests == []


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"patch_id": 1, "vector": [1.0]},
        {"image": b"x", "place": ("/a", 0, 0)},
        {"patch_id": 1, "region": (0, 0, 9, 9)},
        {"vector": [1.0], "consistent": True},
    ],
)
def test_what_is_no_question_is_never_sent(open_client: Open, question: dict[str, Any]) -> None:
    client, service = open_client()
    with pytest.raises(ValueError, match="give "):
        client.search(**question)
    assert service.requests == []


def test_the_pages_of_images_are_fetched_as_they_are_needed(open_client: Open) -> None:
    def page(request: httpx.Request) -> Any:
        after = int(request.url.params.get("after", 0))
        images = [{**IMAGE, "image_id": after + n} for n in (1, 2)]
        return {"images": images, "next": after + 2 if after < 4 else None}

    client, service = open_client(page)
    images = client.images(prefix="/p h", filter={"shelf": 3})
    assert service.requests == []
    first = next(images)
    assert (first.image_id, first.width, first.height) == (1, 640, None)
    assert first.first_seen == datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert len(service.requests) == 1
    assert [image.image_id for image in images] == [2, 3, 4, 5, 6]
    assert [r.url.params.get("after") for r in service.requests] == [None, "2", "4"]
    assert {r.url.params["filter"] for r in service.requests} == {'{"shelf": 3}'}
    assert {r.url.params["prefix"] for r in service.requests} == {"/p h"}


def test_the_rest_asks_its_paths(open_client: Open) -> None:
    client, service = open_client(IMAGE)
    assert client.image(8).sha256 == "ab"
    assert client.set_metadata(8, {"shelf": 3}).image_id == 8
    service.answer = b"jpeg"
    assert (client.picture(8, side=64), client.thumbnail(91)) == (b"jpeg", b"jpeg")
    service.answer = {"sources": 1, "specs": []}
    assert client.stats() == {"sources": 1, "specs": []}
    box = {"patch_id": 1, "image_id": 8, "box": [0, 0, 4, 4], "scale": 1.0, "thumbnail": "/t"}
    service.answer = {"spec": "s", "patches": [box]}
    assert client.patches(8, spec="s")[0].box == (0, 0, 4, 4)
    counts = {"images": 1, "patches": 9, "pending": 0, "failed": 0, "indexed": False}
    spec = {"name": "s", "digest": "d", "dim": 4, "metric": "l2", "recipe": {}, **counts}
    service.answer = {"specs": [spec]}
    assert client.specs()[0].patches == 9
    assert client.ready()
    assert [f"{r.method} {r.url.raw_path.decode()}" for r in service.requests] == [
        "GET /v1/images/8",
        "PUT /v1/images/8/metadata",
        "GET /v1/images/8/picture.jpg?side=64",
        "GET /v1/patches/91/thumbnail.jpg?side=224",
        "GET /v1/stats",
        "GET /v1/images/8/patches?spec=s",
        "GET /v1/specs",
        "GET /readyz",
    ]
    assert json.loads(service.requests[1].content) == {"shelf": 3}


def problem(status: int, rule: str) -> dict[str, Any]:
    return {
        **{"type": f"/problems/{rule}", "title": "No", "status": status, "detail": "why"},
        **{"rule": rule, "request_id": "r1"},
    }


@pytest.mark.parametrize(
    ("status", "rule", "kind"),
    [
        (422, "k_range", ProblemError),
        (401, "token_missing", Unauthorized),
        (403, "scope_missing", Unauthorized),
        (404, "spec_unknown", NotFound),
        (409, "spec_building", NotReady),
        (503, "network_busy", NotReady),
        (504, "timeout", ProblemError),
    ],
)
def test_a_problem_is_an_error_with_what_the_service_said(
    open_client: Open, status: int, rule: str, kind: type[ProblemError]
) -> None:
    told = json.dumps(problem(status, rule)).encode()
    headers = {"Content-Type": "application/problem+json", "Retry-After": "5"}
    client, service = open_client(told, status, **headers)
    with pytest.raises(PatchstoreError) as raised:
        client.search(patch_id=1)
    error = raised.value
    assert type(error) is kind
    assert isinstance(error, ProblemError)
    assert (error.status, error.rule, error.title) == (status, rule, "No")
    assert (error.detail, error.request_id, error.retry_after_s) == ("why", "r1", 5.0)
    assert str(error) == "No: why"
    assert len(service.requests) == 1  # no retries


def test_a_problem_that_is_cut_off_is_a_problem_without_a_rule(open_client: Open) -> None:
    client, _ = open_client(b'{"title": "N', 502, **{"Content-Type": "application/problem+json"})
    with pytest.raises(ProblemError, match="Bad Gateway: "):
        client.stats()


def test_a_problem_that_is_no_object_is_a_problem_without_a_rule(open_client: Open) -> None:
    client, _ = open_client([1], 502, **{"Content-Type": "application/problem+json"})
    with pytest.raises(ProblemError, match="Bad Gateway: "):
        client.stats()


def test_a_proxys_page_is_a_problem_without_a_rule(open_client: Open) -> None:
    client, _ = open_client(b"<h1>Bad\nGateway</h1>", 502, **{"Content-Type": "text/html"})
    with pytest.raises(ProblemError, match="Bad Gateway: <h1>Bad Gateway</h1>") as raised:
        client.stats()
    assert (raised.value.status, raised.value.rule, raised.value.retry_after_s) == (502, "", None)


@pytest.mark.parametrize("answer", [b"<html>", {"hits": 3}, {"images": []}, [1]])
def test_another_service_at_this_address_is_told_apart(open_client: Open, answer: Any) -> None:
    client, _ = open_client(answer)
    for ask in (lambda: client.search(patch_id=1), lambda: client.image(1), client.specs):
        with pytest.raises(ProblemError, match="not an answer of patchstore"):
            ask()


def test_not_ready_is_no_error(open_client: Open) -> None:
    client, _ = open_client({"status": "waiting"}, 503)
    assert client.ready() is False


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.InvalidURL("")]
)
def test_a_service_that_cannot_be_reached_is_one_kind_of_error(error: Exception) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    with (
        PatchstoreClient("http://nowhere:1", transport=httpx.MockTransport(fail)) as client,
        pytest.raises(ConnectionFailed, match="GET http://nowhere:1/readyz") as raised,
    ):
        client.ready()
    assert raised.value.__cause__ is error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("token", ["", "se\ncret", "secr\u00e4t"])
def test_what_is_no_token_is_refused_and_not_printed(token: str) -> None:
    with pytest.raises(ValueError, match="the token is empty or holds what no token does"):
        PatchstoreClient(token=token)


@pytest.mark.parametrize(
    "question",
    [{"image": b"x", "region": (0.5, 0, 9, 9)}, {"place": (1, 0.7, 0)}, {"place": (1, 0, 0, 0)}],
)
def test_no_other_place_is_asked_about_than_was_given(
    open_client: Open, question: dict[str, Any]
) -> None:
    client, service = open_client()
    with pytest.raises((TypeError, ValueError)):
        client.search(**question)
    assert service.requests == []


def test_the_token_goes_with_every_request_and_into_no_text() -> None:
    service = Service({"specs": []})
    transport = httpx.MockTransport(service)
    with PatchstoreClient(
        "https://host/base/", token="secret-token\n", transport=transport
    ) as client:
        client.specs()
        assert "secret-token" not in repr(client)
    (request,) = service.requests
    assert request.headers["Authorization"] == "Bearer secret-token"
    assert str(request.url) == "https://host/base/v1/specs"
