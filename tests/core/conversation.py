"""An agent's endpoint, and the relay's frames for it."""

from __future__ import annotations

from kdispatch_protocol.endpoint import events
from kdispatch_protocol.endpoint.endpoint import Endpoint
from kdispatch_protocol.endpoint.events import Event
from kdispatch_protocol.endpoint.streams import Stream
from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import frame
from kdispatch_protocol.wire.identity import host_id, process_id
from kdispatch_protocol.wire.messages import Offer, Open, Opened, Reset, Trying, Welcome

SECRET = bytes(32)
SERVICE = "ann/web"
OFFER = Offer(service=SERVICE, host=host_id(process_id(SECRET), SERVICE), digest="00" * 32, token="t")
WELCOME = Welcome(version=1, relay="00" * 16, credit=1 << 26, spread_ms=500, opens=2, streams=10)


class Conversation:
    """An endpoint and the relay's frames for it."""

    def __init__(self, *, welcome: Welcome | None = WELCOME, limits: Limits | None = None, offer: bool = False) -> None:
        self.endpoint = Endpoint(SECRET, agent="test", limits=limits or Limits())
        self.table = self.endpoint.table
        self.now = 10.0
        if offer:
            self.endpoint.offer(OFFER)
        self.session = self.endpoint.connect()
        self.first = self.said()
        if welcome is not None:
            self.hear(frame(frames.WELCOME, payload=welcome.encode()))

    def hear(self, *message: bytes) -> None:
        self.endpoint.receive_frames(self.session, frames.decode(b"".join(message)), self.now)

    def said(self) -> list[tuple[str, int, int, bytes]]:
        """What the agent sends now: type, stream, value, payload of each frame."""
        message = b"".join(self.endpoint.take_batch(self.session, 1 << 20, self.now))
        return [(frames.TYPE_NAMES[t], s, v, bytes(p)) for t, _, s, v, p in frames.decode(message)] if message else []

    def lose(self) -> None:
        """Lose the session, without a new one."""
        self.endpoint.disconnect(self.session, self.now)

    def connect(self) -> None:
        """Begin another session."""
        self.session = self.endpoint.connect()

    def names(self) -> list[str]:
        return [name for name, *_ in self.said()]

    def events(self) -> list[Event]:
        return self.endpoint.take_events()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.endpoint.next_deadline()
        if deadline is not None and deadline <= self.now:
            self.endpoint.handle_timeout(self.now)

    def client(self) -> Stream:
        """A client's stream that a host has opened; its number is 1."""
        stream = self.table.open(SERVICE, "11" * 16, self.now)
        trying = Trying(attempt=1, process="22" * 16, host="33" * 16)
        self.hear(
            frame(frames.TRYING, 1, payload=trying.encode()),
            frame(frames.OPENED, 1, payload=Opened(limit=65536, attempt=1).encode()),
        )
        self.said()
        self.events()
        return stream

    def host(self) -> Stream:
        """A stream that the endpoint accepted as a host; its number is 2."""
        self.hear(open_frame(2))
        [event] = [e for e in self.events() if isinstance(e, events.StreamRequested)]
        self.table.accept(event.stream, self.now)
        self.said()
        return event.stream


def open_frame(number: int, *, service: str = SERVICE, uuid: str = "44" * 16) -> bytes:
    message = Open(service=service, uuid=uuid, limit=65536, attempt=1, process="55" * 16)
    return frame(frames.OPEN, number, payload=message.encode())


def reset_of(frame_said: tuple[str, int, int, bytes]) -> str:
    assert frame_said[0] == "RESET"
    return Reset.parse(frame_said[3]).code
