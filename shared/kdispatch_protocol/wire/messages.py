"""The JSON payloads of the rare frames: readable, extensible, checked.

Unknown keys are ignored, so that later versions may add keys. A missing or wrong
value raises ``RemoteProtocolError``. Each class lists its fields once, with the
check beside each.

One open writes and reads seven of these messages, each time with cold caches.
Each function of the json module then costs some 5 us, so its C parts are called
directly here.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final, Self, TypeVar, dataclass_transform

from kdispatch_protocol.errors import KdispatchError, RemoteProtocolError
from kdispatch_protocol.limits import DEFAULT_LIMITS
from kdispatch_protocol.names import split_service
from kdispatch_protocol.wire.frames import MAX_OFFSET, RESET, Buffer, frame

__all__ = [
    "QUIET",
    "STREAM",
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
_SERVICE: Final = 127  # longest service name in characters; longer strings are not cached below

#: A capability in HELLO and WELCOME: the session carries nothing, and may be silent for minutes.
QUIET: Final = "quiet"
#: The kind of flow that an OPEN without ``kind`` asks for. There is no other yet.
STREAM: Final = "stream"

Check = Callable[[object], bool]


def printable(text: str, most: int = DEFAULT_LIMITS.text) -> str:
    """``text`` cut and without control characters, so that a peer's text can be shown and logged."""
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def _is_service(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _SERVICE and _splits(value)


@functools.lru_cache(maxsize=1024)  # thousands of opens name the same services; 200 KB at most
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


def _must(check: Check, *, default: Any = MISSING, factory: Any = MISSING) -> Any:
    metadata = {"check": check}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata) if default is not MISSING else field(metadata=metadata)


_Class = TypeVar("_Class", bound=type)
_make: Final[Any] = dataclass(slots=True, kw_only=True, unsafe_hash=True)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field, _must))
def _message(cls: _Class) -> _Class:
    """Make a message of a class. For a type checker it is frozen; freezing it here would make it three times slower."""
    made: _Class = _make(cls)
    return made


@_message
class _Message:
    def content(self) -> dict[str, object]:
        """The fields by name, without those that are ``None``."""
        rules = _rules(type(self))
        return {name: value for name, value in zip(rules.checks, rules.values(self), strict=True) if value is not None}

    def encode(self) -> bytes:
        """The payload: compact JSON."""
        rules = _rules(type(self))
        members = []
        for key, value in zip(rules.keys, rules.values(self), strict=True):
            if value is not None:
                kind = type(value)
                members.append(key + (_quoted(value) if kind is str else str(value) if kind is int else _encode(value)))
        return ("{" + ",".join(members) + "}").encode()

    @classmethod
    def parse(cls, payload: Buffer) -> Self:
        """Parse a payload; raises ``RemoteProtocolError`` if it is not valid."""
        try:
            content = _read(str(payload, "utf-8"))
        except (ValueError, RecursionError) as error:
            raise RemoteProtocolError(f"A {cls.__name__} payload is not JSON.") from error
        return cls.read(content)

    @classmethod
    def read(cls, content: object) -> Self:
        """The same for JSON that was decoded before."""
        if not isinstance(content, dict):
            raise RemoteProtocolError(f"A {cls.__name__} payload is not an object.")
        rules = _rules(cls)
        find = rules.checks.get
        found = {}
        for name, value in content.items():
            check = find(name)
            if check is None or value is None:
                continue
            if not check(value):
                raise RemoteProtocolError(f"A {cls.__name__} has a wrong {name!r}.")
            found[name] = value
        if not rules.needed <= found.keys():
            missing = next(name for name in rules.checks if name in rules.needed and name not in found)
            raise RemoteProtocolError(f"A {cls.__name__} lacks {missing!r}.")
        return cls(**found)


def _read(text: str) -> object:
    """Decode JSON; raises ``ValueError`` or ``RecursionError``."""
    if text[:1] == "{":
        content, end = _decoder.raw_decode(text)
        if end == len(text):
            return content
    return _decoder.decode(text)  # white space around it, or invalid


class _Rules:
    """What the fields of a class are, in their order."""

    def __init__(self, cls: type[_Message]) -> None:
        found = fields(cls)
        self.checks: Final[dict[str, Check]] = {item.name: item.metadata["check"] for item in found}
        self.keys: Final = [f'"{item.name}":' for item in found]  # with the colon, as in JSON
        self.needed: Final = {
            item.name for item in found if item.default is MISSING and item.default_factory is MISSING
        }
        names = list(self.checks)
        get = operator.attrgetter(*names)
        self.values: Callable[[_Message], tuple[Any, ...]] = get if len(names) > 1 else lambda message: (get(message),)


_rules_of: Final[dict[type, _Rules]] = {}  # by class, filled at first use


def _rules(cls: type[_Message]) -> _Rules:
    """The rules of a class, cached: asking the dataclass costs more than the checks."""
    rules = _rules_of.get(cls)
    if rules is None:
        rules = _rules_of[cls] = _Rules(cls)
    return rules


@_message
class Hello(_Message):
    """Agent -> relay, the first frame of a session."""

    versions: list[int] = _must(_versions)
    secret: str = _must(_hex(32))  # the process secret; only the relay sees it
    mode: str = _must(_one_of("new", "replace", "move"), default="new")
    predecessors: list[str] = _must(_secrets, factory=list)  # secrets of processes that this one replaces
    capabilities: list[str] = _must(_words(64), factory=list)
    agent: str = _must(_ascii(128), default="")  # program and version, for people


@_message
class Welcome(_Message):
    """Relay -> agent, the answer to HELLO."""

    version: int = _must(_whole(1, 1 << 16))
    relay: str = _must(_hex(16))
    credit: int = _must(_whole(0, MAX_OFFSET))  # bytes: the session's credit budget
    spread_ms: int = _must(_whole(0, 1 << 31))  # reconnect after a random part of this, in milliseconds
    opens: int = _must(_whole(1, 1 << 20))  # unanswered OPENs that the relay accepts
    streams: int = _must(_whole(1, 1 << 20))  # streams that this session may open
    capabilities: list[str] = _must(_words(64), factory=list)
    program: str = _must(_ascii(128), default="")  # the relay's program and version, for people


@_message
class Offer(_Message):
    """Host -> relay: this process serves ``service``."""

    service: str = _must(_is_service)
    host: str = _must(_hex(16))
    digest: str = _must(_hex(32))  # SHA-256 of the host's own hst_ token
    token: str | None = _must(_ascii(256), default=None)
    labels: dict[str, str] = _must(_labels, factory=dict)


@_message
class Offered(_Message):
    """Relay -> host: the offer is listed."""

    host: str = _must(_hex(16))


@_message
class Open(_Message):
    """Client -> relay -> host: a new stream.

    The client's OPEN carries its token and its ``secret`` for the stream. The OPEN
    that the host gets has neither. It carries ``key`` (HMAC-SHA256 of the host's
    process id under that secret), the attempt and the client's process id.
    """

    service: str = _must(_is_service)
    uuid: str = _must(_hex(16))
    limit: int = _must(_whole(0, MAX_OFFSET))  # bytes that the host may send at first
    token: str | None = _must(_ascii(256), default=None)
    pin: str | None = _must(_hex(16), default=None)
    secret: str | None = _must(_hex(32), default=None)
    key: str | None = _must(_hex(32), default=None)
    attempt: int | None = _must(_whole(1, 255), default=None)
    process: str | None = _must(_hex(16), default=None)
    kind: str | None = _must(_ascii(32), default=None)  # of flow; absent for a stream

    @property
    def unknown_kind(self) -> str | None:
        """The kind of flow that this code does not carry, if it is one."""
        return self.kind if self.kind not in {None, STREAM} else None


@_message
class Trying(_Message):
    """Relay -> client: the relay asks this host now. Early data must name this attempt."""

    attempt: int = _must(_whole(1, 255))
    process: str = _must(_hex(16))
    host: str = _must(_hex(16))


@_message
class Opened(_Message):
    """Host -> relay -> client: the host's service took the connection."""

    limit: int = _must(_whole(0, MAX_OFFSET))  # bytes that the client may send at first
    attempt: int = _must(_whole(1, 255))


@_message
class AttachEntry(_Message):
    """One stream of an ATTACH. The sender names its own new ``number`` and its ``peer``.

    The relay forwards it to that peer. ``peer`` then names the sender's process, and
    ``number`` is the receiver's own. Without a number the receiver must attach as
    well, or refuse.
    """

    uuid: str = _must(_hex(16))
    service: str = _must(_is_service)
    role: str = _must(_one_of("client", "host"))  # of the sender
    peer: str = _must(_hex(16))  # process id
    number: int | None = _must(_whole(1, (1 << 32) - 1), default=None)
    received: int = _must(_whole(0, MAX_OFFSET))  # all bytes below arrived
    limit: int = _must(_whole(0, MAX_OFFSET))  # bytes below may be sent
    fin: bool = _must(_flag, default=False)  # the end arrived as well
    opening: bool = _must(_flag, default=False)  # this client does not know whether its host has opened
    attach: int = _must(_whole(1, MAX_OFFSET))  # counts this end's ATTACHes of the stream
    proof: str = _must(_hex(32))


@_message
class Attach(_Message):
    """End to end, through the relay: streams resume under new numbers. All of them use one token."""

    streams: list[dict[str, object]] = _must(_entries)
    token: str | None = _must(_ascii(256), default=None)

    @classmethod
    def of(cls, entries: list[AttachEntry], token: str | None = None) -> Attach:
        """The message with these entries."""
        return cls(streams=[entry.content() for entry in entries], token=token)

    def entries(self) -> list[AttachEntry]:
        """The entries; raises ``RemoteProtocolError`` if one is malformed."""
        return [AttachEntry.read(stream) for stream in self.streams]


@_message
class Reset(_Message):
    """Both directions: a stream or an offer ends, with a code of the table and a sentence.

    With ``uuid`` and ``process`` an agent refuses that process's ATTACH.
    """

    code: str = _must(lambda v: isinstance(v, str) and _CODE.fullmatch(v) is not None)
    text: str = _must(_any_text(8192), default="")
    uuid: str | None = _must(_hex(16), default=None)
    process: str | None = _must(_hex(16), default=None)


@_message
class Goaway(_Message):
    """Relay -> agent: leave within ``move_ms``, and try another relay for ``try_ms``; after a final code, stop."""

    code: str = _must(lambda v: isinstance(v, str) and _CODE.fullmatch(v) is not None)
    text: str = _must(_any_text(8192), default="")
    move_ms: int = _must(_whole(0, 1 << 31), default=0)
    try_ms: int = _must(_whole(0, 1 << 31), default=0)


def reset_frame(number: int, code: str, text: str) -> bytes:
    """A RESET by number, from either end or from the relay."""
    # Cut, and control characters replaced: escaping would make the text longer on its way and end the receiver's
    # session.
    return frame(RESET, number, payload=Reset(code=code, text=printable(text)).encode())
