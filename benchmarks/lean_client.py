"""A client of HTTP at next to no cost, for it shares the cores of the service that is measured."""

import socket
from urllib.parse import urlsplit

import httptools

TIMEOUT_S = 60.0


class LeanClient:
    """One connection that is kept, by a socket and the service's own parser in C: 0.08 ms of a
    question's time, where the standard library's client takes 0.24 and httpx 0.64.

    Args:
        url: of a service that says how long its answers are.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._host = parts.netloc
        self._socket = self._connect()

    def request(self, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """All that is sent for a POST, made before it is."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {content_type}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def send(self, request: bytes) -> bytes:
        """The body of the answer.

        Raises:
            RuntimeError: its status is not 200.
        """
        try:
            status, content = self._ask(request)
        except ConnectionError:  # the service closes a connection that was idle for long
            self.close()
            self._socket = self._connect()
            status, content = self._ask(request)
        if status != 200:
            raise RuntimeError(f"{status} {content[:300]!r}")
        return content

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def _connect(self) -> socket.socket:
        connection = socket.create_connection(self._address, TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _ask(self, request: bytes) -> tuple[int, bytes]:
        self._socket.sendall(request)
        answer = _Answer()
        parser = httptools.HttpResponseParser(answer)
        while not answer.complete:
            received = self._socket.recv(65_536)
            if not received:
                raise ConnectionResetError
            parser.feed_data(received)
        return parser.get_status_code(), b"".join(answer.body)


class _Answer:
    """What the parser calls back."""

    def __init__(self) -> None:
        self.body: list[bytes] = []
        self.complete = False

    def on_body(self, part: bytes) -> None:
        self.body.append(part)

    def on_message_complete(self) -> None:
        self.complete = True
