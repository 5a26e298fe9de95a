"""What every request goes through: its id, its limits, its line in the log, its numbers."""

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders

from .metrics import Metrics
from .problems import Problem, problem_of, respond

logger = logging.getLogger("patchstore.api.requests")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_GOOD_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
    "script-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
}


class Requests:
    """Outermost: whatever happens inside, there is one answer, one log line and one count.

    Args:
        app: the application.
        metrics: where requests are counted.
        timeout_s: after which a request is answered with `timeout`.
        max_bytes: of a body.
        max_held: bytes of the bodies of all requests that are in hand.
        hosts: names that a request may be sent to; None: any. A page of another site could
            otherwise reach an unprotected service on this machine by a name of its own that
            resolves to it (DNS rebinding).
    """

    def __init__(
        self,
        app: App,
        metrics: Metrics,
        *,
        timeout_s: float,
        max_bytes: int,
        max_held: int,
        hosts: frozenset[str] | None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._held = _Held(max_held)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(raw=scope["headers"])
        given = headers.get("x-request-id", "")
        request_id = given if _GOOD_ID.fullmatch(given) else os.urandom(16).hex()
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        # A HEAD is a GET whose body the server holds back: load balancers ask so.
        asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        begun = time.perf_counter()
        self._metrics.in_progress.inc()
        try:
            await self._guarded(asked, headers, receive, answer)
        finally:
            self._metrics.in_progress.dec()
            route = getattr(asked.get("route"), "path", "unmatched")
            self._note(scope, route, answer.status, time.perf_counter() - begun, request_id)

    async def _guarded(
        self, scope: Scope, headers: Headers, receive: Receive, answer: "_Answer"
    ) -> None:
        body = _Limited(receive, self._max_bytes, self._held)
        try:
            self._check(headers)
            async with asyncio.timeout(self._timeout_s):
                await self._app(scope, body, answer)
        except Exception as error:
            if answer.complete:  # and in the log
                return
            if answer.status:  # too late for another answer: the connection is cut
                raise
            problem = problem_of(error)
            if problem.rule == "timeout" and body.is_awaited:
                seconds = f"{self._timeout_s:g} s"
                problem = Problem("body_timeout", f"the body did not arrive within {seconds}")
            await respond(problem, scope)(scope, receive, answer)
        finally:
            self._held.bytes -= body.bytes

    def _check(self, headers: Headers) -> None:
        host = re.sub(r":\d+$", "", headers.get("host", "")).lower()
        if self._hosts is not None and host not in self._hosts:
            raise Problem("host_unknown", f"this service is not called {host[:100]!r}")
        length = headers.get("content-length", "0").lstrip("0")
        # Python reads no number of more than 4,300 digits.
        if length.isdigit() and (len(length) > 18 or int(length) > self._max_bytes):
            raise _too_large(self._max_bytes)

    def _note(self, scope: Scope, route: str, status: int, seconds: float, request_id: str) -> None:
        self._metrics.requests.labels(scope["method"], route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        logger.info(
            "%s %s %d %.1f ms id=%s",
            scope["method"],
            scope["path"].encode("unicode_escape").decode(),  # no line of somebody else's in a log
            status,
            1000 * seconds,
            request_id,
        )


class _Answer:
    """Sends, and knows the status that was sent; 0 before."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status = 0
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
        await self._send(message)
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)


class _Held:
    """Bytes of the bodies of all requests that are in hand, and how many there may be."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0


class _Limited:
    """Receives a whole body, of at most so many bytes whatever its header claims.

    Attributes:
        bytes: that came.
        is_awaited: whether more of it is to come, and is waited for at this moment.
    """

    def __init__(self, receive: Receive, max_bytes: int, held: _Held) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._held = held
        self._complete = False
        self.bytes = 0
        self.is_awaited = False

    async def __call__(self) -> Message:
        self.is_awaited = not self._complete
        message = await self._receive()
        self.is_awaited = False
        if message["type"] == "http.disconnect" and not self._complete:
            raise Problem("body_invalid", "the body ended before its end: the client went away")
        self._complete = not message.get("more_body", False)
        count = len(message.get("body", b""))
        self.bytes += count
        self._held.bytes += count
        if self.bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        if self.bytes < self._held.bytes > self._held.most:  # a single one always comes in
            raise Problem(
                "network_busy",
                f"requests of {self._held.bytes / 1e6:.0f} MB are in hand; try again in a second",
            )
        return message


def _too_large(limit: int) -> Problem:
    return Problem("body_too_large", f"the body is larger than {limit / 1e6:g} MB")
