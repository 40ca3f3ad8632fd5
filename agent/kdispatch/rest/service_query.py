"""Asks a relay for one service without aiohttp, which would add 8 MB to an idle agent, and 150 ms to its start.

Only ``GET`` of a service and of its hosts goes this way. All else uses :class:`kdispatch.rest.client.RestClient`, with
the same errors. The connection is kept for the next question, because an agent that waits for a host asks often.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Request, Response
from websockets.uri import parse_uri

from kdispatch.network.answers import (
    CONNECT_SECONDS,
    ENDED,
    NEW_HTTP,
    OLD_HTTP,
    TOTAL_SECONDS,
    ServiceInfo,
    connection_error,
    content_of,
    drop_interim,
    first_of_each,
    is_http,
    no_http,
    read_service,
    service_path,
    shaped,
    unparsed,
    unreachable,
)
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest.answers import MOST_HOSTS, HostInfo, read_hosts, read_page
from kdispatch.rest.listing import Listing, Page
from kdispatch.settings import version
from kdispatch_protocol.errors import KdispatchError

__all__ = ["ServiceQuery"]

ANSWER_BYTES: Final = (
    1024 * 1024
)  #: the most that websockets reads: twice a page of 50 hosts; no relay's answer is larger

_T = TypeVar("_T")


class ServiceQuery:
    """Asks one relay for services, one at a time. Use it as an asynchronous context manager."""

    def __init__(self, dialer: Dialer, token: str | None = None) -> None:
        self._dialer = dialer
        self._token = token
        self._connection: _Connection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    async def service(self, service: str) -> ServiceInfo:
        """One service, ``HANDLE/NAME``; ``unknown_service``, also if the token has no right to see it."""
        return await self._ask(service_path(service), read_service)

    def hosts(self, service: str) -> Listing[HostInfo]:
        """The live hosts of a service; ``unknown_service`` as for :meth:`service`."""

        async def ask(cursor: str | None, _: int | None) -> Page[HostInfo]:
            # Without a limit: the relay's default pages are as large as the most that is read here.
            query = "" if cursor is None else f"?{urlencode({'cursor': cursor})}"
            return await self._ask(
                f"{service_path(service)}/hosts{query}", lambda answer: read_page(answer, read_hosts)
            )

        return Listing(ask, MOST_HOSTS)

    async def _ask(self, path: str, shape: Callable[[Any], _T]) -> _T:
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                relay, response = await self._answer(path)
        except TimeoutError as error:
            self._let_go()
            raise unreachable(self._dialer.relay, f"no answer within {TOTAL_SECONDS:g} s") from error
        except BaseException:
            self._let_go()
            raise
        status, headers = response.status_code, first_of_each(response.headers.raw_items())
        answer = content_of(relay, status, headers, response.body or b"", token=self._token)
        return shaped(relay, status, headers, answer, shape)

    async def _answer(self, path: str) -> tuple[RelayUrl, Response]:
        connection = self._connection
        if connection is not None and not connection.over:
            try:
                return connection.relay, await connection.ask(path, self._token)
            except KdispatchError:
                # A server may close an idle connection at the moment of our question.
                if connection.heard:
                    raise
        self._let_go()
        connection = self._connection = await self._connect()
        return connection.relay, await connection.ask(path, self._token)

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, _, connection = await self._dialer.open(_Connection)
        except TimeoutError as error:
            raise unreachable(self._dialer.relay, f"no answer within {CONNECT_SECONDS:g} s") from error
        return connection

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


class _Connection(asyncio.Protocol):
    """Sends one question after another, and reads the answer to each.

    ``over``: it accepts no more questions. ``heard``: a part of the answer to the last question has arrived.
    """

    def __init__(self, relay: RelayUrl) -> None:
        self.relay = relay
        self._transport: asyncio.Transport | None = None
        self._http: ClientProtocol | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[Response] | None = None
        self.over = False

    @property
    def heard(self) -> bool:
        return bool(self._received)

    async def ask(self, path: str, token: str | None) -> Response:
        """Send one request and wait for its answer; the caller bounds the time."""
        assert self._transport is not None
        # An upgrade request without the upgrade headers: every answer is then a refusal with status and body.
        self._http = ClientProtocol(parse_uri(self.relay.tunnel), max_size=None)
        self._received.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._http.send_request(_request(self.relay, path, token))
        self._transport.write(b"".join(self._http.data_to_send()))
        return await self._answer

    def abort(self) -> None:
        """End the connection at once."""
        self.over = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports are not subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._http is None or self._answer is None or self._answer.done():
            self.abort()  # there was no question
            return
        fed = len(self._received) if len(self._received) >= len(OLD_HTTP) else 0
        self._received += data
        if not fed:
            drop_interim(self._received)
        if len(self._received) > ANSWER_BYTES:
            self._fail(unparsed(self.relay, bytes(self._received)))
            return
        if not is_http(self._received):
            self._fail(no_http(self.relay, bytes(self._received)))
            return
        if len(self._received) < len(OLD_HTTP):
            return
        data = bytes(self._received[fed:])
        if fed == 0 and data.startswith(OLD_HTTP):
            data = NEW_HTTP + data[len(OLD_HTTP) :]
        self._http.receive_data(data)
        if self._http.handshake_exc is not None:
            self._answered(self._http.handshake_exc)

    def eof_received(self) -> None:
        self.over = True
        if self._http is None or self._answer is None or self._answer.done():
            return
        self._http.receive_eof()
        if self._http.handshake_exc is not None and not isinstance(self._http.handshake_exc.__cause__, EOFError):
            self._answered(self._http.handshake_exc)
        else:
            self._fail(unreachable(self.relay, ENDED))

    def connection_lost(self, exc: Exception | None) -> None:
        self.over = True
        self._fail(
            connection_error(self.relay, exc) if isinstance(exc, ssl.SSLError) else unreachable(self.relay, ENDED)
        )

    def _answered(self, outcome: Exception) -> None:
        assert self._answer is not None
        if isinstance(outcome, InvalidStatus):
            self._answer.set_result(outcome.response)
        else:
            self._fail(unparsed(self.relay, bytes(self._received)))

    def _fail(self, error: KdispatchError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.abort()


def _request(relay: RelayUrl, path: str, token: str | None) -> Request:
    url = urlsplit(relay.rest(path))
    headers = Headers({"Host": url.netloc, "User-Agent": f"kdispatch/{version()}", "Accept": "application/json"})
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return Request(f"{url.path}?{url.query}" if url.query else url.path, headers)
