"""Errors of requests to a relay, by stable code: what answered, and what prevented an answer.

Everything that asks a relay takes its errors from here. So one failure has one code and one sentence,
whatever sent the request. Names of headers are in lower case.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from kdispatch.network.spoiled import author, missing_of, origin_added, token_lost
from kdispatch.relay_url import RelayUrl
from kdispatch.setup_error import HintedError, SetupError
from kdispatch_protocol.errors import CODES, KdispatchError
from kdispatch_protocol.names import split_service
from kdispatch_protocol.process.descriptors import SHORT
from kdispatch_protocol.process.system_errors import reasons_of

__all__ = [
    "CONNECT_SECONDS",
    "ENDED",
    "NEW_HTTP",
    "OLD_HTTP",
    "TOTAL_SECONDS",
    "ServiceInfo",
    "connection_error",
    "content_of",
    "count",
    "drop_interim",
    "first_of_each",
    "flag",
    "head_of",
    "is_http",
    "no_http",
    "not_a_relay",
    "passing",
    "read_service",
    "service_path",
    "shaped",
    "strange",
    "text",
    "unreachable",
]

CONNECT_SECONDS: Final = 10.0  #: name look-up, TCP and TLS
TOTAL_SECONDS: Final = 30.0  #: one request with its answer
_DIGITS: Final = 10  # of a number of seconds
_PACKED: Final = frozenset({"gzip", "x-gzip", "deflate"})
_ANY_WINDOW: Final = zlib.MAX_WBITS | 32  # gzip's format or zlib's
_UNPACKED_MAX: Final = 4 * 1024 * 1024  # bytes: no answer of a relay is larger
DETAIL_CHARACTERS: Final = 512  #: characters of a problem's text that are kept

#: Some proxies still send their own errors with 1.0, which makes no difference here; the parser only accepts 1.1.
OLD_HTTP: Final = b"HTTP/1.0 "
NEW_HTTP: Final = b"HTTP/1.1 "

#: RFC 9110, 15.2; 101 is a final answer here.
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}(?: [^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n")

#: The reason if a connection was closed within an answer or before it.
ENDED: Final = "the connection ended before the answer did"

#: For a problem with an unknown code the status decides; other 4xx become ``bad_request``.
_BY_STATUS: Final = {
    401: "token_refused",
    403: "not_permitted",
    404: "unknown_service",
    426: "version_unsupported",
    429: "rate_limited",
    503: "busy",
}

#: Relays' texts for a request with the Origin of a web page.
_WEB_PAGE: Final = frozenset({"Web pages may not use this.", "Web pages may not open tunnels."})

#: Relays' texts for a request without a token.
_NO_TOKEN: Final = frozenset({"This needs a token.", "This needs the code of an invitation."})

#: Answers without a kdispatch code, from a device on the path; all others are ``not_a_relay``.
_IN_BETWEEN: Final[Mapping[int, tuple[str, str]]] = {
    407: ("proxy_auth", "A proxy asks for a name and a password."),
    429: ("rate_limited", "A server in front of the relay reports too many requests."),
    502: ("relay_unreachable", "The server in front of the relay can't reach it (502)."),
    503: ("relay_unreachable", "The server in front of the relay reports that the relay is away (503)."),
    504: ("relay_unreachable", "The server in front of the relay got no answer from it (504)."),
    511: ("captive_portal", "The network asks for a log-in (511)."),
}

#: Hint if the relay's own side reports that the relay is away.
_OPERATOR: Final = "Try again shortly; then ask the relay's operator."

#: After these and after all from 500 up, another try makes sense, whoever sent them.
_PASSING: Final = frozenset({408, 425, 429})

#: First bytes of other servers.
_SPOKEN: Final[Mapping[str, tuple[bytes, ...]]] = {
    "SSH": (b"SSH-",),
    "TLS (https://)": (b"\x15\x03", b"\x16\x03"),
    "what mail and file servers do": (b"220 ", b"220-", b"* OK", b"+OK"),
}

#: TLS alerts (RFC 8446, 6.2) of a server that gets no certificate from us, or does not accept ours.
_WANTS_CERTIFICATE: Final = (
    "CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_UNSUPPORTED_CERTIFICATE",
)  # fmt: skip

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service, and the number of hosts that offer it now; ``pins``: whether a client may choose one."""

    service: str
    access: str
    live_hosts: int
    pins: bool = False


def content_of(
    relay: RelayUrl,
    status: int,
    headers: Mapping[str, str],
    body: bytes | bytearray,
    *,
    done: bool = False,
    token: str | None = None,
) -> dict[str, Any]:
    """The object in a relay's answer. Raises the relay's problem, or the error for something in its place.

    ``done`` says that a relay would have answered nothing, or something else; then an object is not a relay's either.
    ``token`` is the token that was sent.
    """
    try:
        answer = json.loads(unpacked(headers, body))
    except (ValueError, RecursionError):
        answer = None
    if not done and 200 <= status < 300 and isinstance(answer, dict):
        return answer
    if token is not None and _came_without_token(headers, answer):
        raise token_lost(relay, headers)
    if isinstance(answer, dict) and is_web_pages(answer.get("code"), answer.get("detail")):
        raise origin_added(relay, headers)
    raise _problem(relay, status, headers, answer)


def is_web_pages(code: object, detail: object) -> bool:
    """Whether a relay refuses because it saw an ``Origin`` header."""
    return code == "not_permitted" and detail in _WEB_PAGE


def _came_without_token(headers: Mapping[str, str], answer: Any) -> bool:
    """Whether a relay reports that it saw no token; older relays only say so in their text."""
    if not isinstance(answer, dict) or answer.get("code") not in CODES:
        return False
    old = answer["code"] == "token_refused" and answer.get("detail") in _NO_TOKEN
    return old or "Authorization" in missing_of(headers)


def shaped(relay: RelayUrl, status: int, headers: Mapping[str, str], answer: Any, shape: Callable[[Any], _T]) -> _T:
    """Convert an answer with ``shape``. An answer that does not fit is not from a relay, and gets that error."""
    try:
        return shape(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_a_relay(relay, _answered(status, headers)) from error


def read_service(answer: Any) -> ServiceInfo:
    """Read a service from an answer."""
    pins = "pins" in answer and flag(answer, "pins")  # older relays do not send it
    return ServiceInfo(text(answer, "service"), text(answer, "access"), count(answer, "live_hosts"), pins)


def text(answer: Any, key: str) -> str:
    """A member that is a string."""
    value = answer[key]
    if not isinstance(value, str):
        raise TypeError(key)
    return value


def count(answer: Any, key: str) -> int:
    """A member that is a number."""
    value = answer[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(key)
    return value


def flag(answer: Any, key: str) -> bool:
    """A member that is true or false."""
    value = answer[key]
    if not isinstance(value, bool):
        raise TypeError(key)
    return value


def service_path(service: str) -> str:
    """The path of ``HANDLE/NAME``; raises ``bad_name``, because nothing else may get into an address."""
    handle, name = split_service(service)
    return f"/services/{handle}/{name}"


def not_a_relay(relay: RelayUrl, why: str) -> KdispatchError:
    """The error for something other than a relay at the address."""
    return KdispatchError("not_a_relay", f"{relay} is no kdispatch relay: {why}.")


def head_of(relay: RelayUrl, head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer's head, the first of each name; raises ``not_a_relay`` if it is not HTTP.

    Contradictory lengths are left out.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    protocol, _, rest = first.partition(" ")
    if not protocol.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise no_http(relay)
    split = (line.partition(":") for line in lines if ":" in line)
    headers = [(name.strip(), value.strip()) for name, _, value in split]
    found = first_of_each(headers)
    if len({value for name, value in headers if name.lower() == "content-length"}) > 1:
        del found["content-length"]
    return int(rest[:3]), found


def taken_apart(relay: RelayUrl, received: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and the received body of an answer that a parser refused; raises ``not_a_relay``.

    The head identifies who answers, even if its length is wrong.
    """
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        raise no_http(relay, received)
    return *head_of(relay, head + end), body


def unparsed(relay: RelayUrl, received: bytes) -> KdispatchError:
    """The error for an answer that a parser refused, or that is not read further; never a success."""
    try:
        content_of(relay, *taken_apart(relay, received), done=True)
    except KdispatchError as error:
        return error
    raise AssertionError("with done it always raises")


def unpacked(headers: Mapping[str, str], body: bytes | bytearray) -> bytes | bytearray:
    """The body without compression that a device on the path added unasked; unchanged if it can't be decompressed."""
    if headers.get("content-encoding", "").lower() in _PACKED:
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(_ANY_WINDOW).decompress(body, _UNPACKED_MAX)
    return body


def drop_interim(received: bytearray) -> None:
    """Remove complete 1xx heads, which precede the answer."""
    while interim := _INTERIM.match(received):
        del received[: interim.end()]


def is_http(first: bytes | bytearray) -> bool:
    """Whether an HTTP answer may begin with these bytes."""
    return b"HTTP/1.".startswith(first[:7])


def no_http(relay: RelayUrl, first: bytes = b"") -> KdispatchError:
    """The error for another protocol, which ``first``, its first bytes, may identify."""
    spoken = next((name for name, begins in _SPOKEN.items() if first.startswith(begins)), "")
    if first[3:5] == b"\x04\x00" and len(first) >= 9:
        spoken = "HTTP/2"
    return not_a_relay(relay, f"it does not speak HTTP as expected{f', but {spoken}' if spoken else ''}")


def unreachable(relay: RelayUrl, reason: str) -> KdispatchError:
    """The error if nothing answers at the address."""
    return KdispatchError("relay_unreachable", f"{relay.authority} can't be reached: {reason}.")


def connection_error(relay: RelayUrl, error: OSError) -> KdispatchError:
    """The error for a failed TCP or TLS connection."""
    # The system's own error, without those that libraries wrap around it.
    while isinstance(error.__cause__, OSError):
        error = error.__cause__
    words = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    if isinstance(error, ssl.SSLError) and (error.reason or "").endswith(_WANTS_CERTIFICATE):
        return KdispatchError("tls_client_cert", f"{relay.authority} asks for a client certificate ({error.reason}).")
    if isinstance(error, ssl.SSLError):
        return not_a_relay(relay, f"it does not speak TLS as expected ({words})")
    if error.errno in SHORT and not isinstance(error, socket.gaierror):
        text = f"{relay.authority} was not asked: this machine has no room for one more connection ({words})."
        hint = "Raise the limit of open files (ulimit -n, LimitNOFILE= in a unit), or end programs that use them up."
        return SetupError("relay_unreachable", text, hint=hint)
    if isinstance(error, socket.gaierror):
        return unreachable(relay, f"the name cannot be resolved ({words})")
    # By number, because happy eyeballs replaces the system's text with its own.
    return unreachable(relay, reasons_of(error))


def _problem(relay: RelayUrl, status: int, headers: Mapping[str, str], answer: Any) -> KdispatchError:
    code = answer.get("code") if isinstance(answer, dict) else None
    if not isinstance(code, str):
        return strange(relay, status, headers)
    detail = str(answer.get("detail") or "")[:DETAIL_CHARACTERS]
    if code not in CODES:
        detail = f"{detail or 'The relay refused.'} (The relay calls it {code[:64]!r}.)"
        code = _BY_STATUS.get(status, "bad_request" if status < 500 else "internal_error")
    detail = with_wait(code, detail, headers)
    if status >= 500 and isinstance(request_id := answer.get("request_id"), str):
        detail += f" Request id: {request_id[:64]}."
    return KdispatchError(code, detail)


def with_wait(code: str, detail: str, headers: Mapping[str, str]) -> str:
    """The relay's text, or else the code's meaning. For too many requests it adds how long to wait."""
    detail = detail or CODES[code].meaning
    if code != "rate_limited":
        return detail
    wait = headers.get("retry-after", "")
    if wait.isascii() and wait.isdecimal():
        return f"{detail} The relay asks to wait {wait[:_DIGITS]} s."
    return f"{detail} The relay does not say how long to wait."


def first_of_each(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name, the first of each name."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found


def passing(status: int) -> bool:
    """Whether an answer with this status may be temporary."""
    return status in _PASSING or status >= 500


def strange(relay: RelayUrl, status: int, headers: Mapping[str, str]) -> KdispatchError:
    """The error for an answer that is not a relay's: from a device on the path, or from something in its place."""
    by = author(headers)
    if status in _IN_BETWEEN:
        code, words = _IN_BETWEEN[status]
        text = f"{relay.authority}: {words.removesuffix('.')}{by}."
        return HintedError(code, text, hint=_OPERATOR) if code == "relay_unreachable" else KdispatchError(code, text)
    if passing(status):
        text = f"{relay.authority} answers {status}, not from kdispatch itself{by}."
        return HintedError("relay_unreachable", text, hint=_OPERATOR)
    if 200 <= status < 300 and _kind(headers).lower().startswith("text/html"):
        return KdispatchError(
            "captive_portal", f"{relay.authority}: A web page answers instead of a relay ({status}){by}."
        )
    if 300 <= status < 400:
        where = "elsewhere"
        with contextlib.suppress(ValueError):  # the header has no URL
            target = urlsplit(headers.get("location", ""))
            where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else where
        return not_a_relay(relay, f"it redirects to {where[:200]}, which is not followed{by}")
    return not_a_relay(relay, _answered(status, headers))


def _answered(status: int, headers: Mapping[str, str]) -> str:
    return f"it answers with status {status} and {_kind(headers)}{author(headers)}"


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "no type")[:80]
