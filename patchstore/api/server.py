"""The server that an application runs in: uvicorn, with an end to what is no body."""

import logging
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536  # as uvicorn's other parser has it; proxies let less through

logger = logging.getLogger(__name__)


def make_server(app: Any) -> uvicorn.Server:
    """A server of an ASGI application; it logs as the process does, and requests not at all."""
    return uvicorn.Server(
        uvicorn.Config(app, http=LimitedProtocol, log_config=None, access_log=False, lifespan="on")
    )


class LimitedProtocol(HttpToolsProtocol):
    """The parser keeps all of a head, and of what stands around the chunks of a body, until it is
    complete: whoever sends a header without end would fill the memory."""

    _kept = 0  # bytes at most, since the last that led to anything

    def data_received(self, data: bytes) -> None:
        """Ends a connection by which a head comes that is too long."""
        self._kept += len(data)
        super().data_received(data)
        if self._kept <= MAX_HEAD_BYTES or self.transport.is_closing():
            return
        logger.warning("a head of more than %d bytes", MAX_HEAD_BYTES)
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"The head is longer than {MAX_HEAD_BYTES} bytes.")
        else:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._kept = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body came, which has a limit of its own."""
        self._kept = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        self._kept = 0
        super().on_message_complete()
