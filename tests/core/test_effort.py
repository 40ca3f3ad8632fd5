"""How many frames without effect and how many requests a session may send; an honest one never exceeds the limits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kdispatch_protocol.limits import Limits
from kdispatch_protocol.wire import frames
from kdispatch_protocol.wire.frames import decode, frame
from kdispatch_protocol.wire.identity import host_id, process_id
from kdispatch_protocol.wire.messages import Attach, AttachEntry, Hello, Offer, Open, Opened, Reset
from kdispatch_relay.limiter import Limiter, SessionLimits
from kdispatch_relay.rates import Recent
from kdispatch_relay.settings import RelaySettings
from kdispatch_relay.switch.intents import AskAttach, AskOffer, CutSession
from kdispatch_relay.switch.registry import Terms
from kdispatch_relay.switch.sessions import SwitchSession
from kdispatch_relay.switch.switch import Switch
from tests.core.intents import cuts_of, questions_of

SERVICE = "ann/web"
HELD = 5120  # streams that one session may have: 1,024 that it opened, and 4,096 that it accepted


class Relay:
    """A switch with a relay's default limits, in simulated time; all sessions have one source."""

    def __init__(self) -> None:
        self.now = 100.0
        self.switch = Switch("00" * 16, lambda _: 0, 0.0)  # no open waits for hosts to come back
        self.limiter = Limiter(RelaySettings(), Recent(1), lambda: self.now)
        self.cuts: list[CutSession] = []
        self.rested = 0.0  # total seconds for which sessions were not to be read
        self.out: dict[SwitchSession, bytearray] = {}

    def agent(self, number: int) -> SwitchSession:
        """A session after its HELLO."""
        session = self.switch.connect("192.0.2.1", self.now, SessionLimits(self.limiter, "192.0.2.1"))
        self.out[session] = bytearray()
        secret = number.to_bytes(32)
        self.hear(session, frame(frames.HELLO, payload=Hello(versions=[1], secret=secret.hex()).encode()))
        assert session.process == process_id(secret)
        self.said(session)
        return session

    def hear(self, session: SwitchSession, *message: bytes) -> None:
        """Handle one message from an agent and all its effects; the store allows everything."""
        switch = self.switch
        switch.receive_frames(session, decode(b"".join(message)), self.now)
        for question in questions_of(switch):
            if isinstance(question, AskOffer):
                switch.offers.allowed(question, Terms(public=True, streams=1 << 30), self.now)
            elif isinstance(question, AskAttach):
                switch.attachments.allowed(question, self.now)
            else:
                switch.opens.allowed(question.route, Terms(public=True, streams=1 << 30), self.now)
        for touched in switch.take_touched():
            while parts := touched.outbox.collect(1 << 16, self.now):
                self.out[touched] += b"".join(parts)
        self.cuts += cuts_of(switch)
        self.rested += session.effort.rest
        session.effort.rest = 0.0

    def said(self, session: SwitchSession) -> list[tuple[int, int, int, int, memoryview]]:
        """What the relay has sent to an agent since the last call."""
        said, self.out[session] = self.out[session], bytearray()
        return decode(bytes(said)) if said else []

    def host(self, number: int) -> SwitchSession:
        """A session that offers the service."""
        session = self.agent(number)
        offer = Offer(service=SERVICE, host=host_id(session.process, SERVICE), digest="00" * 32, token="t")
        self.hear(session, frame(frames.OFFER, 1, payload=offer.encode()))
        self.said(session)
        return session


def opening(number: int) -> bytes:
    return frame(frames.OPEN, number, payload=Open(service=SERVICE, uuid=f"{number:032x}", limit=65536).encode())


def entry(own: SwitchSession, peer: SwitchSession, number: int, role: str) -> AttachEntry:
    return AttachEntry(
        uuid=f"{number:032x}", service=SERVICE, role=role, peer=peer.process, number=number, received=0, limit=65536,
        attach=1, proof="00" * 32,
    )  # fmt: skip


def attaches(own: SwitchSession, peer: SwitchSession, numbers: range, role: str) -> Iterator[bytes]:
    for start in range(0, len(numbers), 64):
        batch = [entry(own, peer, number, role) for number in numbers[start : start + 64]]
        yield frame(frames.ATTACH, payload=Attach.of(batch).encode())


# --- what is cut ------------------------------------------------------------------------------------


_RESET = Reset(code="cancelled", text="").encode()


@pytest.mark.parametrize(
    "for_nothing",
    [
        frame(frames.PING),
        frame(frames.PONG),
        frame(frames.DATA, 99, 0, b"x"),
        frames.ack_frame(99, 0, 0, fin=False),
        frame(frames.FIN, 99),
        frame(frames.EARLY, 99, 1 << 48, b"x"),
        frame(frames.GONE, 99),
        frame(frames.WITHDRAW, 99),
        frame(frames.RESET, 99, payload=_RESET),
    ],
    ids=lambda data: frames.TYPE_NAMES[data[0] >> 3],
)
def test_frames_for_nothing(for_nothing: bytes) -> None:
    """A session may send 10,000 frames without effect at once, and ends with `rate_limited` above that."""
    relay = Relay()
    flooding, other = relay.agent(1), relay.agent(2)
    cost = 4 if for_nothing[0] >> 3 == frames.RESET else 1
    for _ in range(10_000 // (500 * cost)):
        relay.hear(flooding, for_nothing * 500)
        assert not relay.cuts
    relay.hear(flooding, for_nothing * 500)
    assert [(cut.session, cut.code) for cut in relay.cuts] == [(flooding, "rate_limited")]
    assert relay.limiter.limited["idle_frames"] > 0
    before = len(relay.out[flooding])
    relay.hear(flooding, frame(frames.PING) * 500)
    assert len(relay.out[flooding]) == before  # the relay has stopped working for it
    relay.hear(other, frame(frames.PING))
    assert [type_ for type_, *_ in relay.said(other)] == [frames.PONG]


@pytest.mark.parametrize("repeated", ["ACK", "DATA", "FIN"])
def test_repeats_of_a_live_stream(repeated: str) -> None:
    """Frames that repeat what a stream's other end already knows count as frames without effect."""
    relay = Relay()
    host, client = relay.host(1), relay.agent(2)
    relay.hear(client, opening(1))
    relay.hear(host, frame(frames.OPENED, 2, payload=Opened(limit=65536, attempt=1).encode()))
    again = {
        "ACK": frames.ack_frame(1, 0, 65536, fin=False),
        "DATA": frame(frames.DATA, 1, 0, b"x"),
        "FIN": frame(frames.FIN, 1, 0),
    }[repeated]
    for _ in range(24):
        relay.hear(client, again * 500)
    assert [(cut.session, cut.code) for cut in relay.cuts] == [(client, "rate_limited")]


@pytest.mark.parametrize("opened", [False, True])
def test_early_data_of_a_try_that_is_over(opened: bool) -> None:
    """EARLY of an earlier attempt counts as a frame without effect, whether its stream is open or not."""
    relay = Relay()
    host, client = relay.host(1), relay.agent(2)
    relay.hear(client, opening(1))
    if opened:
        relay.hear(host, frame(frames.OPENED, 2, payload=Opened(limit=65536, attempt=1).encode()))
    for _ in range(24):
        relay.hear(client, frame(frames.EARLY, 1, 9 << 48, b"x") * 500)
    assert [(cut.session, cut.code) for cut in relay.cuts] == [(client, "rate_limited")]


def test_limits_that_rise_without_data() -> None:
    """A session that grants ever more on a stream without data is read slower, and then cut."""
    relay = Relay()
    host, client = relay.host(1), relay.agent(2)
    relay.hear(client, opening(1))
    relay.hear(host, frame(frames.OPENED, 2, payload=Opened(limit=65536, attempt=1).encode()))
    for limit in range(65_537, 500_000, 500):
        if relay.cuts:
            break
        relay.hear(client, b"".join(frames.ack_frame(1, 0, limit + step, fin=False) for step in range(500)))
        relay.now += 0.003
    assert [(cut.session, cut.code) for cut in relay.cuts] == [(client, "rate_limited")]
    assert relay.rested > 1.0


def test_many_sessions_of_one_source() -> None:
    """A source's allowance of frames without effect does not grow with its sessions, and its quiet sessions stay."""
    relay = Relay()
    quiet = relay.agent(99)
    flooding = [relay.agent(number) for number in range(1, 11)]
    for _ in range(40):
        for session in flooding:
            if not session.effort.why:
                relay.hear(session, frame(frames.PING) * 250)
    sent = sum(len(relay.said(session)) for session in flooding)
    assert sent <= 20_000 + 10 * 1250  # the source's bucket, and each one's part
    assert {cut.session for cut in relay.cuts} == set(flooding)
    relay.hear(quiet, frame(frames.PING))
    assert not quiet.doomed


def test_opens_that_are_refused() -> None:
    """A source that asks too much is read slower, and those of its sessions that go on in vain are cut."""
    relay = Relay()
    session = relay.agent(1)
    for number in range(1, 60_000, 2):
        if relay.cuts:
            break
        before = relay.rested
        relay.hear(session, opening(number))
        relay.now += 0.00001
        assert relay.rested - before <= 1.0
    assert [cut.code for cut in relay.cuts] == ["rate_limited"]
    assert relay.limiter.limited["asking"] > 0
    assert relay.rested > 1.0


# --- what is never cut ------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_thousand_opens_a_second() -> None:
    """An agent that opens 2,000 short streams a second is neither cut nor slowed."""
    relay = Relay()
    host, client = relay.host(1), relay.agent(2)
    for turn in range(6000):
        number, at_host = 2 * turn + 1, 2 * turn + 2
        relay.hear(client, opening(number))
        relay.hear(host, frame(frames.OPENED, at_host, payload=Opened(limit=65536, attempt=1).encode()))
        for session, own in ((client, number), (host, at_host)):
            relay.hear(session, frames.ack_frame(own, 0, 65536, fin=False))
            relay.hear(session, frame(frames.DATA, own, 0, b"x"), frame(frames.FIN, own, 1))
        for session, own in ((client, number), (host, at_host)):
            relay.hear(session, frames.ack_frame(own, 1, 65536, fin=True))
            relay.hear(session, frames.ack_frame(own, 1, 65536, fin=True))  # after the end
        relay.now += 1 / 2000
    assert not relay.cuts and not relay.rested
    assert not client.legs and not host.legs


@pytest.mark.slow
def test_opens_of_a_service_that_is_down() -> None:
    """2,000 opens a second that all fail because no host is there are refused as long as they come, and not cut."""
    relay = Relay()
    client = relay.agent(2)
    for turn in range(10_000):
        relay.hear(client, opening(2 * turn + 1))
        relay.now += 1 / 2000
    assert {type_ for type_, *_ in relay.said(client)} == {frames.RESET}
    assert not relay.cuts and not relay.rested


@pytest.mark.slow
def test_ten_thousand_streams_attach_at_once() -> None:
    """After a relay's restart, both ends of 10,000 streams of one source attach at once: none is cut, all are joined.

    What is not read at once is read within a few seconds.
    """
    relay = Relay()
    pairs = [(relay.host(number), relay.agent(number + 1)) for number in (1, 3)]
    joined = 0
    for host, client in pairs:
        numbers = range(3, 3 + 2 * HELD, 2)
        for one, two in zip(
            attaches(host, client, numbers, "host"), attaches(client, host, numbers, "client"), strict=True
        ):
            relay.hear(host, one)
            relay.hear(client, two)
        joined += len(host.legs)
    assert not relay.cuts
    assert joined == 2 * HELD
    assert relay.limiter.spend("asking", "192.0.2.1", 0, relay.now) <= 3.0


@pytest.mark.slow
def test_moving_all_streams() -> None:
    """An agent that attaches all it may have, twice in a minute, and offers 256 services each time, is not cut."""
    relay = Relay()
    for start in (10, 20):
        host, client = relay.host(start), relay.agent(start + 1)
        for number in range(20_001, 20_513, 2):
            service = f"ann/s{number}"
            offer = Offer(service=service, host=host_id(host.process, service), digest="00" * 32, token="t")
            relay.hear(host, frame(frames.OFFER, number, payload=offer.encode()))
        numbers = range(30_001, 30_001 + 2 * HELD, 2)
        for one in attaches(host, client, numbers, "host"):
            relay.hear(host, one)
        relay.now += 30
    assert not relay.cuts


@pytest.mark.slow
def test_acknowledgements_of_bulk_and_of_small_streams() -> None:
    """ACKs with news cost nothing, however many they are, and neither does DATA within its credit."""
    relay = Relay()
    host, client = relay.host(1), relay.agent(2)
    relay.hear(client, opening(1))
    relay.hear(host, frame(frames.OPENED, 2, payload=Opened(limit=1 << 40, attempt=1).encode()))
    for received in range(60_000):
        relay.hear(client, frame(frames.DATA, 1, received, b"x"))
        relay.hear(host, frames.ack_frame(2, received + 1, (1 << 40) + received, fin=False))
    assert not relay.cuts and not relay.rested
    assert relay.limiter.spend("idle_frames", "192.0.2.1", 0, relay.now) == 0.0


@pytest.mark.slow
def test_what_is_under_way_to_a_lost_peer() -> None:
    """When a peer with 4,096 streams is lost, the other end is not cut for the frames that it had under way."""
    relay = Relay()
    host = relay.host(1)
    clients = [relay.agent(number) for number in range(2, 6)]
    at_host = 0
    for client in clients:
        for number in range(1, 2049, 2):
            relay.hear(client, opening(number))
            at_host += 2
            relay.hear(host, frame(frames.OPENED, at_host, payload=Opened(limit=65536, attempt=1).encode()))
    for client in clients:
        relay.switch.disconnect(client, relay.now)
    for number in range(2, at_host + 2, 2):
        relay.hear(host, frame(frames.DATA, number, 0, b"x"), frame(frames.DATA, number, 1, b"x"))
    assert not relay.cuts


def test_limits_of_today_hold_together() -> None:
    """A session may attach all streams that it may have without exceeding the limit on requests."""
    limits = Limits()
    assert limits.streams_client + limits.streams_host == HELD
    assert limits.storm_burst >= (HELD + limits.opens) / 2 + 4 * limits.offers


def test_readers_that_fall_behind() -> None:
    """An agent whose 500 slow programs cause an ACK at each small read is neither cut nor slowed."""
    relay = Relay()
    host, client = relay.host(1), relay.agent(2)
    for stream in range(500):
        relay.hear(client, opening(2 * stream + 1))
        relay.hear(host, frame(frames.OPENED, 2 * stream + 2, payload=Opened(limit=65536, attempt=1).encode()))
        relay.hear(host, frame(frames.DATA, 2 * stream + 2, 0, bytes(65536)))
        relay.now += 1 / 1000
    for sip in range(1, 101):
        sips = (frames.ack_frame(2 * stream + 1, 65536, 65536 + 100 * sip, fin=False) for stream in range(500))
        relay.hear(client, *sips)
        relay.now += 0.100  # the delay of an ACK
    assert not relay.cuts and not relay.rested
