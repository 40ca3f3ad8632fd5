"""The HTTP phase of a connection, until it ends or is handed over to the switch: aiohttp's, with a deadline."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import StreamReader

from kdispatch_protocol.limits import Limits
from kdispatch_relay.door.arrivals import Arrival, Arrivals
from kdispatch_relay.door.screen import TUNNEL, RequestScreen
from kdispatch_relay.problems import problem_response

__all__ = ["COUNTED", "SOURCE", "HttpConnections", "hand_over", "http_options"]

#: The address that a request comes from: the connection's, or the one that a trusted proxy names.
SOURCE: Final = web.RequestKey("source", str)
#: The source that it counts for in rate limits; empty if it is unknown.
COUNTED: Final = web.RequestKey("counted", str)

#: Called with a request and its answer.
Answered = Callable[[web.BaseRequest, web.StreamResponse], None]

_LINGER: Final = 1.0  # seconds in which the rest of a refused body is still read, so that its sender sees the answer
_log = logging.getLogger(__name__)


def http_options(limits: Limits) -> dict[str, Any]:
    """Options of aiohttp's connections here: no access log, and no decompression of bodies."""
    return {
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": limits.keep_alive,
        "lingering_time": _LINGER,
        "logger": _log,
    }


class HttpConnections:
    """Creates HTTP connections for an app whose runner is set up. Requests that ``screen`` refuses stay here."""

    def __init__(
        self,
        runner: web.AppRunner,
        arrivals: Arrivals,
        screen: RequestScreen,
        options: dict[str, Any],
        answered: Answered,
    ) -> None:
        """``answered`` is called with answers that the app does not make."""
        assert runner.server is not None
        self.arrivals = arrivals
        self._answered = answered
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
        connection.more = False
        body = request.content if request.can_read_body else None
        arrival.waits()  # this request may have come directly after another one
        try:
            refusal: web.StreamResponse | None = await self._screen.refusal(cast("web.Request", request), arrival)
            if refusal is None:
                refusal = self._too_many(request, arrival)
            if refusal is not None:
                arrival.works()
                self._answered(request, refusal)
                return refusal
            if request.path != TUNNEL:  # a tunnel's request does not complete the arrival: its HELLO does
                arrival.works()
                if body is not None and not body.is_eof():
                    arrival.waits()  # with a new deadline: a body that arrives too slowly is not handled
                    body.on_eof(arrival.works)
            return await self._app(request)
        finally:
            connection.working = False
            if connection.arrival is arrival:
                connection.rests(body)

    def _too_many(self, request: web.BaseRequest, arrival: Arrival) -> web.StreamResponse | None:
        """Note the source of a request; returns the refusal if that source has too many connections."""
        source = self.arrivals.source_of(arrival, request.headers.getall(hdrs.X_FORWARDED_FOR, []))
        request[SOURCE] = source
        if not arrival.trusted or arrival.is_of(source):
            request[COUNTED] = self.arrivals.counted_for(arrival, source, request.headers)
            return None
        arrival.refused("busy")
        return problem_response("busy", "Too many connections from your address wait for an answer or their HELLO.")


class _HttpConnection(web.RequestHandler):
    __slots__ = ("_arrivals", "_unread", "arrival", "more", "working")

    def __init__(self, server: web.Server, arrival: Arrival, **options: Any) -> None:
        super().__init__(server, **options)
        self.arrival: Arrival | None = arrival  # ``None`` once the connection was handed over
        self.working = False  # on a request
        self.more = False  # data came meanwhile
        self._unread: StreamReader | None = None  # the body of a request that was answered before the body was complete

    def rests(self, body: StreamReader | None) -> None:
        """A request with this body is answered."""
        assert self.arrival is not None
        self.arrival.rests()
        if body is not None and not body.is_eof():
            self._unread = body
        elif body is None and self.more:  # that data belongs to the next request
            self.arrival.waits()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.arrival is not None:
            self.arrival.drop = cast("asyncio.Transport", transport).abort
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not data:
            pass  # aiohttp calls it so to continue with the data it has
        elif self.working:
            self.more = True
        elif self.arrival is not None and self._unread is None:
            self.arrival.waits()
        super().data_received(data)
        if self._unread is not None and self._unread.is_eof():
            self._unread = None

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
        """Answers what is not HTTP. aiohttp would log a trace for each such request, and scanners send them all day."""
        if isinstance(exc, ConnectionError):  # the client is gone; aiohttp then ends the connection silently
            raise exc
        if not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        if self.arrival is not None:
            self.arrival.refused("bad_request")
        response = problem_response("bad_request", "This is not HTTP.", status=HTTPStatus.BAD_REQUEST)
        response.force_close()
        return response


def hand_over(request: web.Request) -> Arrival | None:
    """Hand the request's connection over to the caller; returns its arrival, or ``None`` if it is not counted."""
    connection = request.protocol
    if not isinstance(connection, _HttpConnection):
        return None
    arrival, connection.arrival = connection.arrival, None
    return arrival
