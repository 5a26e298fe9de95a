"""The least that a service in Python does for a question: what any HTTP costs on this machine.

It reads the same body, asks the same function on the event loop, without a thread between, and
writes the hits: by uvicorn, psycopg and the standard library's json alone. No limits, no tokens, no
log, no checks of what is asked.

    python -P benchmarks/search_least.py DATABASE_URL
"""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import psycopg
import uvicorn
from pgvector import Vector
from pgvector.psycopg import register_vector_async
from psycopg.rows import dict_row

from patchstore.cli.serve import listen

STATEMENT = b"SELECT * FROM patchstore.similar_patches(%s, %s, %s, ef_search => %s)"

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Least:
    """An ASGI application over one store."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._free: list[psycopg.AsyncConnection[dict[str, Any]]] = []

    async def __call__(self, _scope: dict[str, Any], receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        hits = await self._ask(json.loads(body)) if body else []
        content = json.dumps({"exact": bool(hits) and hits[0]["exact"], "hits": hits}).encode()
        headers = [(b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _ask(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        connection = self._free.pop() if self._free else await self._connect()
        vector = Vector(np.array(asked["vector"], np.float32))
        values = (asked["spec"], vector, asked["k"], asked["ef_search"])
        cursor = await connection.cursor(binary=True).execute(STATEMENT, values)
        hits = await cursor.fetchall()
        self._free.append(connection)
        return hits

    async def _connect(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        connection = await psycopg.AsyncConnection.connect(
            self._url, autocommit=True, row_factory=dict_row
        )
        await register_vector_async(connection)
        return connection


if __name__ == "__main__":
    config = uvicorn.Config(Least(sys.argv[1]), log_level="error", lifespan="off", access_log=False)
    with listen("127.0.0.1", 0) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run([listener])
