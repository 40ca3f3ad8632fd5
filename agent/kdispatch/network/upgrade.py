"""The WebSocket handshake with a relay, and other answers to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from typing import Final, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from kdispatch.network.answers import (
    DETAIL_CHARACTERS,
    ENDED,
    NEW_HTTP,
    OLD_HTTP,
    connection_error,
    drop_interim,
    is_http,
    is_web_pages,
    no_http,
    not_a_relay,
    passing,
    strange,
    taken_apart,
    unpacked,
    unreachable,
    with_wait,
)
from kdispatch.network.spoiled import missing_of, origin_added, upgrade_lost
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import HintedError
from kdispatch_protocol.errors import CODES, KdispatchError

__all__ = ["Handshake", "NoUpgradeError", "Refusal"]

_HEAD_MAX: Final = 32 * 1024
_BODY_MAX: Final = 64 * 1024
_SUBPROTOCOL: Final = Subprotocol("kdispatch.1")


class Refusal(HintedError):  # noqa: N818 - an answer that is raised
    """An HTTP answer instead of an upgrade. ``final``: it came from the relay, and trying again is useless."""

    def __init__(self, code: str, text: str, *, final: bool, retry_after: float = 0.0, hint: str = "") -> None:
        super().__init__(code, text, hint=hint or CODES[code].hint)
        self.final = final
        self.retry_after = retry_after


class NoUpgradeError(KdispatchError):
    """No relay answered the upgrade; a plain request may still find one."""


class Handshake(asyncio.Protocol):
    """Sends the upgrade request and reads the answer; what follows it belongs to the session.

    ``done`` has the bytes that followed the answer. It raises ``KdispatchError`` with a code of the network, or
    :class:`Refusal`.
    """

    def __init__(self, relay: RelayUrl) -> None:
        self._relay = relay
        self._http = ClientProtocol(parse_uri(relay.tunnel), subprotocols=[_SUBPROTOCOL], max_size=None)
        self._received = bytearray()
        self._head = b""
        self._behind = 0  # where the body begins
        self._refusing = False  # the answer is not an upgrade: pass all of it to the HTTP parser
        self._transport: asyncio.Transport | None = None
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        # A cast, because uvloop's transports are not subclasses of asyncio's.
        transport = cast("asyncio.Transport", transport)
        self._transport = transport
        self._http.send_request(self._http.connect())
        transport.write(b"".join(self._http.data_to_send()))

    def data_received(self, data: bytes) -> None:
        """Take a part of the answer."""
        if self.done.done():
            return
        self._received += data
        if not self._refusing:
            drop_interim(self._received)
        if not self._received:
            return
        if not is_http(self._received):
            self._fail(no_http(self._relay, bytes(self._received)))
            return
        if not self._refusing:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                if len(self._received) > _HEAD_MAX:
                    self._fail(no_http(self._relay))
                return
            head, rest = bytes(self._received[: end + 4]), bytes(self._received[end + 4 :])
            if head.startswith(OLD_HTTP):
                head = NEW_HTTP + head[len(OLD_HTTP) :]
            if head.split(b" ", 2)[1:2] == [b"101"]:
                self._http.receive_data(head)
                self._upgraded(rest)
                return
            self._refusing, self._head, self._behind, data = True, head, end + 4, head + rest
        self._http.receive_data(data)
        if self._http.handshake_exc is not None or len(self._received) > _BODY_MAX:  # no relay sends that much
            self._refused()

    def eof_received(self) -> None:
        """The answer is complete."""
        if self._refusing and not self.done.done():
            self._http.receive_eof()
            if isinstance(self._http.handshake_exc, InvalidStatus):
                self._refused()
        self._fail(unreachable(self._relay, ENDED))

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more arrives."""
        if isinstance(exc, ssl.SSLError):
            self._fail(connection_error(self._relay, exc))
            return
        self._fail(unreachable(self._relay, ENDED))

    def _upgraded(self, rest: bytes) -> None:
        assert self._transport is not None
        error = self._http.handshake_exc
        if error is not None:
            self._fail(not_a_relay(self._relay, str(error)))
        elif self._http.subprotocol != _SUBPROTOCOL:
            self._fail(not_a_relay(self._relay, self._other_protocol()))
        else:
            self._transport.pause_reading()  # until the session's carrier has taken over
            self.done.set_result(rest)

    def _other_protocol(self) -> str:
        if self._http.subprotocol is None:
            return "its upgrade is answered without Sec-WebSocket-Protocol, which something on the way may take out"
        return "it speaks another WebSocket protocol"

    def _refused(self) -> None:
        """Handle an HTTP answer that isn't an upgrade, from the relay or something else."""
        try:
            status, headers, body = taken_apart(self._relay, self._head + self._received[self._behind :])
        except KdispatchError as no_answer:
            self._fail(no_answer)
            return
        if isinstance(refusal := self._http.handshake_exc, InvalidStatus):
            body = bytes(refusal.response.body or b"")
        # No relay answers with a success here, whatever its text.
        problem = None if 200 <= status < 300 else _problem(unpacked(headers, body))
        after = _seconds(headers.get("retry-after", ""))
        if problem is not None:
            code, text = problem[0], with_wait(*problem, headers)
            if is_web_pages(*problem):
                self._fail(origin_added(self._relay, headers))
                return
            missing = missing_of(headers)
            if missing or code == "bad_request":  # a relay sends the latter for nothing that an agent sends
                self._fail(upgrade_lost(self._relay, missing, headers))
                return
            self._fail(Refusal(code, text, final=not passing(status), retry_after=after))
            return
        error = strange(self._relay, status, headers)
        if passing(status):
            hint = error.hint if isinstance(error, HintedError) else ""
            error = Refusal(error.code, error.text, final=False, retry_after=after, hint=hint)
        self._fail(error)

    def _fail(self, error: KdispatchError) -> None:
        if not self.done.done():
            if type(error) is KdispatchError:
                error = NoUpgradeError(error.code, error.text)
            self.done.set_exception(error)
            self.done.exception()  # mark as retrieved: the caller may have given up meanwhile
            if self._transport is not None:
                self._transport.abort()


def _problem(body: bytes | bytearray) -> tuple[str, str] | None:
    """Code and text of the relay's problem; ``None`` for any other answer."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(body)
        code = content.get("code") if isinstance(content, dict) else None
        if isinstance(code, str) and code in CODES:
            detail = content.get("detail")
            return code, detail[:DETAIL_CHARACTERS] if isinstance(detail, str) else ""
    return None


def _seconds(value: str) -> float:
    return min(float(value), 300.0) if value.isascii() and value.isdigit() else 0.0
