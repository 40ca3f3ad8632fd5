"""The relay's REST API as typed calls; every failure is a :class:`KdispatchError`.

What aiohttp raises, and what answers in a relay's place, is translated here
and nowhere else. Redirects are not followed: a token goes to the address
that was given or nowhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import yarl

from kdispatch.certificates import certificate_error
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import version
from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.names import check_name, split_service
from kdispatch_protocol.tokens import token_kind

__all__ = ["CreatedService", "HostInfo", "Identity", "RestClient", "ServiceInfo", "SignedUp"]

CONNECT_SECONDS: Final = 10.0  #: name look-up, TCP and TLS
TOTAL_SECONDS: Final = 30.0  #: one request with its answer
ANSWER_BYTES: Final = 4 * 1024 * 1024  #: far above a list of ten thousand services; more is no relay's answer
DETAIL_CHARACTERS: Final = 512  #: of a problem's text that are kept

#: A problem whose code this version does not know says by its status what to do; other 4xx are ``bad_request``.
_BY_STATUS: Final = {
    401: "token_refused",
    403: "not_permitted",
    404: "unknown_service",
    426: "version_unsupported",
    429: "rate_limited",
    503: "busy",
}

#: Answers without a code of ours that something on the way gives; all others are ``not_a_relay``.
_IN_BETWEEN: Final = {
    407: ("proxy_auth", "A proxy asks for a name and a password."),
    429: ("rate_limited", "Something in front of the relay finds the requests too many."),
    502: ("relay_unreachable", "What stands in front of the relay can't reach it (502)."),
    503: ("relay_unreachable", "What stands in front of the relay says that it is away (503)."),
    504: ("relay_unreachable", "What stands in front of the relay got no answer from it (504)."),
    511: ("captive_portal", "The network asks for a log-in (511)."),
}

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
class ServiceInfo:
    """A service, and how many hosts offer it now."""

    service: str
    access: str
    live_hosts: int


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

    def __init__(self, relay: RelayUrl) -> None:
        self._relay = relay
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
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
        return self._read(answer, lambda a: SignedUp(_text(a, "handle"), _token(a, "adm")))

    async def create_service(self, token: str, name: str) -> CreatedService:
        """Create a service of the admin that ``token`` is; ``service_exists``. Its token is told only here."""
        body = {"name": check_name(name, "service name")}
        answer = await self._call("POST", "/services", token=token, body=body)
        return self._read(answer, lambda a: CreatedService(_text(a, "service"), _text(a, "access"), _token(a, "svc")))

    async def services(self, token: str) -> tuple[ServiceInfo, ...]:
        """All services of the admin that ``token`` is."""
        answer = await self._call("GET", "/services", token=token)
        return self._read(answer, lambda a: tuple(_service(entry) for entry in a["services"]))

    async def service(self, service: str, token: str | None = None) -> ServiceInfo:
        """One service, ``HANDLE/NAME``; ``unknown_service``, also where ``token`` gives no right to see it."""
        return self._read(await self._call("GET", _path(service), token=token), _service)

    async def hosts(self, service: str, token: str | None = None) -> tuple[HostInfo, ...]:
        """The live hosts of ``HANDLE/NAME``; ``unknown_service`` likewise."""
        answer = await self._call("GET", f"{_path(service)}/hosts", token=token)
        return self._read(answer, lambda a: tuple(_host(entry) for entry in a["hosts"]))

    async def whoami(self, token: str) -> Identity:
        """What ``token`` is; ``token_refused`` or ``revoked``."""
        answer = await self._call("GET", "/whoami", token=token)
        return self._read(
            answer,
            lambda a: Identity(_text(a, "kind"), _text(a, "handle"), _text(a, "service") if a.get("service") else None),
        )

    async def _call(self, method: str, path: str, *, token: str | None = None, body: Any = None) -> Any:
        assert self._session is not None, "used outside of 'async with'"
        try:
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
                        raise self._not_a_relay("its answer has no end")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translated(error) from error
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if 200 <= response.status < 300 and isinstance(answer, dict):
            return answer
        raise self._problem(response.status, response.headers, answer)

    def _read(self, answer: Any, shape: Callable[[Any], _T]) -> _T:
        try:
            return shape(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._not_a_relay("its answer is not what a relay's would be") from error

    def _problem(self, status: int, headers: Mapping[str, str], answer: Any) -> KdispatchError:
        code = answer.get("code") if isinstance(answer, dict) else None
        if not isinstance(code, str):
            return self._foreign(status, headers)
        detail = str(answer.get("detail") or "")[:DETAIL_CHARACTERS]
        if code not in CODES:
            detail = f"{detail or 'The relay refused.'} (The relay calls it {code[:64]!r}.)"
            code = _BY_STATUS.get(status, "bad_request" if status < 500 else "internal_error")
        detail = detail or CODES[code].meaning
        if code == "rate_limited" and (wait := headers.get("Retry-After", "")).isdecimal():
            detail += f" The relay asks to wait {wait} s."
        if status >= 500 and isinstance(request_id := answer.get("request_id"), str):
            detail += f" Request id: {request_id[:64]}."
        return KdispatchError(code, detail)

    def _foreign(self, status: int, headers: Mapping[str, str]) -> KdispatchError:
        if status in _IN_BETWEEN:
            code, text = _IN_BETWEEN[status]
            return KdispatchError(code, f"{self._relay.authority}: {text}")
        if 300 <= status < 400:
            target = urlsplit(headers.get("Location", ""))
            where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else "elsewhere"
            return self._not_a_relay(f"it redirects to {where[:200]}, which is not followed")
        return self._not_a_relay(f"it answers with status {status} and {headers.get('Content-Type', 'no type')[:80]}")

    def _not_a_relay(self, why: str) -> KdispatchError:
        return KdispatchError("not_a_relay", f"{self._relay} is no kdispatch relay: {why}.")

    def _translated(self, error: Exception) -> KdispatchError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return certificate_error(self._relay.authority, error.certificate_error)
        if isinstance(error, aiohttp.ClientSSLError):
            return self._not_a_relay(f"it does not speak TLS as expected ({_cause(error)})")
        if isinstance(error, OSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
            return KdispatchError("relay_unreachable", f"{self._relay.authority} can't be reached: {_failure(error)}.")
        return self._not_a_relay("it does not speak HTTP as expected")


def _failure(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        limit = CONNECT_SECONDS if isinstance(error, aiohttp.ConnectionTimeoutError) else TOTAL_SECONDS
        return f"no answer within {limit:g} s"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the name cannot be resolved ({_cause(error)})"
    return _cause(error) if isinstance(error, OSError) else "the connection ended before the answer did"


def _cause(error: OSError) -> str:
    """The operating system's own words, without aiohttp's and asyncio's frame around them."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    while isinstance(inner.__cause__, OSError):
        inner = inner.__cause__
    if isinstance(inner, ConnectionRefusedError):
        return "connection refused"
    return (inner.strerror or str(inner) or type(inner).__name__).rstrip(".")


def _path(service: str) -> str:
    handle, name = split_service(service)
    return f"/services/{handle}/{name}"


def _text(answer: Any, key: str) -> str:
    value = answer[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def _count(answer: Any, key: str) -> int:
    value = answer[key]
    if not isinstance(value, int):
        raise TypeError(key)
    return value


def _token(answer: Any, kind: str) -> str:
    token = _text(answer, "token")
    if token_kind(token) != kind:
        raise ValueError("token")
    return token


def _service(answer: Any) -> ServiceInfo:
    return ServiceInfo(_text(answer, "service"), _text(answer, "access"), _count(answer, "live_hosts"))


def _host(answer: Any) -> HostInfo:
    labels = {str(key): str(value) for key, value in answer["labels"].items()}
    return HostInfo(_text(answer, "host"), _text(answer, "since"), labels, _count(answer, "streams"))
