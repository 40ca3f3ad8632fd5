"""The HTTP side of a tunnel: validates the WebSocket upgrade, and takes the connection over from aiohttp."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
from typing import Final

from aiohttp import hdrs, web

from kdispatch_protocol.errors import KdispatchError
from kdispatch_relay.problems import SpoiledError

__all__ = ["SUBPROTOCOL", "take_over", "upgrade_headers"]

SUBPROTOCOL: Final = "kdispatch.1"

#: Headers that every WebSocket client sends, and the subprotocol; beside Upgrade and Connection (RFC 6455, 4.1).
_HANDSHAKE: Final = (hdrs.SEC_WEBSOCKET_KEY, hdrs.SEC_WEBSOCKET_VERSION, hdrs.SEC_WEBSOCKET_PROTOCOL)
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


def upgrade_headers(request: web.Request) -> dict[str, str]:
    """The response headers of a valid upgrade (RFC 6455, 4.2); raises the problem of an invalid one."""
    headers = request.headers
    offered = [name.strip() for name in headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")]
    key = headers.get(hdrs.SEC_WEBSOCKET_KEY, "")
    connection = [word.strip().lower() for word in headers.get(hdrs.CONNECTION, "").split(",")]
    if headers.get(hdrs.UPGRADE, "").lower() != "websocket" or "upgrade" not in connection:
        asks = hdrs.UPGRADE in headers, "upgrade" in connection
        lost = [name for name, there in zip((hdrs.UPGRADE, hdrs.CONNECTION), asks, strict=True) if not there]
        raise SpoiledError("bad_request", "This address takes WebSocket upgrades only.", lost + _missing(request))
    if hdrs.ORIGIN in headers:
        raise KdispatchError("not_permitted", "Web pages may not open tunnels.")
    if headers.get(hdrs.SEC_WEBSOCKET_VERSION) != "13" or not _is_key(key):
        raise SpoiledError("bad_request", "The WebSocket handshake is malformed.", _missing(request))
    if SUBPROTOCOL not in offered:
        text = f"The subprotocol {SUBPROTOCOL} was not offered."
        raise SpoiledError("version_unsupported", text, _missing(request))
    # The handshake prescribes SHA-1. It only proves that this is a WebSocket server.
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    return {
        hdrs.UPGRADE: "websocket",
        hdrs.CONNECTION: "Upgrade",
        hdrs.SEC_WEBSOCKET_ACCEPT: accept,
        hdrs.SEC_WEBSOCKET_PROTOCOL: SUBPROTOCOL,
    }


def _missing(request: web.Request) -> list[str]:
    return [name for name in _HANDSHAKE if name not in request.headers]


def take_over(request: web.Request) -> bytes:
    """Take the connection of a request that was answered with 101; returns the bytes that followed the request."""
    tail = _Tail()
    http = request.protocol
    http.set_parser(tail)  # type: ignore[arg-type]  # collects the bytes that followed the request
    # Tell aiohttp that the connection ended, without closing it: its parser, request and two tasks take 8 KB a session.
    http.transport = None
    http.connection_lost(None)
    return bytes(tail.data)


def _is_key(key: str) -> bool:
    with contextlib.suppress(binascii.Error, ValueError):
        return len(base64.b64decode(key, validate=True)) == 16
    return False


class _Tail:
    """Takes from aiohttp's protocol the bytes that followed the request."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """aiohttp's parser interface."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """aiohttp's parser interface; called when the connection ends."""
