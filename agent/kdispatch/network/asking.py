"""One HTTP request on its own connection, of whose answer everything is inspected: its head, and who wrote it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from kdispatch.network.answers import ENDED, connection_error, head_of, is_http, no_http, unpacked, unreachable
from kdispatch.network.spoiled import author, missing_of, passed_by
from kdispatch.relay_url import RelayUrl
from kdispatch.settings import version
from kdispatch_protocol.errors import CODES

__all__ = ["Connect", "HttpAnswer", "ask"]

#: Makes a connection with a protocol from the given factory; raises ``KdispatchError`` or ``OSError``.
Connect = Callable[[Callable[[], asyncio.Protocol]], Awaitable[asyncio.Transport]]

_SECONDS: Final = 15.0
_SHOWN: Final = 60  # characters of a media type
_FIRST: Final = 5  # bytes: enough to recognize HTTP, and fewer than any answer has
_HEAD_MAX: Final = 32 * 1024
_BODY_MAX: Final = 64 * 1024
_BODY_SECONDS: Final = 2.0
_MORE_SECONDS: Final = 0.2
_FIRST_MORE: Final = 16  # bytes
_NO_BODY: Final = frozenset({101, 204, 304})
_DIGITS: Final = 10  # of a length: one with more is ignored


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Status, headers (names in lower case), the code of a relay's problem or ``None``, and the seconds it took."""

    status: int
    headers: Mapping[str, str]
    code: str | None
    seconds: float

    @property
    def missing(self) -> list[str]:
        """Headers that the relay did not receive."""
        return missing_of(self.headers) if self.code is not None else []

    @property
    def author(self) -> str:
        """The names, in parentheses, of those that claim to have written and forwarded it; may be empty."""
        return author(self.headers)

    @property
    def passed_by(self) -> str:
        """The names of those that forwarded what the relay wrote."""
        return passed_by(self.headers)

    @property
    def kind(self) -> str:
        """The media type."""
        return self.headers.get("content-type", "no type").partition(";")[0][:_SHOWN]

    def ahead(self, now: datetime) -> float | None:
        """Seconds by which this machine's clock is ahead of the answer's date; ``None`` if that is unknown."""
        try:
            date = parsedate_to_datetime(self.headers["date"])
            # To half a second, because the header has whole seconds.
            return (now - (date if date.tzinfo else date.replace(tzinfo=UTC))).total_seconds() - 0.5
        except (KeyError, ValueError, OverflowError):
            return None


async def ask(relay: RelayUrl, connect: Connect, *, upgrade: bool = False) -> HttpAnswer:
    """Request the tunnel's address without a token. A relay refuses, unless ``upgrade`` is set.

    Raises ``KdispatchError`` with a code of the network.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_HEAD_MAX)
    transport: asyncio.Transport | None = None
    try:
        async with asyncio.timeout(_SECONDS):
            transport = await connect(lambda: asyncio.StreamReaderProtocol(reader))
            began = loop.time()
            transport.write(_request(relay, upgrade=upgrade))
            first = await reader.readexactly(_FIRST)
            if not is_http(first):
                raise no_http(relay, first + await _more(reader))
            status, headers = head_of(relay, first + await reader.readuntil(b"\r\n\r\n"))
            while 100 <= status < 200 and status != 101:  # RFC 9110, 15.2: the answer follows
                status, headers = head_of(relay, await reader.readuntil(b"\r\n\r\n"))
            seconds = loop.time() - began
            body = b"" if status in _NO_BODY else await _body(reader, headers)
    except TimeoutError as error:
        raise unreachable(relay, f"it takes the connection, but says nothing within {_SECONDS:g} s") from error
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise unreachable(relay, ENDED) from error
    except asyncio.LimitOverrunError as error:
        raise no_http(relay) from error
    except OSError as error:  # raised by TLS: some servers refuse a client only after the handshake
        raise connection_error(relay, error) from error
    finally:
        if transport is not None:
            transport.abort()
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = _unchunked(body)
    code = None if 200 <= status < 300 else _code(unpacked(headers, body))  # a success does not come from a relay
    return HttpAnswer(status, headers, code, seconds)


def _request(relay: RelayUrl, *, upgrade: bool) -> bytes:
    url = urlsplit(relay.rest("/tunnel"))
    lines = [f"GET {url.path} HTTP/1.1", f"Host: {url.netloc}", f"User-Agent: kdispatch-doctor/{version()}"]
    if upgrade:
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
        lines += [f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Protocol: kdispatch.1"]
    else:
        lines += ["Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


async def _more(reader: asyncio.StreamReader) -> bytes:
    """More bytes that have arrived or arrive at once."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MORE_SECONDS):
            return await reader.read(_FIRST_MORE)
    return b""


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    length = headers.get("content-length", "")
    size = min(int(length), _BODY_MAX) if length.isdecimal() and len(length) < _DIGITS else _BODY_MAX
    body = b""
    # The end may be invisible on a connection that is kept open with a wrong length.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_BODY_SECONDS):
            while len(body) < size and (piece := await reader.read(size - len(body))):
                body += piece
            if length.isdecimal() and len(body) < size:
                raise asyncio.IncompleteReadError(body, size)
    return body


def _unchunked(body: bytes) -> bytes:
    """Decode a chunked body (RFC 9112, 7.1), as far as it can be read."""
    found = bytearray()
    while body:
        size, _, rest = body.partition(b"\r\n")
        try:
            count = int(size.partition(b";")[0], 16)
        except ValueError:
            break
        if count <= 0:
            break
        found += rest[:count]
        body = rest[count + 2 :]
    return bytes(found)


def _code(body: bytes | bytearray) -> str | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = content.get("code") if isinstance(content, dict) else None
    return code if isinstance(code, str) and code in CODES else None
