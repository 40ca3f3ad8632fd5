from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdispatch_protocol.errors import CODES, RemoteProtocolError
from kdispatch_protocol.wire import frames, messages
from kdispatch_protocol.wire.frames import MAX_OFFSET
from kdispatch_protocol.wire.messages import (
    Attach,
    AttachEntry,
    Goaway,
    Hello,
    Offer,
    Offered,
    Open,
    Opened,
    Reset,
    Trying,
    Welcome,
    printable,
)

Message = Attach | AttachEntry | Goaway | Hello | Offer | Offered | Open | Opened | Reset | Trying | Welcome
CLASSES: list[type[Message]] = [
    Attach, AttachEntry, Goaway, Hello, Offer, Offered, Open, Opened, Reset, Trying, Welcome
]  # fmt: skip

ID = "0123456789abcdef" * 2
KEY = ID * 2
# The smallest payload of each.
LEAST: dict[type[Message], dict[str, Any]] = {
    Hello: {"versions": [1], "secret": KEY},
    Welcome: {"version": 1, "relay": ID, "credit": 0, "spread_ms": 0, "opens": 1, "streams": 1},
    Offer: {"service": "ada/web", "host": ID, "digest": KEY},
    Offered: {"host": ID},
    Open: {"service": "ada/web", "uuid": ID, "limit": 0},
    Trying: {"attempt": 1, "process": ID, "host": ID},
    Opened: {"limit": 0, "attempt": 1},
    Reset: {"code": "closed"},
    Goaway: {"code": "drain"},
    Attach: {"streams": [{}]},
    AttachEntry: {
        "uuid": ID,
        "service": "ada/web",
        "role": "host",
        "peer": ID,
        "received": 0,
        "limit": 0,
        "attach": 1,
        "proof": KEY,
    },
}

hex16 = st.binary(min_size=16, max_size=16).map(bytes.hex)
hex32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
offsets = st.integers(0, MAX_OFFSET)
names = st.from_regex(r"[a-z0-9](?:[a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
services = st.builds(lambda a, b: f"{a}/{b}", names, names)
printables = st.characters(min_codepoint=32, max_codepoint=126)
ascii64 = st.text(printables, max_size=64)
ascii256 = st.text(printables, max_size=256)
words = st.lists(ascii64, max_size=4)
codes = st.from_regex(r"[a-z][a-z0-9_]{0,39}", fullmatch=True)
millis = st.integers(0, 1 << 31)
attempts = st.integers(1, 255)

VALID: list[st.SearchStrategy[Message]] = [
    st.builds(
        Hello,
        versions=st.lists(st.integers(), min_size=1, max_size=32),
        secret=hex32,
        mode=st.sampled_from(["new", "replace", "move"]),
        predecessors=st.lists(hex32, max_size=4),
        capabilities=words,
        agent=ascii64,
    ),
    st.builds(
        Welcome,
        version=st.integers(1, 1 << 16),
        relay=hex16,
        credit=offsets,
        spread_ms=millis,
        opens=st.integers(1, 1 << 20),
        streams=st.integers(1, 1 << 20),
        capabilities=words,
    ),
    st.builds(
        Offer,
        service=services,
        host=hex16,
        digest=hex32,
        token=st.none() | ascii256,
        labels=st.dictionaries(ascii64, ascii256, max_size=3),
    ),
    st.builds(Offered, host=hex16),
    st.builds(
        Open,
        service=services,
        uuid=hex16,
        limit=offsets,
        token=st.none() | ascii256,
        pin=st.none() | hex16,
        secret=st.none() | hex32,
        key=st.none() | hex32,
        attempt=st.none() | attempts,
        process=st.none() | hex16,
        kind=st.none() | st.text(printables, min_size=1, max_size=32),
    ),
    st.builds(Trying, attempt=attempts, process=hex16, host=hex16),
    st.builds(Opened, limit=offsets, attempt=attempts),
    st.builds(Reset, code=codes, text=st.text(max_size=40), uuid=st.none() | hex16, process=st.none() | hex16),
    st.builds(
        AttachEntry,
        uuid=hex16,
        service=services,
        role=st.sampled_from(["client", "host"]),
        peer=hex16,
        number=st.none() | st.integers(1, (1 << 32) - 1),
        received=offsets,
        limit=offsets,
        fin=st.booleans(),
        opening=st.booleans(),
        attach=st.integers(1, MAX_OFFSET),
        proof=hex32,
    ),
    st.builds(
        Attach, token=st.none() | ascii256, streams=st.lists(st.dictionaries(ascii64, words), min_size=1, max_size=4)
    ),
    st.builds(Goaway, code=codes, text=st.text(max_size=40), move_ms=millis, try_ms=millis),
]

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | hex16,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def refused(kind: type[Message], payload: bytes) -> bool:
    """Whether parsing ends in the one error that it may raise."""
    try:
        parsed = kind.parse(payload)
    except RemoteProtocolError as error:
        return error.code == "protocol_error"
    assert isinstance(parsed, kind)
    return False


def with_(kind: type[Message], /, **changes: object) -> bytes:
    """The smallest valid payload, changed."""
    return json.dumps(LEAST[kind] | changes).encode()


@given(st.one_of(VALID))
@settings(max_examples=300)
def test_what_was_encoded_is_parsed(message: Message) -> None:
    """Every message equals the one parsed from its payload, which leaves out ``None``."""
    payload = message.encode()
    assert type(message).parse(payload) == message
    assert None not in json.loads(payload).values()


@pytest.mark.parametrize("kind", CLASSES)
def test_the_least_payload(kind: type[Message]) -> None:
    """A field with a default may be missing or null; a field without one may not."""
    least = LEAST[kind]
    parsed = kind.parse(with_(kind))
    assert kind.parse(parsed.encode()) == parsed
    optional = set(kind.__dataclass_fields__) - set(least)
    assert kind.parse(with_(kind, **dict.fromkeys(optional))) == parsed
    for name in least:
        assert refused(kind, json.dumps({k: v for k, v in least.items() if k != name}).encode())
        assert refused(kind, with_(kind, **{name: None}))


@pytest.mark.parametrize("kind", CLASSES)
def test_unknown_keys(kind: type[Message]) -> None:
    """Keys of a later version are ignored."""
    assert kind.parse(with_(kind, later={"a": [1]}, x=None)) == kind.parse(with_(kind))


@given(st.sampled_from(CLASSES), st.binary(max_size=100))
@example(Hello, b"")
@example(Hello, b"\xff\xfe{\x00}\x00")
@example(Hello, b"\xef\xbb\xbf{}")
@settings(max_examples=300)
def test_any_bytes(kind: type[Message], payload: bytes) -> None:
    """The parser returns a message or its one error for any bytes."""
    refused(kind, payload)


@given(st.sampled_from(CLASSES), anything)
@settings(max_examples=200)
def test_any_json(kind: type[Message], content: object) -> None:
    """The parser returns a message or its one error for any JSON, and refuses everything but objects."""
    assert refused(kind, json.dumps(content).encode()) or isinstance(content, dict)


@given(st.data())
@settings(max_examples=250)
def test_any_value_in_any_field(data: st.DataObject) -> None:
    """The parser returns a message or its one error for any values in its fields, and can encode what it accepts."""
    kind = data.draw(st.sampled_from(CLASSES))
    name = data.draw(st.sampled_from(sorted(kind.__dataclass_fields__)))
    payload = with_(kind, **{name: data.draw(anything)})
    if not refused(kind, payload):
        message = kind.parse(payload)
        assert kind.parse(message.encode()) == message


WRONG_TYPES: list[Any] = [True, False, 1.0, float("nan"), float("inf"), 10**40, -1, "x" * 9000, [], {}, [[]], ["\n"]]


@pytest.mark.parametrize("wrong", WRONG_TYPES, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("kind", CLASSES)
def test_wrong_values(kind: type[Message], wrong: object) -> None:
    """No field accepts a boolean for a number, a fraction, a NaN, a number out of range or another type."""
    flags = {"fin", "opening"} if isinstance(wrong, bool) else set()
    empty = {"capabilities", "predecessors"} if wrong == [] else {"labels"} if wrong == {} else set()
    for name in set(kind.__dataclass_fields__) - empty - flags:
        assert refused(kind, with_(kind, **{name: wrong}))


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (Hello, "versions", []),
        (Hello, "versions", [1] * 33),
        (Hello, "versions", [True]),
        (Hello, "versions", ["1"]),
        (Hello, "secret", KEY[:-1]),
        (Hello, "secret", KEY.upper()),
        (Hello, "secret", KEY[:-1] + "g"),
        (Hello, "secret", KEY[:-1] + "\n"),
        (Hello, "secret", "\u0660" * 64),
        (Hello, "mode", "old"),
        (Hello, "capabilities", ["x"] * 65),
        (Hello, "capabilities", ["x" * 65]),
        (Hello, "capabilities", ["é"]),
        (Hello, "agent", "x" * 129),
        (Hello, "agent", "a\x1b[31m"),
        (Welcome, "version", 0),
        (Welcome, "version", (1 << 16) + 1),
        (Welcome, "credit", MAX_OFFSET + 1),
        (Welcome, "spread_ms", (1 << 31) + 1),
        (Welcome, "opens", 0),
        (Welcome, "streams", (1 << 20) + 1),
        (Offer, "service", "ada"),
        (Offer, "service", "Ada/web"),
        (Offer, "service", "ada/web/x"),
        (Offer, "service", "ada/web\n"),
        (Offer, "host", ID + "00"),
        (Offer, "token", "x" * 257),
        (Offer, "token", "\ud800"),
        (Offer, "labels", {f"k{n}": "" for n in range(17)}),
        (Offer, "labels", {"k" * 65: ""}),
        (Offer, "labels", {"k": "v" * 257}),
        (Offer, "labels", {"k": 1}),
        (Offer, "labels", {"k\0": "v"}),
        (Open, "limit", -1),
        (Open, "attempt", 0),
        (Open, "attempt", 256),
        (Opened, "attempt", True),
        (Reset, "code", ""),
        (Reset, "code", "Closed"),
        (Reset, "code", "c" * 41),
        (Reset, "code", "closed\n"),
        (Reset, "text", "x" * 8193),
        (Goaway, "move_ms", 0.5),
        (Goaway, "try_ms", -1),
    ],
)
def test_each_check(kind: type[Message], name: str, wrong: object) -> None:
    """A value just beyond a rule is refused, and the error names the field."""
    with pytest.raises(RemoteProtocolError, match=f"wrong '{name}'"):
        kind.parse(with_(kind, **{name: wrong}))


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Hello, "versions", [7] * 32),
        (Hello, "capabilities", ["x" * 64] * 64),
        (Hello, "agent", "x" * 128),
        (Welcome, "version", 1 << 16),
        (Welcome, "credit", MAX_OFFSET),
        (Offer, "service", "a" * 63 + "/" + "b" * 63),
        (Offer, "labels", {f"{n:064}": "v" * 256 for n in range(16)}),
        (Open, "attempt", 255),
        (Reset, "code", "c" * 40),
        (Reset, "text", "é" * 8192),
        (Reset, "text", "\ud800\x00\u202e"),
        (Goaway, "try_ms", 1 << 31),
    ],
)
def test_each_bound(kind: type[Message], name: str, value: object) -> None:
    """Each rule accepts a value at its bound."""
    assert getattr(kind.parse(with_(kind, **{name: value})), name) == value


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"limit":' + b"9" * 10_000 + b"}",
        b'{"limit":1e999}',
        b"NaN",
        b"null",
        b"1",
        b"{}{}",
        b"{'a':1}",
        b'{"code":"\\ud800"}',
        b"\x00",
        "{}".encode("utf-32"),
    ],
    ids=lambda payload: repr(payload[:12]),
)
@pytest.mark.parametrize("kind", CLASSES)
def test_hostile_json(kind: type[Message], payload: bytes) -> None:
    """Deep nesting, huge numbers and broken text are refused like any wrong payload."""
    assert refused(kind, payload)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be", "utf-8-sig"])
def test_payloads_are_utf_8(kind: type[Message], encoding: str) -> None:
    """A valid payload in another encoding, or after a byte order mark, is refused."""
    assert refused(kind, json.dumps(LEAST[kind]).encode(encoding))


@pytest.mark.parametrize("kind", CLASSES)
def test_white_space_around_a_payload(kind: type[Message]) -> None:
    """White space around the object is valid JSON and changes nothing."""
    payload = json.dumps(LEAST[kind], indent=1)
    assert kind.parse(f" \r\n{payload}\t\n".encode()) == kind.parse(payload.encode())
    assert refused(kind, f"{payload} 1".encode())


@pytest.mark.parametrize("view", [bytes, bytearray, memoryview])
def test_payloads_of_every_buffer_type(view: type[bytes]) -> None:
    """A payload may be bytes, a bytearray or a view."""
    assert Reset.parse(view(b'{"code":"closed"}')) == Reset(code="closed")


@pytest.mark.parametrize("code", CODES)
def test_codes_of_the_table_travel(code: str) -> None:
    """RESET and GOAWAY carry every code of the table."""
    assert Reset.parse(Reset(code=code).encode()).code == code
    assert Goaway.parse(Goaway(code=code).encode()).code == code


def test_our_own_texts_fit() -> None:
    """A text that is cut for the wire fits a frame, whatever its characters cost."""
    worst = printable("\U0001f600" * 9000)
    assert len(Reset(code="c" * 40, text=worst, uuid=ID).encode()) <= frames._RULES[frames.RESET][1]


@given(st.text(st.characters(), max_size=50), st.integers(0, 60))
@example("\x1b[2J\r\n\u202e\ud800\x7f\x9b\u2028", 60)
@settings(max_examples=200)
def test_printable(text: str, most: int) -> None:
    """Displayed text has no control characters and is no longer than requested; other characters stay."""
    shown = printable(text, most)
    assert shown.isprintable()
    assert len(shown) == min(len(text), most)
    assert all(now in {was, "?"} for now, was in zip(shown, text, strict=False))
    assert shown == text[:most] or not text[:most].isprintable()


def test_public_names() -> None:
    """All names that the module exports exist."""
    assert {kind.__name__ for kind in CLASSES} | {"QUIET", "STREAM", "printable", "reset_frame"} == set(
        messages.__all__
    )
