"""Connections of HTTP while a relay ends: each request is answered, and then there is no next one."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

__all__ = ["Connections"]

_LOOK: Final = 0.020  # seconds


class Connections:
    """Knows which connections were answered already: those that are idle lose nothing when they are closed."""

    def __init__(self, runner: web.AppRunner, shutdown: float) -> None:
        self._runner = runner
        # By the task that works for the connection: it ends with it, and leaves this.
        self._answered: WeakKeyDictionary[asyncio.Task[Any], web.RequestHandler] = WeakKeyDictionary()
        self._ending = False
        self._shutdown = shutdown
        runner.app.on_response_prepare.append(self._prepared)

    async def end(self) -> None:
        """Close idle connections, and from now on each one behind its next answer."""
        self._ending = True
        answered = list(self._answered.values())
        for connection in answered:
            connection.close()
        await asyncio.gather(*(connection.shutdown(self._shutdown) for connection in answered))

    async def ended(self, seconds: float) -> None:
        """Wait for connections that were not answered yet: behind :meth:`end` these are all there are."""
        server = self._runner.server
        deadline = asyncio.get_running_loop().time() + seconds
        while server is not None and server.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_LOOK)

    def answered(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """An answer that the app does not make is on its way."""
        if self._ending:
            response.force_close()
        else:
            self._answered[request.task] = request.protocol

    async def _prepared(self, request: web.Request, response: web.StreamResponse) -> None:
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return  # an agent's session has an end of its own
        self.answered(request, response)
        if self._ending:
            response.headers[hdrs.CONNECTION] = "close"  # the headers are made already
