"""The same question by HTTP, as a vector."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from .search_ways import Answer, Ask, K, Question


@dataclass(frozen=True)
class Http:
    """`POST /v1/search` of a running service, over a connection that is kept."""

    url: str
    spec: str
    ef_search: int = 100

    @contextmanager
    def open(self) -> Iterator[Ask]:
        """A client as `patchstore.client` uses it."""
        with httpx.Client(base_url=self.url, timeout=60) as client:
            yield lambda question: self._ask(client, question)

    def _ask(self, client: httpx.Client, question: Question) -> Answer:
        body = {"spec": self.spec, "k": K, "ef_search": self.ef_search, **question.options}
        answer = client.post("/v1/search", json=body | {"vector": question.vector.tolist()})
        answer.raise_for_status()
        found = answer.json()
        return Answer([hit["distance"] for hit in found["hits"]], found["exact"])
