"""The same question by HTTP, as a vector."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from .lean_client import LeanClient
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
        """With ready requests."""
        with closing(LeanClient(self.url)) as client:
            yield partial(self._prepare, client)

    def _prepare(self, client: LeanClient, question: Question) -> Ask:
        body = json.dumps(request(question, self.spec, self.ef_search))
        ready = client.request(PATH, body.encode())
        return lambda: read(json.loads(client.send(ready)))


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


def request(question: Question, spec: str, ef_search: int) -> dict[str, Any]:
    """The body of a question."""
    body = {"spec": spec, "k": K, "ef_search": ef_search, **question.options}
    return body | {"vector": question.vector.tolist()}


def read(found: dict[str, Any]) -> Answer:
    """What an answer says."""
    return Answer([hit["distance"] for hit in found["hits"]], found["exact"])
