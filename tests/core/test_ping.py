"""An agent's PING, whose value comes back."""

from __future__ import annotations

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import FrameReader
from kdispatch_protocol.wire.messages import Welcome


def connected() -> Endpoint:
    endpoint = Endpoint(b"s" * 32)
    session = endpoint.connect()
    welcome = Welcome(version=1, relay="ab" * 16, credit=1 << 20, spread_ms=0, opens=8, streams=8).encode()
    endpoint.receive_frames(session, [(frames.WELCOME, 0, 0, 0, memoryview(welcome))], 0.0)
    sent(endpoint)
    endpoint.take_events()
    return endpoint


def sent(endpoint: Endpoint) -> list[tuple[int, int]]:
    """Types and values of what goes out now."""
    data = b"".join(bytes(part) for part in endpoint.take_batch(endpoint.table.session, 1 << 20, 0.0))
    return [(type_, value) for type_, _, _, value, _ in FrameReader().receive(memoryview(data), ends=True)]


def test_the_value_comes_back() -> None:
    """A PING goes out with its value; the PONG with that value is reported, and others only show life."""
    endpoint = connected()
    endpoint.ping(7)
    assert sent(endpoint) == [(frames.PING, 7)]
    endpoint.receive_frames(
        endpoint.table.session, [(frames.PONG, 0, 0, value, memoryview(b"")) for value in (0, 7, (1 << 64) - 1)], 1.0
    )
    assert endpoint.take_events() == [events.PongReceived(7)]


def test_without_a_session() -> None:
    """Without a session, no PING is sent."""
    endpoint = connected()
    endpoint.disconnect(endpoint.table.session, 1.0)
    endpoint.ping(7)
    assert endpoint.take_batch(endpoint.table.session, 1 << 20, 1.0) == []
