"""The relay's REST API as typed calls; every failure is a :class:`KdispatchError`.

What aiohttp raises is translated here and nowhere else. Redirects are not followed: a token goes to the address
that was given or nowhere.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler

from kdispatch.answers import (
    CONNECT_SECONDS,
    ENDED,
    TOTAL_SECONDS,
    ServiceInfo,
    connection_error,
    content_of,
    count,
    no_http,
    not_a_relay,
    read,
    read_service,
    service_path,
    text,
    unreachable,
)
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import version
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_protocol.tokens import token_kind

__all__ = ["CreatedService", "HostInfo", "Identity", "RestClient", "ServiceInfo", "SignedUp"]

ANSWER_BYTES: Final = 4 * 1024 * 1024  #: far above a list of ten thousand services; more is no relay's answer

#: As agents make them: in an address nothing else may stand in its place.
_HOST_ID: Final = re.compile(r"[0-9a-f]{1,64}")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SignedUp:
    """A new handle, and its admin token."""

    handle: str
    token: str


@dataclass(frozen=True, slots=True)
class CreatedService:
    """A new service: ``HANDLE/NAME``, who may connect (``public``, …), and the token to host it."""

    service: str
    access: str
    token: str


@dataclass(frozen=True, slots=True)
class HostInfo:
    """One live host: its id, when it came (as the relay writes it), its labels and its open streams."""

    host: str
    since: str
    labels: Mapping[str, str]
    streams: int


@dataclass(frozen=True, slots=True)
class Identity:
    """What a token is: its kind (``admin``, …), its handle, and the service that it is limited to."""

    kind: str
    handle: str
    service: str | None


class RestClient:
    """One relay's REST API; use it as an asynchronous context manager."""

    def __init__(self, dialer: Dialer) -> None:
        self._connector: _Connector | None = None
        self._dialer = dialer
        self._relay = dialer.relay  # the URL that is asked
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._connector = _Connector(self._dialer)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, connect=CONNECT_SECONDS),
            headers={"User-Agent": f"kdispatch/{version()}", "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def sign_up(self, handle: str) -> SignedUp:
        """Take a free handle; ``handle_taken``. The token is told only here."""
        body = {"handle": check_name(handle, "handle")}
        answer = await self._call("POST", "/admins", body=body)
        return self._read(answer, lambda a: SignedUp(text(a, "handle"), _token(a, "adm")))

    async def create_service(self, token: str, name: str) -> CreatedService:
        """Create a service of the admin that ``token`` is; ``service_exists``. Its token is told only here."""
        body = {"name": check_name(name, "service name")}
        answer = await self._call("POST", "/services", token=token, body=body)
        return self._read(answer, lambda a: CreatedService(text(a, "service"), text(a, "access"), _token(a, "svc")))

    async def services(self, token: str) -> tuple[ServiceInfo, ...]:
        """All services of the admin that ``token`` is."""
        answer = await self._call("GET", "/services", token=token)
        return self._read(answer, lambda a: tuple(read_service(entry) for entry in a["services"]))

    async def service(self, service: str, token: str | None = None) -> ServiceInfo:
        """One service, ``HANDLE/NAME``; ``unknown_service``, also where ``token`` gives no right to see it."""
        return self._read(await self._call("GET", service_path(service), token=token), read_service)

    async def hosts(self, service: str, token: str | None = None) -> tuple[HostInfo, ...]:
        """The live hosts of ``HANDLE/NAME``; ``unknown_service`` likewise."""
        answer = await self._call("GET", f"{service_path(service)}/hosts", token=token)
        return self._read(answer, lambda a: tuple(_host(entry) for entry in a["hosts"]))

    async def whoami(self, token: str) -> Identity:
        """What ``token`` is; ``token_refused`` or ``revoked``."""
        answer = await self._call("GET", "/whoami", token=token)
        return self._read(
            answer,
            lambda a: Identity(text(a, "kind"), text(a, "handle"), text(a, "service") if a.get("service") else None),
        )

    async def delete_service(self, token: str, service: str) -> None:
        """Delete ``HANDLE/NAME`` with its token; ``unknown_service``."""
        await self._call("DELETE", service_path(service), token=token, done=True)

    async def withdraw_host(self, token: str, host: str) -> None:
        """Withdraw one live host, by its ``hst_`` token or its service's owner's; ``unknown_host``."""
        if _HOST_ID.fullmatch(host) is None:
            raise KdispatchError("bad_request", f"{host[:80]!r} is no host's id.")
        await self._call("DELETE", f"/hosts/{host}", token=token, done=True)

    async def _call(
        self, method: str, path: str, *, token: str | None = None, body: Any = None, done: bool = False
    ) -> Any:
        """The answer's JSON; with ``done`` nothing, and 204 alone is a yes: no friendly stranger passes for it."""
        assert self._session is not None, "used outside of 'async with'"
        assert self._connector is not None
        try:
            self._relay = await self._connector.chosen()
            async with self._session.request(
                method,
                yarl.URL(self._relay.rest(path), encoded=True),
                json=body,
                headers={} if token is None else {"Authorization": f"Bearer {token}"},
                allow_redirects=False,
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_chunked(64 * 1024):
                    content += chunk
                    if len(content) > ANSWER_BYTES:
                        raise not_a_relay(self._relay, "its answer has no end")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translated(error) from error
        if done and response.status == 204:
            return None
        return content_of(self._relay, response.status, response.headers, content, done=done)

    def _read(self, answer: Any, shape: Callable[[Any], _T]) -> _T:
        return read(self._relay, answer, shape)

    def _translated(self, error: Exception) -> KdispatchError:
        if isinstance(error, TimeoutError):
            limit = CONNECT_SECONDS if isinstance(error, aiohttp.ConnectionTimeoutError) else TOTAL_SECONDS
            return unreachable(self._relay, f"no answer within {limit:g} s")
        if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
            return unreachable(self._relay, ENDED)
        return connection_error(self._relay, error) if isinstance(error, OSError) else no_http(self._relay)


class _Connector(aiohttp.BaseConnector):
    """Gives aiohttp the connections that a dialer makes."""

    def __init__(self, dialer: Dialer) -> None:
        super().__init__()
        self._dialer = dialer
        self._relay: RelayUrl | None = None if dialer.has_choice else dialer.relay
        self._waiting: ResponseHandler | None = None  # the connection by which the choice was made

    async def chosen(self) -> RelayUrl:
        """The URL that is asked: of several one that answers, and then always the same."""
        if self._relay is None:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._relay, _, self._waiting = await self._dialer.open(lambda _: self._factory())
        return self._relay

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:  # noqa: ARG002
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.is_connected():
            return waiting
        assert self._relay is not None
        _, _, protocol = await self._dialer.open_at(self._relay, lambda _: self._factory())
        return protocol


def _token(answer: Any, kind: str) -> str:
    token = text(answer, "token")
    if token_kind(token) != kind:
        raise ValueError("token")
    return token


def _host(answer: Any) -> HostInfo:
    labels = {str(key): str(value) for key, value in answer["labels"].items()}
    return HostInfo(text(answer, "host"), text(answer, "since"), labels, count(answer, "streams"))
