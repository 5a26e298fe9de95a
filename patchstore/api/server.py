"""The server that an application runs in: uvicorn, with an end to what is no body."""

import asyncio
import logging
import sys
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536  # as uvicorn's other parser has it; proxies let less through
HEAD_S = 30.0  # for a whole head, from its first byte or the connection's start

_OFFER = {b"upgrade", b"http2-settings"}

logger = logging.getLogger(__name__)


def make_server(app: Any) -> uvicorn.Server:
    """A server of an ASGI application; it logs as the process does, and requests not at all."""
    return uvicorn.Server(
        uvicorn.Config(app, http=LimitedProtocol, log_config=None, access_log=False, lifespan="on")
    )


class LimitedProtocol(HttpToolsProtocol):
    """Ends heads that are too long or too slow, and lets requests be that offer another protocol.

    The parser keeps all of a head, and of what stands around the chunks of a body, until it is
    complete: whoever sends a header without end would fill the memory. And after a head with
    `Upgrade: h2c`, as Java's client and `curl --http2` send it, it takes a body for a new request.
    uvicorn waits for ever for the rest of a head, and for the first one of a connection.
    """

    _kept = 0  # bytes at most, since the last that led to anything
    _data = b""  # that came last
    _waiting: asyncio.TimerHandle | None = None  # for a head

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come, and should say what it wants."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """A client has gone."""
        self._let_wait()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_S, self.timeout_keep_alive_handler)

    def _let_wait(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def data_received(self, data: bytes) -> None:
        """Ends a connection by which a head comes that is too long."""
        if self.cycle is None or self.cycle.response_complete:
            self._wait_for_head()
        self._kept += len(data)
        self._data = data
        super().data_received(data)
        self._data = b""
        if self._kept <= MAX_HEAD_BYTES or self.transport.is_closing():
            return
        logger.warning("a head of more than %d bytes", MAX_HEAD_BYTES)
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"The head is longer than {MAX_HEAD_BYTES} bytes.")
        else:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._let_wait()
        self._kept = 0
        if not self._offers_another():  # else it comes again without the offer
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body came, which has a limit of its own."""
        self._kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._kept = 0
        if not self._offers_another():
            super().on_message_complete()

    def _offers_another(self) -> bool:
        """Whether a head asks for a protocol that is not spoken here: a server may go on without
        (RFC 9110, section 7.8)."""
        return bool(self.parser.should_upgrade()) and self._get_upgrade() not in (
            None,
            b"websocket",
        )

    def _unsupported_upgrade_warning(self) -> None:
        """Parses a head again that offered another protocol, without the offer, and what follows.

        Called while `HttpParserUpgrade` is handled, which tells where the head ended.
        """
        raised = sys.exc_info()[1]
        if not isinstance(raised, httptools.HttpParserUpgrade) or not self._offers_another():
            super()._unsupported_upgrade_warning()
            return
        version = self.parser.get_http_version().encode()
        lines = [self.parser.get_method() + b" " + self.url + b" HTTP/" + version]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(each for each in options if each.lower() not in _OFFER)
            if value and name not in _OFFER:
                lines.append(name + b": " + value)
        rest = self._data[raised.args[0] :]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([*lines, b"", rest]))
