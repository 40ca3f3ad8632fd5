"""The relay's REST API as typed calls; every failure is a :class:`KdispatchError`.

aiohttp's exceptions are translated here and nowhere else. Redirects are not followed, so a token is sent only to
the given address.
"""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlencode

import aiohttp
import yarl
from aiohttp.client_proto import ResponseHandler

from kdispatch.network.answers import (
    CONNECT_SECONDS,
    ENDED,
    TOTAL_SECONDS,
    connection_error,
    content_of,
    first_of_each,
    is_http,
    no_http,
    service_path,
    shaped,
    strange,
    unparsed,
    unreachable,
)
from kdispatch.network.dialer import Dialer
from kdispatch.relay_url import RelayUrl
from kdispatch.rest import answers as read
from kdispatch.rest.answers import (
    MOST_HOSTS,
    AcceptedInvite,
    AuditEvent,
    AuditPage,
    ClientInfo,
    CreatedInvite,
    CreatedService,
    CreatedToken,
    HostInfo,
    Identity,
    InviteInfo,
    RotatedService,
    ServiceInfo,
    SignedUp,
    TokenInfo,
    TokenName,
)
from kdispatch.rest.listing import Listing, Page
from kdispatch.settings import load_settings, version
from kdispatch_protocol.errors import KdispatchError
from kdispatch_protocol.names import check_name
from kdispatch_protocol.process.system_errors import errno_of

__all__ = [
    "AcceptedInvite",
    "AuditEvent",
    "AuditPage",
    "ClientInfo",
    "CreatedInvite",
    "CreatedService",
    "CreatedToken",
    "HostInfo",
    "Identity",
    "InviteInfo",
    "Listing",
    "Page",
    "RestClient",
    "RotatedService",
    "ServiceInfo",
    "SignedUp",
    "TokenInfo",
    "TokenName",
]

ANSWER_BYTES: Final = 4 * 1024 * 1024  #: twice the largest page (200 hosts with 16 labels); no relay's answer is larger

_MOST: Final = 1000  # entries on one page, the most that relays return
#: Errors of an established connection that the other end closed.
_BROKEN: Final = frozenset({errno.ECONNRESET, errno.EPIPE})
_FIRST: Final = 16  #: first bytes of an answer, which identify the protocol
_HEAD_MAX: Final = 32 * 1024  #: bytes of an answer that are kept, to name the sender of an unreadable one

#: The format of ids from relays and agents. Nothing else may get into an address.
_ID: Final = re.compile(r"[0-9a-f]{1,64}")

_T = TypeVar("_T")


# More than 25 methods: one of three or four lines for each route.
class RestClient:
    """One relay's REST API. Use it as an asynchronous context manager, in one event loop.

    ``relay`` is a URL or a dialer; by default the current setting is used (``KDISPATCH_RELAY``, or what
    ``kdispatch sign-up`` remembered). ``token`` is sent with each request, and may be changed. Services are named
    ``HANDLE/NAME``, times are in seconds.
    """

    def __init__(self, relay: str | Dialer | None = None, *, token: str | None = None) -> None:
        self.token = token
        self._dialer = relay if isinstance(relay, Dialer) else Dialer.of(load_settings(relay=relay))
        self._connector: _Connector | None = None
        self._relay = self._dialer.relay  # the URL in use
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._connector = _Connector(self._dialer)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=aiohttp.ClientTimeout(total=TOTAL_SECONDS, connect=CONNECT_SECONDS),
            headers={
                "User-Agent": f"kdispatch/{version()}",
                "Accept": "application/json",
                "Accept-Encoding": "gzip, deflate",
            },
            auto_decompress=False,  # a wrong Content-Encoding would otherwise make the answer unreadable
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    # --- accounts and tokens ------------------------------------------------------------------

    async def sign_up(self, handle: str, *, code: str | None = None) -> SignedUp:
        """Take a free handle; ``handle_taken``. Some relays require a ``code``. Only this answer contains the token."""
        body = {"handle": check_name(handle, "handle")}
        return await self._ask(read.read_signed_up, "POST", "/admins", body, token=code)

    async def whoami(self) -> Identity:
        """Return what the token is; ``token_refused`` or ``revoked``."""
        return await self._ask(read.read_identity, "GET", "/whoami")

    async def create_token(
        self, name: str, purpose: str = "admin", *, service: str | None = None, expires: float | None = None
    ) -> CreatedToken:
        """Make another token: an ``admin``'s, or one to ``host`` or ``connect`` to ``service``.

        ``service`` is the NAME of one of the admin's services. The token expires after ``expires`` seconds. Only this
        answer contains it.
        """
        body = _given(name=name, service=service, expires=_whole(expires)) | {"for": purpose}
        return await self._ask(read.read_created_token, "POST", "/tokens", body)

    def tokens(self, *, service: str | None = None) -> Listing[TokenInfo]:
        """The tokens of the admin, or those for ``service``, a NAME of the admin's; newest first."""
        return self._list(read.read_tokens, "/tokens", service=service)

    async def revoke_token(self, token_id: str) -> None:
        """Revoke a token by its id, and end everything that uses it. ``unknown_token``, or ``last_token``."""
        await self._tell("DELETE", f"/tokens/{_id(token_id, 'a token')}")

    async def audit(
        self, *, service: str | None = None, before: int | None = None, limit: int | None = None
    ) -> AuditPage:
        """Who did what in the admin's account, newest first; optionally for ``service``, a NAME of the admin's."""
        return await self._ask(
            read.read_audit_page, "GET", f"/audit{_query(service=service, before=before, limit=limit)}"
        )

    def events(self, *, service: str | None = None) -> Listing[AuditEvent]:
        """All pages of :meth:`audit`, with its ``before`` as the cursor."""

        async def ask(cursor: str | None, limit: int | None) -> Page[AuditEvent]:
            before = None if cursor is None else int(cursor)
            page = await self.audit(service=service, before=before, limit=limit)
            return Page(page.events, None if page.next is None else str(page.next))

        return Listing(ask, _MOST)

    # --- services -----------------------------------------------------------------------------

    async def create_service(self, name: str, *, access: str = "public", pins: bool = False) -> CreatedService:
        """Create a service for the admin; ``service_exists``. Only this answer contains its token.

        ``access`` says who may connect: with ``public`` everybody, with ``token`` holders of a token for it. With
        ``pins`` a client may choose its host.
        """
        body = _given(name=check_name(name, "service name"), access=access, pins=pins or None)
        return await self._ask(read.read_created_service, "POST", "/services", body)

    def services(self) -> Listing[ServiceInfo]:
        """The services of the admin, by name."""
        return self._list(read.read_services, "/services")

    async def service(self, service: str) -> ServiceInfo:
        """One service; ``unknown_service``, also if the token has no right to see it."""
        return await self._ask(read.read_service, "GET", service_path(service))

    async def update_service(self, service: str, *, access: str | None = None, pins: bool | None = None) -> ServiceInfo:
        """Change who may connect, or whether clients may choose a host; ``unknown_service``."""
        return await self._ask(read.read_service, "PATCH", service_path(service), _given(access=access, pins=pins))

    async def rotate_service(self, service: str, *, overlap: float = 0) -> RotatedService:
        """Give a service a new token, told only here; the old one stays valid for ``overlap`` seconds."""
        body = {"overlap": _whole(overlap)}
        return await self._ask(read.read_rotated_service, "POST", f"{service_path(service)}/rotate", body)

    async def delete_service(self, service: str) -> None:
        """Delete a service with its tokens, and end everything that uses them. ``unknown_service``."""
        await self._tell("DELETE", service_path(service))

    def hosts(self, service: str) -> Listing[HostInfo]:
        """The live hosts of a service; ``unknown_service`` as for :meth:`service`."""
        return self._list(read.read_hosts, f"{service_path(service)}/hosts", most=MOST_HOSTS)

    def clients(self, service: str) -> Listing[ClientInfo]:
        """The agents that are connected to one of the admin's services."""
        return self._list(read.read_clients, f"{service_path(service)}/clients")

    async def withdraw_host(self, host: str) -> None:
        """Withdraw one live host, by its ``hst_`` token or its service's owner's; ``unknown_host``."""
        await self._tell("DELETE", f"/hosts/{_id(host, 'a host')}")

    # --- invitations --------------------------------------------------------------------------

    async def create_invite(
        self, service: str, purpose: str, *, uses: int = 1, expires: float = 86400, name: str | None = None
    ) -> CreatedInvite:
        """Create an invitation to ``host`` or ``connect``: a code for ``uses`` uses, valid for ``expires`` seconds."""
        body = _given(uses=uses, expires=_whole(expires), name=name) | {"for": purpose}
        return await self._ask(read.read_created_invite, "POST", f"{service_path(service)}/invites", body)

    def invites(self, service: str) -> Listing[InviteInfo]:
        """The invitations of one of the admin's services, newest first."""
        return self._list(read.read_invites, f"{service_path(service)}/invites")

    async def revoke_invite(self, service: str, invite_id: str, *, tokens: bool = False) -> None:
        """Revoke an invitation by its id, and with ``tokens`` the tokens made from it; ``unknown_invite``."""
        path = f"{service_path(service)}/invites/{_id(invite_id, 'an invitation')}"
        await self._tell("DELETE", path + _query(tokens="true" if tokens else "false"))

    async def accept_invite(self, code: str, *, name: str | None = None) -> AcceptedInvite:
        """Exchange a code for a token; only this answer contains the token. ``invite_spent``."""
        return await self._ask(read.read_accepted_invite, "POST", "/invites/accept", _given(name=name), token=code)

    # --- one request --------------------------------------------------------------------------

    def _list(
        self, shape: Callable[[Any], tuple[_T, ...]], path: str, *, most: int = _MOST, service: str | None = None
    ) -> Listing[_T]:
        async def ask(cursor: str | None, limit: int | None) -> Page[_T]:
            query = _query(service=service, limit=limit, cursor=cursor)
            return await self._ask(lambda answer: read.read_page(answer, shape), "GET", f"{path}{query}")

        return Listing(ask, most)

    async def _ask(
        self, shape: Callable[[Any], _T], method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> _T:
        token = token or self.token
        status, headers, content = await self._call(method, path, token, body)
        answer = content_of(self._relay, status, headers, content, token=token)
        return shaped(self._relay, status, headers, answer, shape)

    async def _tell(self, method: str, path: str) -> None:
        """Expect no answer but status 204: another server's success must not count."""
        status, headers, content = await self._call(method, path, self.token)
        if status != 204:
            content_of(self._relay, status, headers, content, done=True, token=self.token)

    async def _call(
        self, method: str, path: str, token: str | None, body: Any = None
    ) -> tuple[int, dict[str, str], bytearray]:
        """Status, headers and body of the answer; raises ``KdispatchError`` if there is no readable answer."""
        if self._session is None or self._connector is None:
            raise RuntimeError("a RestClient is used inside of 'async with'")
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
                        raise strange(self._relay, response.status, first_of_each(response.headers.items()))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._translated(error) from error
        return response.status, first_of_each(response.headers.items()), content

    def _translated(self, error: Exception) -> KdispatchError:
        assert self._connector is not None
        first = self._connector.first
        if not is_http(first):
            return no_http(self._relay, first)
        if isinstance(error, TimeoutError):
            limit = CONNECT_SECONDS if isinstance(error, aiohttp.ConnectionTimeoutError) else TOTAL_SECONDS
            return unreachable(self._relay, f"no answer within {limit:g} s")
        broken = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError)
        if broken or (isinstance(error, OSError) and errno_of(error) in _BROKEN):
            return unreachable(self._relay, ENDED)
        if isinstance(error, OSError):
            return connection_error(self._relay, error)
        return unparsed(self._relay, self._connector.head)


class _ListeningResponse(ResponseHandler):
    """Keeps an answer's first bytes, and aborts if they are not HTTP: the parser would wait for the line's end."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.first = b""
        self.head = b""  # of the newest answer, with what came in the same reads

    def data_received(self, data: bytes) -> None:
        if len(self.first) < _FIRST:
            self.first = (self.first + data)[:_FIRST]
            if not is_http(self.first) and self.transport is not None:
                self.transport.abort()
                return
        if data.startswith(b"HTTP/1."):
            self.head = b""
        if len(self.head) < _HEAD_MAX and b"\r\n\r\n" not in self.head:
            self.head += data[:_HEAD_MAX]
        super().data_received(data)


class _Connector(aiohttp.BaseConnector):
    """Gives aiohttp the connections that a dialer makes."""

    def __init__(self, dialer: Dialer) -> None:
        super().__init__()
        self._dialer = dialer
        self._relay: RelayUrl | None = None if dialer.has_choice else dialer.relay
        self._waiting: _ListeningResponse | None = None  # the connection that chose the URL
        self._newest: _ListeningResponse | None = None

    @property
    def first(self) -> bytes:
        """The first bytes of the first answer on the newest connection."""
        return self._newest.first if self._newest is not None else b""

    @property
    def head(self) -> bytes:
        """The head of the newest answer on the newest connection."""
        return self._newest.head if self._newest is not None else b""

    def _make(self) -> _ListeningResponse:
        self._newest = _ListeningResponse(asyncio.get_running_loop())
        return self._newest

    async def chosen(self) -> RelayUrl:
        """The URL in use: the first of several that answers, and the same from then on."""
        if self._relay is None:
            async with asyncio.timeout(CONNECT_SECONDS):
                self._relay, _, self._waiting = await self._dialer.open(lambda _: self._make())
        return self._relay

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:  # noqa: ARG002
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.is_connected():
            return waiting
        assert self._relay is not None
        _, _, protocol = await self._dialer.open_at(self._relay, lambda _: self._make())
        return protocol


def _given(**members: Any) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _query(**parameters: str | int | None) -> str:
    given = _given(**parameters)
    return f"?{urlencode(given)}" if given else ""


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _id(text: str, whose: str) -> str:
    if _ID.fullmatch(text) is None:
        raise KdispatchError("bad_request", f"{text[:80]!r} is no id of {whose}.")
    return text
