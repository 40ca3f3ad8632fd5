"""The JSON payloads of the rare frames: readable, extensible, checked.

Unknown keys are ignored, so that a later version may add some; a missing or
wrong value is a ``RemoteProtocolError``. Each class states its fields once, with
the check of each beside it.

An open has seven of them written and read, each time with cold caches, where every
function of the json module costs some 5 us: its C parts are called directly here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final, Self

from kdispatch_protocol.errors import KdispatchError, RemoteProtocolError
from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.names import split_service
from kdispatch_protocol.wire.frames import MAX_OFFSET, RESET, Buffer, frame

__all__ = [
    "QUIET",
    "Attach",
    "AttachEntry",
    "Goaway",
    "Hello",
    "Offer",
    "Offered",
    "Open",
    "Opened",
    "Reset",
    "Trying",
    "Welcome",
    "printable",
    "reset_frame",
]

_HEX: Final = "0123456789abcdef"
_CODE: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")

_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_decoder: Final = json.JSONDecoder()
_SERVICE: Final = 127  # characters of a service at most; longer strings are not remembered below

#: A capability of HELLO and WELCOME: the session carries nothing, and may be silent for minutes.
QUIET: Final = "quiet"

Check = Callable[[object], bool]


def printable(text: str, most: int = DEFAULT_LIMITS.text) -> str:
    """``text`` without control characters, cut: whatever a peer says may be shown or logged."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def _is_service(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _SERVICE and _splits(value)


@functools.lru_cache(maxsize=1024)  # opens by the thousand name the same services; 200 KB at most
def _splits(service: str) -> bool:
    try:
        split_service(service)
    except KdispatchError:
        return False
    return True


def _ascii(most: int) -> Check:
    return lambda v: isinstance(v, str) and len(v) <= most and v.isascii() and v.isprintable()


def _any_text(most: int) -> Check:
    return lambda v: isinstance(v, str) and len(v) <= most


def _hex(size: int) -> Check:
    return lambda v: isinstance(v, str) and len(v) == 2 * size and not v.strip(_HEX)


def _whole(least: int, most: int) -> Check:
    return lambda v: type(v) is int and least <= v <= most


def _one_of(*values: str) -> Check:
    return lambda v: isinstance(v, str) and v in values


def _words(most: int) -> Check:
    return lambda v: isinstance(v, list) and len(v) <= most and all(isinstance(w, str) and _ascii(64)(w) for w in v)


def _versions(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 32 and all(type(v) is int for v in value)


def _secrets(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 4 and all(map(_hex(32), value))


def _entries(value: object) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 256 and all(isinstance(entry, dict) for entry in value)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _labels(value: object) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 16
        and all(_ascii(64)(k) and isinstance(v, str) and _ascii(256)(v) for k, v in value.items())
    )


def _must(check: Check, default: Any = MISSING, factory: Any = MISSING) -> Any:
    metadata = {"check": check}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Message:
    def content(self) -> dict[str, object]:
        """The fields by name, those that are ``None`` left out."""
        return {name: value for name, *_ in _rules(type(self)) if (value := getattr(self, name)) is not None}

    def encode(self) -> bytes:
        """The payload: compact JSON."""
        members = []
        for name, key, _, _ in _rules(type(self)):
            value = getattr(self, name)
            if value is not None:
                kind = type(value)
                members.append(key + (_quoted(value) if kind is str else str(value) if kind is int else _encode(value)))
        return ("{" + ",".join(members) + "}").encode()

    @classmethod
    def parse(cls, payload: Buffer) -> Self:
        """Read a payload; raises ``RemoteProtocolError`` for anything but a valid one."""
        try:
            content = _read(str(payload, "utf-8"))
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"A {cls.__name__} payload is not JSON.") from error
        return cls.read(content)

    @classmethod
    def read(cls, content: object) -> Self:
        """The same, from JSON that was read already."""
        if not isinstance(content, dict):
            raise RemoteProtocolError(f"A {cls.__name__} payload is not an object.")
        found = {}
        for name, _, check, needed in _rules(cls):
            value = content.get(name)
            if value is None:
                if needed:
                    raise RemoteProtocolError(f"A {cls.__name__} lacks {name!r}.")
            elif check(value):
                found[name] = value
            else:
                raise RemoteProtocolError(f"A {cls.__name__} has a wrong {name!r}.")
        return cls(**found)


def _read(text: str) -> object:
    """What the JSON says; raises ``ValueError`` or ``RecursionError``."""
    if text[:1] == "{":
        content, end = _decoder.raw_decode(text)
        if end == len(text):
            return content
    return _decoder.decode(text)  # there is white space around it, or it is wrong


#: Name, the same as JSON begins a member with it, check, and whether it must be there.
_Rule = tuple[str, str, Check, bool]
_rules_of: Final[dict[type, tuple[_Rule, ...]]] = {}  # by class, filled at first use


def _rules(cls: type[_Message]) -> tuple[_Rule, ...]:
    """Those of each field: asking the dataclass costs more than the checks do."""
    rules = _rules_of.get(cls)
    if rules is None:
        rules = _rules_of[cls] = tuple(
            (
                item.name,
                f'"{item.name}":',
                item.metadata["check"],
                item.default is MISSING and item.default_factory is MISSING,
            )
            for item in fields(cls)
        )
    return rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(_Message):
    """Agent -> relay, the first frame of a session."""

    versions: list[int] = _must(_versions)
    secret: str = _must(_hex(32))  # the process secret; nobody but the relay sees it
    mode: str = _must(_one_of("new", "replace", "move"), "new")
    predecessors: list[str] = _must(_secrets, factory=list)  # secrets of processes that this one stands in for
    capabilities: list[str] = _must(_words(64), factory=list)
    agent: str = _must(_ascii(128), "")  # program and version, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome(_Message):
    """Relay -> agent, the answer to HELLO."""

    version: int = _must(_whole(1, 1 << 16))
    relay: str = _must(_hex(16))
    credit: int = _must(_whole(0, MAX_OFFSET))  # bytes: the session's credit budget
    spread_ms: int = _must(_whole(0, 1 << 31))  # reconnect after a random part of this
    opens: int = _must(_whole(1, 1 << 20))  # OPENs without an answer that the relay takes
    streams: int = _must(_whole(1, 1 << 20))  # streams that this session may open
    capabilities: list[str] = _must(_words(64), factory=list)
    program: str = _must(_ascii(128), "")  # the relay's program and version, for people


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer(_Message):
    """Host -> relay: this process serves ``service``."""

    service: str = _must(_is_service)
    host: str = _must(_hex(16))
    digest: str = _must(_hex(32))  # SHA-256 of the host's own hst_ token
    token: str | None = _must(_ascii(256), None)
    labels: dict[str, str] = _must(_labels, factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered(_Message):
    """Relay -> host: the offer stands."""

    host: str = _must(_hex(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Open(_Message):
    """Client -> relay -> host: a new stream.

    The client's OPEN carries its token and its ``secret`` for the stream; the
    one that a host sees has neither, but ``key`` (HMAC-SHA256 of the host's
    process id under that secret), the attempt and the client's process id.
    """

    service: str = _must(_is_service)
    uuid: str = _must(_hex(16))
    limit: int = _must(_whole(0, MAX_OFFSET))  # bytes that the host may send at first
    token: str | None = _must(_ascii(256), None)
    pin: str | None = _must(_hex(16), None)
    secret: str | None = _must(_hex(32), None)
    key: str | None = _must(_hex(32), None)
    attempt: int | None = _must(_whole(1, 255), None)
    process: str | None = _must(_hex(16), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trying(_Message):
    """Relay -> client: this host is asked now; early data must name this attempt."""

    attempt: int = _must(_whole(1, 255))
    process: str = _must(_hex(16))
    host: str = _must(_hex(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(_Message):
    """Host -> relay -> client: the host's service took the connection."""

    limit: int = _must(_whole(0, MAX_OFFSET))  # bytes that the client may send at first
    attempt: int = _must(_whole(1, 255))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachEntry(_Message):
    """One stream of an ATTACH. An agent names its own new ``number`` and its ``peer``.

    The relay passes it on to that peer with the process that said it as ``peer``,
    and as ``number`` the receiver's own, or without one: then the receiver is to
    attach as well, or to refuse.
    """

    uuid: str = _must(_hex(16))
    service: str = _must(_is_service)
    role: str = _must(_one_of("client", "host"))  # of the one who says it
    peer: str = _must(_hex(16))  # process id
    number: int | None = _must(_whole(1, (1 << 32) - 1), None)
    received: int = _must(_whole(0, MAX_OFFSET))  # all bytes below arrived
    limit: int = _must(_whole(0, MAX_OFFSET))  # bytes below may be sent
    fin: bool = _must(_flag, default=False)  # the end arrived as well
    opening: bool = _must(_flag, default=False)  # a client that does not know whether its host has opened
    attach: int = _must(_whole(1, MAX_OFFSET))  # counts this stream's ATTACHes of this end
    proof: str = _must(_hex(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach(_Message):
    """End to end, through the relay: streams go on under new numbers. They rest on one token."""

    streams: list[dict[str, object]] = _must(_entries)
    token: str | None = _must(_ascii(256), None)

    @classmethod
    def of(cls, entries: list[AttachEntry], token: str | None = None) -> Attach:
        """The message that says these."""
        return cls(streams=[entry.content() for entry in entries], token=token)

    def entries(self) -> list[AttachEntry]:
        """Its streams; raises ``RemoteProtocolError`` when one is malformed."""
        return [AttachEntry.read(stream) for stream in self.streams]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(_Message):
    """Either way: a stream or an offer ends, with a code of the table and a sentence.

    With ``uuid`` and ``process`` an agent refuses the ATTACH of that process.
    """

    code: str = _must(lambda v: isinstance(v, str) and _CODE.fullmatch(v) is not None)
    text: str = _must(_any_text(8192), "")
    uuid: str | None = _must(_hex(16), None)
    process: str | None = _must(_hex(16), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Goaway(_Message):
    """Relay -> agent: leave within ``move_ms``, and try for ``try_ms`` to reach another; with a final code, end."""

    code: str = _must(lambda v: isinstance(v, str) and _CODE.fullmatch(v) is not None)
    text: str = _must(_any_text(8192), "")
    move_ms: int = _must(_whole(0, 1 << 31), 0)
    try_ms: int = _must(_whole(0, 1 << 31), 0)


def reset_frame(number: int, code: str, text: str) -> bytes:
    """A RESET by number, of either end or of the relay."""
    # Cut and without control characters: a peer's text that grows on its way would end its receiver's session.
    return frame(RESET, number, payload=Reset(code=code, text=printable(text)).encode())
