"""HTTP connections while a relay ends: each pending request is answered, and then its connection is closed."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakKeyDictionary

from aiohttp import hdrs, web

__all__ = ["Connections"]

_LOOK: Final = 0.020  # seconds


class Connections:
    """Tracks connections that have been answered: they are idle, and lose nothing when they are closed."""

    def __init__(self, runner: web.AppRunner, shutdown: float) -> None:
        self._runner = runner
        # By the task that serves the connection: the entry goes when the task ends.
        self._answered: WeakKeyDictionary[asyncio.Task[Any], web.RequestHandler] = WeakKeyDictionary()
        self._ending = False
        self._shutdown = shutdown
        runner.app.on_response_prepare.append(self._prepared)

    async def end(self) -> None:
        """Close idle connections now, and each other one after its next answer."""
        self._ending = True
        answered = list(self._answered.values())
        for connection in answered:
            connection.close()
        await asyncio.gather(*(connection.shutdown(self._shutdown) for connection in answered))

    async def ended(self, seconds: float) -> None:
        """Wait up to ``seconds`` for connections without an answer so far; after :meth:`end` no others are left."""
        server = self._runner.server
        deadline = asyncio.get_running_loop().time() + seconds
        while server is not None and server.connections and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(_LOOK)

    def answered(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Note an answer that does not come from the app."""
        if self._ending:
            response.force_close()
        else:
            self._answered[request.task] = request.protocol

    async def _prepared(self, request: web.Request, response: web.StreamResponse) -> None:
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            return  # an agent's session ends by itself
        self.answered(request, response)
        if self._ending:
            response.headers[hdrs.CONNECTION] = "close"  # the headers are already complete
