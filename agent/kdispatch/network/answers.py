"""What answers a REST request, a relay or something in its place, and what keeps us from an answer, by stable code.

Everything that asks a relay takes its errors from here, so that one failure has one code and one sentence,
whatever the request was sent with. Names of headers are in lower case.
"""

from __future__ import annotations

import contextlib
import json
import os
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
_ANY_WINDOW: Final = zlib.MAX_WBITS | 32  # gzip's form or zlib's
_UNPACKED_MAX: Final = 4 * 1024 * 1024  # bytes: no answer of a relay has more
DETAIL_CHARACTERS: Final = 512  #: of a problem's text that are kept

#: Some proxies still answer their own errors so, which for us is the same; the parser knows only the new one.
OLD_HTTP: Final = b"HTTP/1.0 "
NEW_HTTP: Final = b"HTTP/1.1 "

#: RFC 9110, 15.2; 101 is an answer.
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1(?!01)[0-9]{2}(?: [^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n")

#: Why there is no answer where a connection was closed in its middle, or before it.
ENDED: Final = "the connection ended before the answer did"

#: A problem whose code this version does not know says by its status what to do; other 4xx are ``bad_request``.
_BY_STATUS: Final = {
    401: "token_refused",
    403: "not_permitted",
    404: "unknown_service",
    426: "version_unsupported",
    429: "rate_limited",
    503: "busy",
}

#: What relays say of a request with the Origin of a web page.
_WEB_PAGE: Final = frozenset({"Web pages may not use this.", "Web pages may not open tunnels."})

#: What relays say of a request without a token.
_NO_TOKEN: Final = frozenset({"This needs a token.", "This needs the code of an invitation."})

#: Answers without a code of ours that something on the way gives; all others are ``not_a_relay``.
_IN_BETWEEN: Final[Mapping[int, tuple[str, str]]] = {
    407: ("proxy_auth", "A proxy asks for a name and a password."),
    429: ("rate_limited", "Something in front of the relay finds the requests too many."),
    502: ("relay_unreachable", "What stands in front of the relay can't reach it (502)."),
    503: ("relay_unreachable", "What stands in front of the relay says that it is away (503)."),
    504: ("relay_unreachable", "What stands in front of the relay got no answer from it (504)."),
    511: ("captive_portal", "The network asks for a log-in (511)."),
}

#: What to do where the relay's own side says that it is away.
_OPERATOR: Final = "Try again shortly; then ask the relay's operator."

#: After these, and after all from 500 on, another try makes sense, whoever gave them.
_PASSING: Final = frozenset({408, 425, 429})

#: What other servers begin with.
_SPOKEN: Final[Mapping[str, tuple[bytes, ...]]] = {
    "SSH": (b"SSH-",),
    "TLS (https://)": (b"\x15\x03", b"\x16\x03"),
    "what mail and file servers do": (b"220 ", b"220-", b"* OK", b"+OK"),
}

#: TLS alerts (RFC 8446, 6.2) by which a server says that it lacks our certificate, or does not accept it.
_WANTS_CERTIFICATE: Final = (
    "CERTIFICATE_REQUIRED", "ALERT_BAD_CERTIFICATE", "ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_EXPIRED",
    "ALERT_CERTIFICATE_REVOKED", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_UNSUPPORTED_CERTIFICATE",
)  # fmt: skip

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service, and how many hosts offer it now; ``pins``: whether a client may choose one."""

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
    """The object that a relay answers with; raises its problem, or what something in its place is taken for.

    With ``done`` a relay would have answered nothing, or otherwise, and an object is no relay's either. ``token`` is
    what was shown.
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
    """Whether a relay says that it saw none; one of before says so only by its words."""
    if not isinstance(answer, dict) or answer.get("code") not in CODES:
        return False
    old = answer["code"] == "token_refused" and answer.get("detail") in _NO_TOKEN
    return old or "Authorization" in missing_of(headers)


def shaped(relay: RelayUrl, status: int, headers: Mapping[str, str], answer: Any, shape: Callable[[Any], _T]) -> _T:
    """Take an answer apart by ``shape``; what does not fit is no relay's, and is called as any other stranger's."""
    try:
        return shape(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise not_a_relay(relay, _answered(status, headers)) from error


def read_service(answer: Any) -> ServiceInfo:
    """The shape of one service."""
    pins = "pins" in answer and flag(answer, "pins")  # which relays did not have at first
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
    """Where ``HANDLE/NAME`` is found; raises ``bad_name``, because in an address nothing else may stand there."""
    handle, name = split_service(service)
    return f"/services/{handle}/{name}"


def not_a_relay(relay: RelayUrl, why: str) -> KdispatchError:
    """Something answers at the address, and it is no relay."""
    return KdispatchError("not_a_relay", f"{relay} is no kdispatch relay: {why}.")


def head_of(relay: RelayUrl, head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers of an answer's head, of each name the first; raises ``not_a_relay`` where it is none.

    Lengths that contradict each other are left out.
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
    """Status, headers and what there is of the body, of an answer that a parser refused; raises ``not_a_relay``.

    A head says enough of who answers, whatever is wrong with the length that it tells.
    """
    head, end, body = received.partition(b"\r\n\r\n")
    if not end:
        raise no_http(relay, received)
    return *head_of(relay, head + end), body


def unparsed(relay: RelayUrl, received: bytes) -> KdispatchError:
    """What an answer is called that a parser refused, or of which no more is read; never a yes."""
    try:
        content_of(relay, *taken_apart(relay, received), done=True)
    except KdispatchError as error:
        return error
    raise AssertionError("with done it always raises")


def unpacked(headers: Mapping[str, str], body: bytes | bytearray) -> bytes | bytearray:
    """The body without the compression that something on the way added unasked; what can't be unpacked as it came."""
    if headers.get("content-encoding", "").lower() in _PACKED:
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(_ANY_WINDOW).decompress(body, _UNPACKED_MAX)
    return body


def drop_interim(received: bytearray) -> None:
    """Remove the whole heads, of 1xx, behind which an answer is yet to come."""
    while interim := _INTERIM.match(received):
        del received[: interim.end()]


def is_http(first: bytes | bytearray) -> bool:
    """Whether an answer may begin with these bytes."""
    return b"HTTP/1.".startswith(first[:7])


def no_http(relay: RelayUrl, first: bytes = b"") -> KdispatchError:
    """What answers speaks another protocol, as the ``first`` bytes of it may show."""
    spoken = next((name for name, begins in _SPOKEN.items() if first.startswith(begins)), "")
    if first[3:5] == b"\x04\x00" and len(first) >= 9:
        spoken = "HTTP/2"
    return not_a_relay(relay, f"it does not speak HTTP as expected{f', but {spoken}' if spoken else ''}")


def unreachable(relay: RelayUrl, reason: str) -> KdispatchError:
    """Nothing answers at the address."""
    return KdispatchError("relay_unreachable", f"{relay.authority} can't be reached: {reason}.")


def connection_error(relay: RelayUrl, error: OSError) -> KdispatchError:
    """The code and the sentence of a failed TCP or TLS connection."""
    # The system's own error, without the frames of libraries around it.
    while isinstance(error.__cause__, OSError):
        error = error.__cause__
    words = (error.strerror or str(error) or type(error).__name__).rstrip(".")
    if isinstance(error, ssl.SSLError) and (error.reason or "").endswith(_WANTS_CERTIFICATE):
        return KdispatchError("tls_client_cert", f"{relay.authority} asks for a client certificate ({error.reason}).")
    if isinstance(error, ssl.SSLError):
        return not_a_relay(relay, f"it does not speak TLS as expected ({words})")
    if error.errno in SHORT and not isinstance(error, socket.gaierror):
        text = f"{relay.authority} was not asked: this machine has no room for one more connection ({words})."
        hint = "Raise the limit of open files (ulimit -n, LimitNOFILE= in a unit), or end what uses it up."
        return SetupError("relay_unreachable", text, hint=hint)
    if isinstance(error, socket.gaierror):
        return unreachable(relay, f"the name cannot be resolved ({words})")
    # By number: the race of addresses puts words of its own in place of the system's.
    return unreachable(relay, os.strerror(error.errno).lower() if error.errno else words)


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
    """What the relay says of itself, or else the code's meaning; of too many requests, how long it asks to wait."""
    detail = detail or CODES[code].meaning
    if code != "rate_limited":
        return detail
    wait = headers.get("retry-after", "")
    if wait.isascii() and wait.isdecimal():
        return f"{detail} The relay asks to wait {wait[:_DIGITS]} s."
    return f"{detail} The relay does not say how long to wait."


def first_of_each(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by their names in lower case, of each name the first."""
    found: dict[str, str] = {}
    for name, value in headers:
        found.setdefault(name.lower(), value)
    return found


def passing(status: int) -> bool:
    """Whether an answer with this status may be another one soon."""
    return status in _PASSING or status >= 500


def strange(relay: RelayUrl, status: int, headers: Mapping[str, str]) -> KdispatchError:
    """What an answer is called that no relay gives: of something on the way, or in the relay's place."""
    by = author(headers)
    if status in _IN_BETWEEN:
        code, words = _IN_BETWEEN[status]
        text = f"{relay.authority}: {words.removesuffix('.')}{by}."
        return HintedError(code, text, hint=_OPERATOR) if code == "relay_unreachable" else KdispatchError(code, text)
    if passing(status):
        text = f"{relay.authority} answers {status}, not from kdispatch itself{by}."
        return HintedError("relay_unreachable", text, hint=_OPERATOR)
    if 200 <= status < 300 and _kind(headers).lower().startswith("text/html"):
        return KdispatchError("captive_portal", f"{relay.authority}: A web page is there, and no relay ({status}){by}.")
    if 300 <= status < 400:
        where = "elsewhere"
        with contextlib.suppress(ValueError):  # what stands there is no URL
            target = urlsplit(headers.get("location", ""))
            where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}" if target.netloc else where
        return not_a_relay(relay, f"it redirects to {where[:200]}, which is not followed{by}")
    return not_a_relay(relay, _answered(status, headers))


def _answered(status: int, headers: Mapping[str, str]) -> str:
    return f"it answers with status {status} and {_kind(headers)}{author(headers)}"


def _kind(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "no type")[:80]
