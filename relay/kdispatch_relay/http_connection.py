"""The HTTP side of a connection, until it ends or is handed over to the switch: aiohttp's, with a deadline."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from kdispatch_protocol.limits import Limits
from kdispatch_relay.arrivals import Arrival, Arrivals
from kdispatch_relay.problems import problem_response
from kdispatch_relay.screen import TUNNEL, Screen

__all__ = ["SOURCE", "HttpConnections", "hand_over", "http_options"]

#: The address that a request comes from: the connection's, or what a trusted proxy says.
SOURCE: Final = web.RequestKey("source", str)

_LINGER: Final = 1.0  # seconds in which the rest of a refused body is still read, so that its sender sees the answer
_log = logging.getLogger(__name__)


def http_options(limits: Limits) -> dict[str, Any]:
    """How aiohttp serves a connection here: without a line for each request, and without compressed bodies."""
    return {
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": limits.keep_alive,
        "lingering_time": _LINGER,
        "logger": _log,
    }


class HttpConnections:
    """Makes them, for an app whose runner is set up. What ``screen`` refuses does not get to the app."""

    def __init__(self, runner: web.AppRunner, arrivals: Arrivals, screen: Screen, options: dict[str, Any]) -> None:
        assert runner.server is not None
        self.arrivals = arrivals
        self._server = runner.server
        self._app = self._server.request_handler
        self._server.request_handler = self._answer
        self._screen = screen
        self._options = options
        self._loop = asyncio.get_running_loop()

    def __call__(self, arrival: Arrival) -> asyncio.Protocol:
        """The protocol of a new connection."""
        return _HttpConnection(self._server, arrival, loop=self._loop, **self._options)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast("_HttpConnection", request.protocol)
        arrival = connection.arrival
        assert arrival is not None, "a connection that was handed over has no more requests"
        connection.working = True
        try:
            refusal = await self._screen.refusal(cast("web.Request", request), arrival)
            if refusal is not None:
                arrival.works()
                return refusal
            source = self.arrivals.source_of(arrival, request.headers.getall(hdrs.X_FORWARDED_FOR, []))
            request[SOURCE] = source
            if request.path == TUNNEL:  # this is no use of the connection yet: a HELLO is
                if arrival.trusted and not arrival.is_of(source):
                    arrival.refused("busy")
                    return problem_response("busy", "Too many connections from your address have said no HELLO yet.")
            else:
                arrival.works()
            return await self._app(request)
        finally:
            connection.working = False
            if connection.arrival is arrival:
                arrival.rests()


class _HttpConnection(web.RequestHandler):
    __slots__ = ("_arrivals", "arrival", "working")

    def __init__(self, server: web.Server, arrival: Arrival, **options: Any) -> None:
        super().__init__(server, **options)
        self.arrival: Arrival | None = arrival  # none once it is somebody else's
        self.working = False  # on a request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.arrival is not None:
            self.arrival.drop = cast("asyncio.Transport", transport).abort
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self.working and self.arrival is not None:
            self.arrival.waits()
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        if self.arrival is not None:
            self.arrival.ends()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Aiohttp would write a trace into the log for each request that isn't HTTP, and scanners send them all day."""
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if self.arrival is not None:
            self.arrival.refused("bad_request")
        response = problem_response("bad_request", "This is not HTTP.", status=HTTPStatus.BAD_REQUEST)
        response.force_close()
        return response


def hand_over(request: web.Request) -> Arrival | None:
    """What is known of the request's connection, which is the caller's from now on; ``None`` where nobody counts."""
    connection = request.protocol
    if not isinstance(connection, _HttpConnection):
        return None
    arrival, connection.arrival = connection.arrival, None
    return arrival
