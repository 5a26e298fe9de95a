"""Hands the requests of the route that is asked most to its endpoint without FastAPI between."""

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from fastapi.routing import APIRoute

from .auth import Gate
from .middleware import App, Receive, Scope, Send

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """In front of the application: one route's requests go past it, all others to it.

    FastAPI's layers, of which an endpoint that reads its own body and makes its own response needs
    none, are a sixth of the processor time of a question about a vector. The application still
    describes the route and refuses other methods of its path. Errors go up to `Requests`, which
    makes the documents of them that the application would.

    Args:
        app: the application.
        route: whose requests are taken.
        endpoint: answers them.
        gate: lets them through, if anybody has to.
    """

    def __init__(self, app: App, route: APIRoute, endpoint: Endpoint, gate: Gate | None) -> None:
        self._app = app
        self._route = route
        self._methods = frozenset(route.methods or ())
        self._endpoint = endpoint
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._takes(scope):
            await self._app(scope, receive, send)
            return
        # As FastAPI notes them: for who counts requests, and for what Starlette's forms raise.
        scope.update(app=self._app, route=self._route)
        request = Request(scope, receive)
        if self._gate is not None:
            await self._gate.admit(request)
        response = await self._endpoint(request)
        await response(scope, receive, send)

    def _takes(self, scope: Scope) -> bool:
        return (
            scope["type"] == "http"
            and scope["path"] == self._route.path
            and scope["method"] in self._methods
        )
