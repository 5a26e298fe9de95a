"""The same question by HTTP, as a vector."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import httpx

from .search_ways import Answer, Ask, K, Prepare, Question

PATH = "/v1/search"


@dataclass(frozen=True)
class Http:
    """`POST /v1/search` of a running service over a connection that is kept, at the least cost to
    the client, which shares the service's cores: what is measured is the service."""

    url: str
    spec: str
    ef_search: int = 100

    @contextmanager
    def open(self) -> Iterator[Prepare]:
        """By the standard library's client, with a ready body."""
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        try:
            yield partial(self._prepare, connection)
        finally:
            connection.close()

    def _prepare(self, connection: HTTPConnection, question: Question) -> Ask:
        body = json.dumps(request(question, self.spec, self.ef_search))

        def ask() -> Answer:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {content[:300]!r}")
            return read(json.loads(content))

        return partial(again, connection, ask)


@dataclass(frozen=True)
class Httpx:
    """The same as most Python programs ask it."""

    url: str
    spec: str
    ef_search: int = 100

    @contextmanager
    def open(self) -> Iterator[Prepare]:
        """A client as `patchstore.client` uses it."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            yield lambda question: partial(self._ask, client, question)

    def _ask(self, client: httpx.Client, question: Question) -> Answer:
        answer = client.post(PATH, json=request(question, self.spec, self.ef_search))
        answer.raise_for_status()
        return read(answer.json())


def again(connection: HTTPConnection, ask: Ask) -> Answer:
    """Asks once more where the service has closed the connection, which was idle for long."""
    try:
        return ask()
    except ConnectionError:
        connection.close()
        return ask()


def request(question: Question, spec: str, ef_search: int) -> dict[str, Any]:
    """The body of a question."""
    body = {"spec": spec, "k": K, "ef_search": ef_search, **question.options}
    return body | {"vector": question.vector.tolist()}


def read(found: dict[str, Any]) -> Answer:
    """What an answer says."""
    return Answer([hit["distance"] for hit in found["hits"]], found["exact"])
