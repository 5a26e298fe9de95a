"""`patchstore serve`: answer questions by HTTP."""

import ipaddress
import logging
import socket
from contextlib import suppress
from typing import Annotated

import typer

from patchstore.errors import PatchstoreError

from .console import say


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8080,
) -> None:
    """Answer questions by HTTP, and serve the page.

    Listens to this machine only, unless PATCHSTORE_API_TOKENS says who may ask.
    """
    from db.engine import make_engine
    from db.server import database_url
    from extractor.allocator import keep_freed_memory
    from patchstore.api.app import create_app
    from patchstore.api.server import make_server
    from patchstore.api.settings import ServeSettings
    from patchstore.store import open_store

    settings = ServeSettings()
    if not _is_loopback(host) and not settings.api_tokens.get_secret_value():
        raise PatchstoreError(
            f"--host {host} would let everybody who reaches this machine ask; set "
            "PATCHSTORE_API_TOKENS (such as read:$(openssl rand -hex 32)), or listen on 127.0.0.1"
        )
    keep_freed_memory(large_pages=True)
    open_store()
    engine = make_engine(
        database_url(),
        connections=settings.api_connections,
        statement_timeout_s=settings.api_statement_timeout_s,
        wait_s=settings.api_request_timeout_s,
        autocommit=True,
    )
    app = create_app(engine, settings, address=_shown(host))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # Ctrl-C is how it ends; uvicorn has let go of everything by then, and says so.
    with suppress(KeyboardInterrupt), listen(host, port) as listener:
        say(f"http://{_shown(host)}:{listener.getsockname()[1]} · stop with Ctrl-C")
        make_server(app).run([listener])
    engine.dispose()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises PatchstoreError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named; with it on, every answer
    # waits 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise PatchstoreError(
            f"cannot listen on {_shown(host)}:{port}: {error.strerror or error}; "
            "give another --port or --host"
        ) from error
    return listener
