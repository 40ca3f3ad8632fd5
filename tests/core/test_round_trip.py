"""How an agent measures how far its relay is."""

from __future__ import annotations

from kdispatch_protocol import events, frames
from kdispatch_protocol.endpoint import Endpoint
from kdispatch_protocol.events import Event
from kdispatch_protocol.frames import FrameReader
from kdispatch_protocol.messages import Welcome


def connected() -> Endpoint:
    endpoint = Endpoint(b"s" * 32)
    welcome(endpoint)
    return endpoint


def welcome(endpoint: Endpoint) -> None:
    endpoint.connect()
    said = Welcome(version=1, relay="ab" * 16, credit=1 << 20, spread_ms=0, opens=8, streams=8).encode()
    endpoint.receive_frames([(frames.WELCOME, 0, 0, 0, memoryview(said))], 0.0)
    sent(endpoint)
    endpoint.take_events()


def sent(endpoint: Endpoint) -> list[tuple[int, int]]:
    """Types and values of what goes out now."""
    data = b"".join(bytes(part) for part in endpoint.data_to_send(1 << 20, 0.0))
    return [(type_, value) for type_, _, _, value, _ in FrameReader().receive(memoryview(data), ends=True)]


def pong(endpoint: Endpoint, value: int, now: float) -> list[Event]:
    endpoint.receive_frames([(frames.PONG, 0, 0, value, memoryview(b""))], now)
    return endpoint.take_events()


def test_the_answer_tells_the_round_trip() -> None:
    """A PING goes out whose PONG brings its value back; the time between them is told once."""
    endpoint = connected()
    endpoint.measure(10.0)
    ((type_, value),) = sent(endpoint)
    assert type_ == frames.PING and value
    assert pong(endpoint, value, 10.25) == [events.RoundTripMeasured(0.25)]
    assert pong(endpoint, value, 11.0) == []


def test_one_at_a_time() -> None:
    """While an answer is awaited nothing more is asked, and after it again."""
    endpoint = connected()
    for now in (1.0, 2.0, 3.0):
        endpoint.measure(now)
    ((_, value),) = sent(endpoint)
    assert pong(endpoint, value, 4.0) == [events.RoundTripMeasured(3.0)]
    endpoint.measure(5.0)
    assert len(sent(endpoint)) == 1


def test_other_answers_do_not_count() -> None:
    """The answer to a PING that asks for life measures nothing, although it comes first."""
    endpoint = connected()
    endpoint.measure(1.0)
    assert pong(endpoint, 0, 1.5) == []
    assert pong(endpoint, 1, 2.0) == [events.RoundTripMeasured(1.0)]


def test_a_lost_session_answers_no_more() -> None:
    """What was asked in a lost session is forgotten; without a session nothing is asked."""
    endpoint = connected()
    endpoint.measure(1.0)
    endpoint.disconnect(2.0)
    assert endpoint.asked_at is None
    endpoint.measure(3.0)
    assert endpoint.asked_at is None
    welcome(endpoint)
    assert pong(endpoint, 1, 9.0) == []
